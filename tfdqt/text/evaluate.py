"""A trained text run, played, written with and measured."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.policy import choose_actions
from tfdqt.runs.checkpoint import load_checkpoint
from tfdqt.runs.evaluation import append_evaluation
from tfdqt.runs.folder import find_run
from tfdqt.settings import check_left_out, is_whole, load_config
from tfdqt.stats import confidence
from tfdqt.text.config import IMITATING, TextConfig, TextNetworkConfig
from tfdqt.text.encoder import PrunedTransformerModel, read_config
from tfdqt.text.generation import (
    best_of_each,
    explain,
    generate,
    make_run_scores,
    write_rows,
)
from tfdqt.text.head import DeepQLearningModel, build_task_networks
from tfdqt.text.learn import restore_networks
from tfdqt.text.tasks.play import Task
from tfdqt.text.tasks.table import make_task
from tfdqt.text.tokenizers import as_list, load_tokenizer, padded, token_rows
from tfdqt.text.words import words_of


class TextRun(NamedTuple):
    """The networks of a text run and where they come from."""

    task: Task
    transformer: PrunedTransformerModel
    head: DeepQLearningModel
    settings: dict  # config.json, its dataclasses made
    step: int  # updates


def make_networks(run_dir, settings):
    """The task of a run's settings and fresh networks for it: -> (task, transformer, head).

    settings: dict of config.json, its dataclasses made.
    """
    network = settings["network"]
    tokenizer = None
    if network.encoder:
        read_config(network.encoder)  # what is wrong with all of it is said before its tokenizer
        tokenizer = load_tokenizer(network.encoder)
    task = make_task(settings["task"], tokenizer, run_dir, settings)
    return task, *build_task_networks(task, network, settings["seed"])


def load_text_checkpoint(run_dir, checkpoint=None):
    """`load_checkpoint` of a text run: -> (tree, path).

    Raises UsageError for another kind of run.
    """
    saved, path = load_checkpoint(run_dir, checkpoint)
    if "weights" not in saved:
        raise UsageError(f"{path} is not a checkpoint of a text run; give one from {run_dir}.")
    return saved, path


def load_text_run(run_dir, checkpoint=None):
    """The TextRun of a run's newest checkpoint, or of the one named.

    Raises UsageError if there is none that is whole.
    """
    config = find_run(run_dir) / "config.json"
    if "task" not in load_config(config):
        raise UsageError(f"{run_dir} is a run on games; load_policy opens it.")
    settings = load_config(config, network=TextNetworkConfig, text=TextConfig)
    saved, _ = load_text_checkpoint(run_dir, checkpoint)
    task, transformer, head = make_networks(run_dir, settings)
    if not restore_networks(saved, (transformer, head), others=True):
        raise UsageError(
            f"The checkpoint of {run_dir} does not fit its config.json; put back the one that the "
            "run was started with."
        )
    return TextRun(task, transformer, head, settings, saved["place"]["step"])


# -------------------------------------------------------------------------------------------------
# A run as a function


class Writer:
    """A trained text run that goes on with texts, or plays a text game.

    >>> writer = tfdqt.load_writer("runs/corpus-0")
    >>> writer(["and the"], words=20)      # -> ["and the lord ..."]
    >>> writer.reward("and the lord")      # what the run holds a text to be worth

    >>> player = tfdqt.load_writer("runs/maze-0")
    >>> player.act(["goal is at 8 6 . you are at 1 1 . walls: left up down"])  # -> ["right"]

    `task`, `settings`, `cfg` and `step` tell of the run; `scores(text [B, T], at [B]) -> [B, A]`
    are the log-weights that it acts by.
    """

    def __init__(self, run, scores, cfg, name, seed=0):
        """Wrap a run.

        Args:
          run: TextRun. scores: from `make_run_scores`. cfg: TextConfig to act by. name: what to
            call the run. seed: of actions that are drawn.
        """
        self.run = run
        self.task = run.task
        self.settings = run.settings
        self.step = run.step
        self.scores = scores
        self.cfg = cfg
        self.name = name
        self._rng = np.random.default_rng(seed)

    def __call__(self, prompts, *, words=30, best_of=1, **how):
        """Go on with each prompt by `words` words: list of strings -> list of strings.

        A prompt is read as the run's texts were: in lower case, marks apart, or as it stands. how:
        method, temperature, top_k, top_p, beams, allowed, seed and on_word, as for
        `generation.generate`; equal calls give equal texts. Warns of words of a prompt that the run
        does not know. Raises UsageError for a run that learned a game.

        best_of: of so many texts of each prompt the one with the greatest reward is given; on_word
        is told of all of them.
        """
        prompts = self._as_read(prompts, best_of, **how)
        length = self.task.length
        texts = generate(
            self.scores, self.task.tokenizer, prompts, words=words, length=length, **how
        )
        return [texts[i] for i in self._best(texts, best_of)]

    def write(self, prompts, *, words=30, best_of=1, **how):
        """As a call, with what the networks held of each word: list of `generation.Written`.

        how: as for a call, but for on_word.
        """
        task = self.task
        prompts = self._as_read(prompts, best_of, **how)
        *_, rows = write_rows(
            self.scores, task.tokenizer, prompts, words=words, length=task.length, **how
        )
        texts = [task.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        best = self._best(texts, best_of)
        rows = [rows[i] for i in best]
        prompts = [prompts[i] for i in best]
        return explain(
            self.scores,
            self.run.head,
            task.tokenizer,
            rows,
            [len(row) for row in token_rows(task.tokenizer, prompts)],
            task.length,
            valued=self.cfg.method not in IMITATING,
        )

    def _as_read(self, prompts, best_of, method="sample", **_):
        """Each prompt `best_of` times, as the task reads it."""
        self._check_writes()
        prompts = as_list(prompts)
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise UsageError(f"A prompt must be a string, not {prompt!r}.")
        if not is_whole(best_of) or best_of < 1 or (best_of > 1 and method != "sample"):
            raise UsageError(
                "best_of must be a whole number of at least 1, and more only with --method=sample, "
                "for greedy and beam write the same text each time."
            )
        return [self.task.as_read(prompt) for prompt in prompts for _ in range(best_of)]

    def _best(self, texts, best_of):
        """Places of the texts that are given."""
        if best_of == 1:  # then nobody asks for rewards, which may cost much
            return range(len(texts))
        return best_of_each(self.task.reward.many(texts), best_of)

    def reward(self, text):
        """What a text is worth to the run, a float."""
        self._check_writes()
        if not isinstance(text, str):
            raise UsageError(
                f"reward takes one text, not something of type {type(text).__name__}; call it for "
                "each."
            )
        return self.task.reward(text)

    def act(self, texts):
        """What to do in each situation of a game: list of strings -> list of names of actions.

        A text is one as the game shows it, see `show_samples`. Of runs trained to draw their
        actions, calls differ. Raises UsageError for a text that the game does not show.
        """
        if self.task.writes:
            raise UsageError(
                f"{self.name} learned to write, not to play a game; call the writer with prompts."
            )
        task = self.task
        texts = as_list(texts)
        rows = token_rows(task.tokenizer, texts)
        for text, row in zip(texts, rows):
            if len(row) > task.length or task.tokenizer.unk_token_id in row:
                raise UsageError(
                    f"The task {task.name} shows no text such as {text!r}; give one as in "
                    f"{self.show_samples()[0]!r}."
                )
        ids = padded(task.tokenizer, rows, task.length)
        at = tf.constant([len(row) - 1 for row in rows]) if task.causal else None
        scores = self.scores(tf.constant(ids), at)
        actions = choose_actions(
            self._rng,
            np.asarray(scores),
            greedy=self.cfg.greedy,
            temperature=self.cfg.temperature,
        )
        return [task.actions[action] for action in actions]

    def show_samples(self, count=1):
        """A few texts as the task shows them."""
        ids = self.task.samples(count)
        return [self.task.tokenizer.decode(row, skip_special_tokens=True) for row in ids]

    def evaluate(self, games, seed, best_of=1):
        """Play, or write, so many: -> (returns [games], texts written or None).

        Raises UsageError for the best of several texts of a run that draws none.
        """
        if best_of > 1 and self.cfg.greedy:
            raise UsageError(
                "--best-of is for texts that are drawn, for the best words are the same each time; "
                "leave it out, or give a --temperature above 0."
            )
        return self.task.evaluate(self.scores, self.cfg, games=games, seed=seed, best_of=best_of)

    def _check_writes(self):
        if not self.task.writes:
            raise UsageError(
                f"{self.name} learned to play {self.task.name}, not to write; give a run of "
                "run_text.py --task=corpus."
            )


def load_writer(run_dir, checkpoint=None, *, beta=None, temperature=None, seed=0):
    """The Writer of a trained text run.

    Args:
      checkpoint: one of the run's, by default the newest.
      beta: strength of the advantage over the cloned policy (0: that policy alone, inf: Q alone);
        by default as trained.
      temperature: how evenly actions are drawn (0: the best is taken); by default as trained.
      seed: of the actions that are drawn.

    Raises UsageError if there is no such run, or it did not learn what is asked for.
    """
    if temperature is not None and not 0 <= temperature < math.inf:
        raise UsageError(f"temperature must be 0 or more and finite, not {temperature}.")
    run = load_text_run(run_dir, checkpoint)
    cfg = run.settings["text"]
    scores = make_run_scores(run.transformer, run.head, cfg, beta=beta)
    if temperature is not None:
        greedy = temperature == 0
        cfg = dataclasses.replace(cfg, greedy=greedy, temperature=temperature or cfg.temperature)
    return Writer(run, scores, cfg, run_dir, seed)


# -------------------------------------------------------------------------------------------------
# What scripts/evaluate.py does with a text run


def evaluate_text(run_dir, args):
    """Play or write with a text run; print what came of it, and add it to evaluation.csv.

    args: those of scripts/evaluate.py. Raises UsageError for flags that say nothing of such a run.
    """
    check_left_out(
        args,
        "is for gymnasium environments; leave it out for a text run",
        "env_options",
        "epsilon",
        "sample",
        "max_steps",
        "workers",
        "video",
        "video_steps",
        "explain",
        "loops",
        "simulations",
        "exploration",
        "avoid_repeats",
        "leaves",
    )
    writer = load_writer(run_dir, args.checkpoint, beta=args.beta, temperature=args.temperature)
    run = writer.run
    task = writer.task
    cfg = writer.cfg
    if not task.writes:
        check_left_out(args, "is for texts that are written; leave it out for a game", "best_of")
    returns, texts = writer.evaluate(args.episodes, args.seed, args.best_of)
    low, high = confidence(returns)
    print(
        f"{task.name} seed {writer.settings['seed']} after {writer.step} updates: {args.episodes} "
        f"{'texts' if texts else 'games'}: mean {returns.mean():.3f}, std {returns.std():.3f}, "
        f"95% CI of the mean [{low:.3f}, {high:.3f}]. {task.compare(texts)}"
    )
    how = dict(
        beta=cfg.beta if args.beta is None else args.beta,
        temperature=0 if cfg.greedy else cfg.temperature,
        best_of=args.best_of,
    )
    lengths = [len(words_of(text)) for text in texts] if texts else [""] * len(returns)
    append_evaluation(run_dir, writer.step, args.seed, how, returns, lengths)
    for line in task.details(writer.scores, run.transformer, run.head, cfg, returns, texts):
        print(line)
