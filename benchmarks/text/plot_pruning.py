"""What pruning costs: python scripts/plot_pruning.py RUN... --out=pruning.png

Each text run is played again; its return and the compressed size of its encoder's kernels are drawn over their sparsity, a column for
each task. What an earlier call found, in its CSV, can be named like a run.
"""

import csv
import dataclasses
import gzip
from pathlib import Path

import tyro

from tfdqt.config import UsageError
from tfdqt.runs import find_run, run_main, write_rows

COLUMNS = dict(task=str, seed=int, games=int, sparsity=float, mean_return=float, kernel_bytes=int, gzip_bytes=int)


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw return and compressed size of text runs over the sparsity of their encoders."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of text runs, each with another --pruning-amount or --seed, and CSVs of earlier calls."""
    out: str = "pruning.png"
    """Picture to write; the figures go beside it as CSV."""
    games: int = 800
    """Games, or texts, for each run."""
    seed: int = 1_000
    """Seeds the games."""


def read_rows(path):
    """What an earlier call wrote to its CSV."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{name: kind(row[name]) for name, kind in COLUMNS.items()} for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} can't be read as figures of pruned runs ({error!r}); name one that this script wrote.") from None
    if not rows:
        raise UsageError(f"{path} holds no runs; name one that this script wrote.")
    return rows


def play_again(run, games, seed):
    """The row of a run."""
    from tfdqt.backend import quiet
    from tfdqt.bert import dense_kernels, sparsity
    from tfdqt.text_runs import load_text_run, make_run_scores, returns_of

    with quiet():  # TensorFlow takes many networks for one that is traced again and again
        trained = load_text_run(run)
    cfg = trained.settings["text"]
    scores = make_run_scores(trained.task, trained.transformer, trained.head, cfg)
    returns, _ = returns_of(trained.task, scores, cfg, games=games, seed=seed)
    kernels = b"".join(kernel.numpy().tobytes() for kernel in dense_kernels(trained.transformer.bert))
    return dict(zip(COLUMNS, (trained.task.name, trained.settings["seed"], games, sparsity(trained.transformer), float(returns.mean()),
                              len(kernels), len(gzip.compress(kernels, mtime=0)))))


def main():
    args = tyro.cli(Args, description=__doc__)
    if not args.runs or args.games < 1 or args.seed < 0 or not args.out.endswith(".png"):
        raise UsageError("Name at least one run, --games of at least 1, a --seed of 0 or more, and an --out that ends in .png.")
    table = Path(args.out).with_suffix(".csv")
    if any(Path(run).resolve() == table.resolve() for run in args.runs):
        raise UsageError(f"The figures would be written over {table}, which is read; choose another --out.")
    earlier = {run: read_rows(run) for run in args.runs if run.endswith(".csv")}
    for run in args.runs:
        if run not in earlier:
            find_run(run)

    from tfdqt.plots import plot_pruning

    rows = []
    for run in args.runs:
        if run in earlier:
            rows += earlier[run]
            continue
        rows.append(play_again(run, args.games, args.seed))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    try:
        write_rows(table, rows)
        plot_pruning(rows, args.out)
    except OSError as error:
        raise UsageError(f"{args.out} can't be written ({error.strerror or error}); choose another --out.") from None
    print(args.out)


if __name__ == "__main__":
    run_main(main)
