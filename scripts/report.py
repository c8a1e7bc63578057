"""Make one HTML page of runs: python scripts/report.py RUN... --out=report.html

It holds all that it shows and opens without a network: settings, learning curves, evaluations,
comparisons, and of the first run a game step by step, or texts with the value of each word.
"""

import dataclasses
from pathlib import Path

import tyro

from tfdqt.errors import UsageError
from tfdqt.report.gather import gather
from tfdqt.report.kinds import task_of
from tfdqt.report.page import LARGEST, make_page, vega
from tfdqt.runs.checkpoint import BEST, checkpoints
from tfdqt.runs.cli import run_main
from tfdqt.runs.folder import find_run
from tfdqt.settings import check_at_least_one, check_fractions, check_left_out, check_not_negative


@dataclasses.dataclass(frozen=True)
class Args:
    """Make a page of runs; those that differ in the seed alone are drawn as one."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs."""
    out: str = "report.html"
    """File to write."""
    title: str = ""
    """Heading; by default what the runs learn."""
    game: bool = True
    """Whether a game of the first run is played and shown, or texts of it are written."""
    game_steps: int = 300
    """Longest game that is shown, in steps."""
    epsilon: float = 0.0
    """Probability of a random action in it."""
    seed: int = 1_000
    """Seeds the game, or the texts."""
    texts: int = 8
    """Texts that are shown of a run that writes."""


def can_play(folder):
    """Whether a run has a network: a checkpoint, or an exported policy."""
    return bool(checkpoints(folder) or checkpoints(folder, BEST))


def shown_of(args, groups):
    """What is shown of the first run that has a checkpoint: arguments of `make_page`."""
    folders = [folder for group in groups for folder in group.runs if can_play(folder)]
    if not (args.game and folders):
        return {}
    folder = folders[0]
    group = next(group for group in groups if folder in group.runs)
    if group.game:
        check_left_out(args, "is for texts; leave it out for a game", "texts")
    else:
        check_left_out(args, "is for games; leave it out for texts", "game_steps", "epsilon")
        return dict(samples=_texts(folder, args))
    from tfdqt.games.trained import load_run
    from tfdqt.report.explained import play_explained, value_rows

    trained = load_run(folder)
    cfg = trained.settings[trained.settings["algorithm"]]
    film = play_explained(trained, seed=args.seed, max_steps=args.game_steps, epsilon=args.epsilon)
    return dict(film=film, values=value_rows(trained, cfg, seed=args.seed))


def _texts(folder, args):
    """Texts of a run that writes, with the value of each word; of a game none."""
    from tfdqt import load_writer

    writer = load_writer(folder)
    if not writer.task.writes:
        return ()
    how = dict(words=writer.task.length - 1, seed=args.seed)
    texts = writer.write([""] * args.texts, **how)
    space = "" if any(word.startswith((" ", "\n")) for one in texts for word in one.words) else " "
    special = set(writer.task.tokenizer.all_special_tokens)
    return [
        dict(
            reward=writer.reward(one.text),
            words=[word + space if word not in special else "" for word in one.words],
            values=one.values,
        )
        for one in texts
    ]


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    if not args.runs:
        raise UsageError("Name one or more folders of runs.")
    check_at_least_one(args, "game_steps", "texts")
    check_fractions(args, "epsilon")
    check_not_negative(args, "seed")
    if not args.game:
        check_left_out(
            args, "is of a game; leave one out", "game_steps", "epsilon", "texts", "seed"
        )
    folder = Path(args.out).parent
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} for --out={args.out}; make it first.")
    vega()  # first, for what follows takes long
    groups = gather([str(find_run(run)) for run in args.runs])
    tasks = sorted({task_of(settings) for group in groups for settings in group.settings})
    page = make_page(groups, args.title or ", ".join(tasks), **shown_of(args, groups))
    if len(page.encode()) > LARGEST:
        raise UsageError(
            f"The page would be larger than {LARGEST // 1_000_000} MB; give fewer --game-steps, or "
            "--no-game."
        )
    try:
        Path(args.out).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--out={args.out} can't be written ({error.strerror}); name another file."
        ) from None
    print(f"{args.out}: {len(page.encode()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    run_main(main)
