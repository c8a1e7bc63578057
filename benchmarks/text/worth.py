"""How many samples of its language model a steered writer is worth, at which perplexity.

    python benchmarks/text/worth.py runs/corpus-* --judge=runs/judge --betas 1 2 4 8
    python benchmarks/text/worth.py --report
    python benchmarks/text/worth.py --plot=worth.png

The language model is the cloned policy of a run of run_text.py --task=corpus. Best of N takes of N
of its texts the one with the greatest reward; it is worked out from a pool of --pool texts, in
--draws random divisions into groups. Steered texts are drawn with each beta, and of them too the
best of each number of --best-of is taken. Of all are measured the mean reward, the perplexity under
the judge (the cloned policy of another run, of other weights and another seed), distinct-2, which
is of --texts texts always, for it falls with their number, and the processor's seconds for a text
that is kept: the writing and the reward of all that it is the best of.

Adds rows to OUT for every run: one for each N, and one for each beta and number of --best-of. What
these are worth is the smallest N for which best of N has their reward.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
import tyro

from tfdqt.backend import set_threads
from tfdqt.errors import UsageError
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import read_rows, write_rows
from tfdqt.runs.plots import make_figure
from tfdqt.text.config import IMITATING

OUT = Path(__file__).parent / "worth.csv"
AT_A_TIME = 400  # texts, whose keys and values are kept
LEAST_GROUPS = 100  # of N texts, of whose best the mean is taken


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure what steering is worth."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of runs that write; of --plot those to draw, by default all."""
    judge: str | None = None
    """Folder of a run whose cloned policy judges the language."""
    out: Path = OUT
    """CSV of what came of it."""
    betas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Strengths of the advantage."""
    best_of: tuple[int, ...] = (1, 4)
    """Of how many steered texts the best is taken."""
    texts: int = 400
    """Steered texts that are kept of the largest number of --best-of; of smaller ones more are."""
    pool: int = 12_800
    """Texts of the language model."""
    draws: int = 20
    """Divisions of the pool into groups."""
    seed: int = 1_000
    """Seeds the texts."""
    report: bool = False
    """Whether to print what OUT says instead."""
    plot: Path | None = None
    """PNG to draw of what OUT says instead."""


def make_judge(run):
    """`judge(texts) -> [N]` of a TextRun: nats a token that its cloned policy gives each text."""
    from tfdqt.backend import tf
    from tfdqt.text.tokenizers import padded, token_rows

    task = run.task

    @tf.function
    def of_rows(ids):
        log_p = tf.nn.log_softmax(run.head.prior(run.transformer(ids))[:, :-1])
        return -tf.gather(log_p, ids[:, 1:], batch_dims=2)

    def judge(texts):
        means = []
        for begin in range(0, len(texts), 256):
            rows = token_rows(task.tokenizer, texts[begin : begin + 256])
            ids = padded(task.tokenizer, rows, task.length)
            each = of_rows(tf.constant(ids)).numpy()
            counts = np.array([min(len(row), task.length) - 1 for row in rows])
            seen = np.arange(each.shape[1]) < counts[:, None]
            means.append((each * seen).sum(1) / np.maximum(counts, 1))
        return np.concatenate(means)

    return judge


def measure(args):
    """Rows of every run: the best of N of its language model, and of each beta."""
    from tfdqt.text.evaluate import load_text_run

    set_threads(1, 1)
    judge = make_judge(load_text_run(args.judge))
    for run_dir in map(Path, args.runs):
        run = load_text_run(run_dir)
        imitates = run.settings["text"].method in IMITATING
        numbers = 2 ** np.arange(1 + int(np.log2(args.pool // LEAST_GROUPS)))
        rows = best_of(*write_texts(run, judge, 0.0, args.pool, args.seed), numbers, args)
        for beta in () if imitates else args.betas:
            count = args.texts * max(args.best_of)
            written = write_texts(run, judge, beta, count, args.seed)
            rows += [row | dict(beta=beta) for row in best_of(*written, args.best_of, args)]
        seed = run.settings["seed"]
        own = [dict(run=run_dir.name, seed=seed, updates=run.step) | row for row in rows]
        kept = [row for row in read_rows(args.out) if row["run"] != run_dir.name]
        write_rows(args.out, [*kept, *own])
        print(f"{run_dir.name}: {len(own)} rows", flush=True)


def write_texts(run, judge, beta, count, seed):
    """`count` texts of a TextRun, drawn with a beta: what `best_of` takes of them.

    -> (texts, rewards [N], the judge's nats a token [N], seconds a text, NaN if all are one part).
    """
    from tfdqt.text.generation import make_run_scores

    cfg = dataclasses.replace(run.settings["text"], greedy=False)
    scores = make_run_scores(run.transformer, run.head, cfg, beta=beta)
    texts = []
    rewards = []
    seconds = []
    for i in range(0, count, AT_A_TIME):
        began = time.process_time()
        part = run.task.write(scores, cfg, min(AT_A_TIME, count - i), seed + i)
        rewards += run.task.reward.many(part)
        seconds.append((time.process_time() - began) / len(part))
        texts += part
    # The first part is compiled for.
    each = np.median(seconds[1:]) if len(seconds) > 1 else np.nan
    return texts, np.array(rewards), judge(texts), each


def best_of(texts, rewards, nats, seconds, numbers, args):
    """A row of the CSV for the best of each of `numbers`, of a pool of texts.

    nats: those of a token. seconds: to write any text of the pool and ask for its reward.
    """
    from tfdqt.text.generation import best_of_each, diversity

    rng = np.random.default_rng(args.seed)
    rows = []
    for n in numbers:
        chosen = []
        for _ in range(args.draws if n > 1 else 1):
            order = rng.permutation(len(texts))[: len(texts) // n * n]
            chosen.append(order[best_of_each(rewards[order], n)])
        every = np.concatenate(chosen)
        some = chosen[0][: args.texts]
        varied = diversity([texts[i] for i in some])["distinct2"]
        rows.append(
            dict(
                beta=0.0,
                n=int(n),
                reward=rewards[every].mean(),
                error=rewards[chosen[0]].std() / np.sqrt(len(chosen[0])),
                perplexity=np.exp(nats[every].mean()),
                distinct2=varied if len(some) == args.texts else float("nan"),
                seconds=n * seconds,
            )
        )
    return rows


# -------------------------------------------------------------------------------------------------
# What the rows say


def equal_n(numbers, rewards, reward):
    """The N, between those measured in a straight line over log N; inf if the most are too few."""
    rewards = np.maximum.accumulate(rewards)
    if reward > rewards[-1]:
        return np.inf
    return float(2 ** np.interp(reward, rewards, np.log2(numbers)))


def curves_of(rows):
    """Rows of a run as arrays: {kind: {column: [...]}}.

    The kind is 0 for the language model, along N; else the number of steered texts that the best is
    taken of, along beta.
    """
    columns = ("beta", "n", "reward", "error", "perplexity", "distinct2", "seconds")
    rows = [{key: float(row[key] or "nan") for key in columns} for row in rows]
    kinds = {}
    for row in rows:
        kinds.setdefault(row["n"] if row["beta"] else 0, []).append(row)
    return {
        kind: {key: np.array([row[key] for row in each]) for key in columns}
        for kind, each in kinds.items()
    }


def report(args):
    """A Markdown table: a line for every run, beta and number of --best-of."""
    header = ("run", "beta", "best of", "reward", "worth N [95%]")
    header += ("perplexity, that of best of N", "distinct-2, that of best of N")
    header += ("seconds, those of best of N",)
    print(f"| {' | '.join(header)} |")
    print("|---" * len(header) + "|")
    for name, rows in runs_of(args.out).items():
        kinds = curves_of(rows)
        model = kinds.pop(0)

        def of_model(column, n):
            known = np.isfinite(model[column])  # distinct-2 is not, of fewer texts than asked for
            return np.interp(np.log2(n), np.log2(model["n"][known]), model[column][known])

        print(
            f"| {name} | 0 | 1 | {model['reward'][0]:.3f} | 1 | {model['perplexity'][0]:.1f} | "
            f"{model['distinct2'][0]:.3f} | {model['seconds'][0]:.3f} |"
        )
        for kind in kinds.values():
            for beta, best, reward, error, perplexity, distinct2, seconds in zip(*kind.values()):
                n = equal_n(model["n"], model["reward"], reward)
                at = min(n, model["n"][-1])
                # Both are samples: these texts, and the best of N that they are laid beside.
                error = np.hypot(error, of_model("error", at))
                low, high = (
                    equal_n(model["n"], model["reward"], each)
                    for each in (reward - 1.96 * error, reward + 1.96 * error)
                )
                print(
                    f"| {name} | {beta:g} | {best:g} | {reward:.3f} | "
                    f"{as_n(n, model)} [{as_n(low, model)}, {as_n(high, model)}] | "
                    f"{perplexity:.1f}, {of_model('perplexity', at):.1f} | "
                    f"{distinct2:.3f}, {of_model('distinct2', at):.3f} | "
                    f"{seconds:.3f}, {at * model['seconds'][0]:.3f} |"
                )


def as_n(n, model):
    """An N in words, that may be more than was measured."""
    return f"{n:.0f}" if np.isfinite(n) else f"> {model['n'][-1]:.0f}"


def runs_of(out):
    """The rows of each run."""
    runs = {}
    for row in read_rows(out):
        runs.setdefault(row["run"], []).append(row)
    return runs


def plot(args):
    """Reward over perplexity: a panel for each name of runs, a line for each of its seeds."""
    wanted = [Path(run).name for run in args.runs]
    groups = {}
    if not args.out.exists():
        raise UsageError(f"{args.out} does not exist; measure runs first.")
    for name, rows in runs_of(args.out).items():
        if not wanted or name in wanted:
            groups.setdefault(name.rpartition("-")[0], []).append(curves_of(rows))
    if not groups:
        raise UsageError(f"{args.out} has none of these runs; measure them first.")
    figure, panels = make_figure(1, len(groups), size=(4.5 * len(groups), 4))
    for axes, (group, seeds) in zip(np.ravel(panels), groups.items()):
        shared = set.intersection(*(set(kinds) for kinds in seeds))
        looks = {0: "best of N", 1: "steered"}
        looks.setdefault(max(shared), f"steered, best of {max(shared):g}")
        for i, kinds in enumerate(seeds):
            for color, (kind, what) in enumerate(looks.items()):
                if kind not in shared:  # a method that only imitates is not steered
                    continue
                curve = kinds[kind]
                axes.plot(
                    curve["perplexity"],
                    curve["reward"],
                    marker="o",
                    markersize=3,
                    color=f"C{color}",
                    linewidth=1,
                    label=what if i == 0 else None,
                )
        axes.set(title=group, xlabel="perplexity under the judge", ylabel="mean reward of a text")
        axes.legend(fontsize=8)
    figure.savefig(args.plot, dpi=120)


def main(args):
    if args.report:
        report(args)
    elif args.plot:
        plot(args)
    else:
        measure(args)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Args, description=__doc__)))
