"""The loop closed: do a writer's own texts teach it more than the data again?

    python benchmarks/text/loop.py runs/sentiment-* --judge=runs/judge

Each run of run_text.py --task=corpus is gone on with for one more pass over its data: with the data
alone, and with as many texts beside each batch as are in it, written by the networks as they are
then. Values are learned from those texts, as with --actors, or they are cloned too. The run's own
folder stays as it is. Then 400 texts are written with each beta; their mean reward, perplexity
under the judge and distinct-2 go to OUT, a row for each.
"""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tyro
from worth import best_of, make_judge, write_texts

from tfdqt.backend import set_threads
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import add_rows

OUT = Path(__file__).parent / "loop.csv"
COLUMNS = ("beta", "reward", "error", "perplexity", "distinct2")  # of `best_of`
Learned = Literal["before", "data", "data and own texts", "data and cloned own texts"]
RATE = 3e-4  # Adam's at first; the run's own ended at its final one, which this one falls to


@dataclasses.dataclass(frozen=True)
class Args:
    """Go on with runs, with and without their own texts."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs that write."""
    judge: str
    """Folder of a run whose cloned policy judges the language."""
    out: Path = OUT
    """CSV of what came of it."""
    betas: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)
    """Strengths of the advantage."""
    learned: tuple[Learned, ...] = get_args(Learned)
    """Which of them to do."""
    texts: int = 400
    """Texts of each."""
    seed: int = 1_000
    """Seeds the texts."""


class WithOwnTexts:
    """A loader's batches, each with as many texts beside it as `write(count)` gives now."""

    def __init__(self, batches, write):
        self.batches = batches
        self.write = write

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        from tfdqt.text.replay import concatenate

        for items in self.batches:
            yield concatenate([items, self.write(len(items.action))])


def go_on(run, data, args):
    """Train a TextRun for one more pass on `data`, a Learned but "before"."""
    from tfdqt.text.generation import make_run_scores
    from tfdqt.text.learn import train_model
    from tfdqt.text.replay import ExperienceReplay

    task = run.task
    cfg = dataclasses.replace(run.settings["text"], learning_rate=RATE)
    scores = make_run_scores(run.transformer, run.head, cfg)
    rng = np.random.default_rng(args.seed)

    def write(count):
        items = task.own_episodes(scores, cfg, rng, count)
        cloned = float(data == "data and cloned own texts")
        return items._replace(imitated=np.full(count, cloned, np.float32))

    batches, _ = task.load_data(run.settings)
    train_model(
        run.transformer,
        run.head,
        None,
        1,
        task.tokenizer,
        batches if data == "data" else WithOwnTexts(batches, write),
        ExperienceReplay(cfg.replay_size),
        cfg=cfg,
        seed=args.seed,
    )


def measure(run, judge, args):
    """A dict for each beta: what texts are worth, and how they read."""
    for beta in args.betas:
        written = write_texts(run, judge, beta, args.texts, args.seed)
        (row,) = best_of(*written, (1,), args)
        row["beta"] = beta
        yield {column: row[column] for column in COLUMNS}


def main(args):
    from tfdqt.text.evaluate import load_text_run

    set_threads(1, 1)
    judge = make_judge(load_text_run(args.judge))
    for name in args.runs:
        for data in args.learned:
            run = load_text_run(name)
            if data != "before":
                go_on(run, data, args)
            about = dict(run=Path(name).name, seed=run.settings["seed"], learned=data)
            rows = [about | row for row in measure(run, judge, args)]
            add_rows(args.out, rows)
            print(f"{name}, {data}: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Args, description=__doc__)))
