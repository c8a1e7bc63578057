"""How many samples of its language model a steered writer is worth, at which perplexity.

    python benchmarks/text/worth.py runs/corpus-* --judge=runs/judge --betas 1 2 4 8
    python benchmarks/text/worth.py --report

The language model is the cloned policy of a run of run_text.py --task=corpus. Best of N takes of N
of its texts the one with the greatest reward; it is worked out from a pool of --pool texts, in
--draws random divisions into groups. Steered texts are drawn with each beta. Of both are measured
the mean reward, the perplexity under the judge (the cloned policy of another run, of other weights
and another seed) and distinct-2, which is of --texts texts always, for it falls with their number.

Adds a row to OUT for every run and beta, and for every run and N. N of a beta is the smallest
number for which best of N has its reward.
"""

import dataclasses
from pathlib import Path

import numpy as np
import tyro

from tfdqt.backend import set_threads
from tfdqt.runs.log import read_rows, write_rows

OUT = Path(__file__).parent / "worth.csv"
AT_A_TIME = 400  # texts, whose keys and values are kept


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure what steering is worth."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of runs that write."""
    judge: str | None = None
    """Folder of a run whose cloned policy judges the language."""
    out: Path = OUT
    """CSV of what came of it."""
    betas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Strengths of the advantage."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures that steered texts are drawn at."""
    texts: int = 400
    """Steered texts of each."""
    pool: int = 12_800
    """Texts of the language model."""
    draws: int = 20
    """Divisions of the pool into groups."""
    seed: int = 1_000
    """Seeds the texts."""
    report: bool = False
    """Whether to print what OUT says instead."""


def make_judge(run):
    """`judge(texts) -> [N]` of a TextRun: nats a token that its cloned policy gives each text."""
    from tfdqt.backend import tf
    from tfdqt.text.tokenizers import pad_rows, token_rows

    task = run.task

    @tf.function
    def of_rows(ids):
        log_p = tf.nn.log_softmax(run.head.prior(run.transformer(ids))[:, :-1])
        return -tf.gather(log_p, ids[:, 1:], batch_dims=2)

    def judge(texts):
        means = []
        for begin in range(0, len(texts), 256):
            rows = token_rows(task.tokenizer, texts[begin : begin + 256])
            ids = pad_rows(rows, task.length, task.tokenizer.pad_token_id or 0)
            each = of_rows(tf.constant(ids)).numpy()
            counts = np.array([min(len(row), task.length) - 1 for row in rows])
            seen = np.arange(each.shape[1]) < counts[:, None]
            means.append((each * seen).sum(1) / np.maximum(counts, 1))
        return np.concatenate(means)

    return judge


def measure(args):
    """Rows of every run: its pool's best of N, and every beta and temperature."""
    from tfdqt.text.evaluate import load_text_run
    from tfdqt.text.generation import make_run_scores

    set_threads(1, 1)
    judge = make_judge(load_text_run(args.judge))
    for run_dir in map(Path, args.runs):
        run = load_text_run(run_dir)
        cfg = run.settings["text"]

        def write(beta, temperature, count):
            scores = make_run_scores(run.transformer, run.head, cfg, beta=beta)
            how = dataclasses.replace(cfg, greedy=False, temperature=temperature)
            parts = range(0, count, AT_A_TIME)
            each = [
                run.task.write(scores, how, min(AT_A_TIME, count - i), args.seed + i) for i in parts
            ]
            texts = [text for part in each for text in part]
            return texts, np.array(run.task.reward.many(texts)), judge(texts)

        rows = best_of(*write(0.0, 1.0, args.pool), args)
        for beta in args.betas:
            for temperature in args.temperatures:
                texts, rewards, nats = write(beta, temperature, args.texts)
                error = rewards.std() / np.sqrt(len(rewards))
                what = dict(beta=beta, temperature=temperature, error=error)
                rows.append(row_of("steered", texts, rewards, nats, args, **what))
        seed = run.settings["seed"]
        own = [dict(run=run_dir.name, seed=seed, updates=run.step) | row for row in rows]
        kept = [row for row in read_rows(args.out) if row["run"] != run_dir.name]
        write_rows(args.out, [*kept, *own])
        print(f"{run_dir.name}: {len(own)} rows", flush=True)


def best_of(texts, rewards, nats, args):
    """Rows of the best of N, N = 1, 2, 4 ..., of a pool of texts."""
    rng = np.random.default_rng(args.seed)
    rows = []
    n = 1
    while len(texts) // n >= 50:
        chosen = []
        for _ in range(args.draws):
            groups = rng.permutation(len(texts))[: len(texts) // n * n].reshape(-1, n)
            chosen.append(groups[np.arange(len(groups)), rewards[groups].argmax(1)])
        every = np.concatenate(chosen)
        error = rewards[chosen[0]].std() / np.sqrt(len(chosen[0]))
        some = rng.choice(chosen[0], min(args.texts, len(chosen[0])), replace=False)
        row = row_of("best of N", [texts[i] for i in some], rewards[every], nats[every], args)
        rows.append(row | dict(n=n, error=error))
        n *= 2
    return rows


def row_of(kind, texts, rewards, nats, args, **what):
    """A row of the CSV; distinct-2 only of as many texts as asked for."""
    from tfdqt.text.generation import diversity

    varied = diversity(texts)["distinct2"] if len(texts) == args.texts else float("nan")
    return (
        dict(
            kind=kind,
            n="",
            beta="",
            temperature="",
            error="",
            reward=rewards.mean(),
            perplexity=np.exp(nats.mean()),
            distinct2=varied,
        )
        | what
    )


# -------------------------------------------------------------------------------------------------
# What the rows say


def equal_n(numbers, rewards, reward):
    """The N, between those measured in a straight line over log N; inf if the most are too few."""
    rewards = np.maximum.accumulate(rewards)
    if reward > rewards[-1]:
        return np.inf
    return float(2 ** np.interp(reward, rewards, np.log2(numbers)))


def report(args):
    """A Markdown table: a line for every run and beta."""
    runs = {}
    for row in read_rows(args.out):
        runs.setdefault(row["run"], []).append(row)
    print("| run | beta | temperature | reward | N [95%] | perplexity, of best of N | distinct-2 |")
    print("|---" * 7 + "|")
    for name, rows in runs.items():
        pool = [row for row in rows if row["kind"] == "best of N"]
        numbers, rewards, perplexities = (
            np.array([float(row[key]) for row in pool]) for key in ("n", "reward", "perplexity")
        )
        first = pool[0]
        print(
            f"| {name} | 0 | 1 | {rewards[0]:.3f} | 1 | {perplexities[0]:.1f} | "
            f"{float(first['distinct2']):.3f} |"
        )
        for row in rows:
            if row["kind"] != "steered":
                continue
            reward = float(row["reward"])
            spread = 1.96 * float(row["error"])
            n, low, high = (
                equal_n(numbers, rewards, each)
                for each in (reward, reward - spread, reward + spread)
            )
            theirs = np.interp(np.log2(min(n, numbers[-1])), np.log2(numbers), perplexities)
            print(
                f"| {name} | {float(row['beta']):g} | {float(row['temperature']):g} | "
                f"{reward:.3f} | {n:.0f} [{low:.0f}, {high:.0f}] | "
                f"{float(row['perplexity']):.1f}, {theirs:.1f} | {float(row['distinct2']):.3f} |"
            )


def main(args):
    if args.report:
        report(args)
    else:
        measure(args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
