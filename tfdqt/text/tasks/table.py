"""The table of tasks, by their names. Imports no TensorFlow."""

from tfdqt.errors import UsageError
from tfdqt.text.config import TextConfig, TextNetworkConfig, with_method
from tfdqt.text.tasks import chess, corpus, maze, wordle

RECIPES = (
    maze.MAZE,
    maze.MAZE_PO,
    maze.MAZE_PO_CONFINED,
    wordle.WORDLE,
    chess.CHESS,
    corpus.CORPUS,
)
TASKS = {recipe.name: recipe for recipe in RECIPES}


def make_task(name, tokenizer=None, run_dir=None, settings=None):
    """The `play.Task` called `name`, its texts read by `tokenizer` or by one of its own.

    run_dir, settings: folder and config.json of the run that it is for; games need neither. Raises
    UsageError for what can't be.

    >>> make_task("wordle").actions[0]
    """
    if name not in TASKS:
        raise UsageError(f"There is no task {name}; choose one of {', '.join(TASKS)}.")
    return TASKS[name].make(tokenizer, run_dir, settings)


def default_text_config(task, method=None):
    """The defaults for a task: (dict of epochs and episodes, TextNetworkConfig, TextConfig).

    With another method than the task's own, settings which that method does not have are as if not
    given.
    """
    recipe = TASKS.get(task, maze.MAZE)
    cfg = TextConfig(**recipe.text)
    if method is not None:
        cfg = with_method(cfg, method)
    amounts = dict(epochs=recipe.epochs, episodes=recipe.episodes)
    return amounts, TextNetworkConfig(**recipe.network), cfg
