"""What pruning costs.

    python benchmarks/text/plot_pruning.py RUN... --out=pruning.png

Each text run is played again; its return and the compressed size of its encoder's kernels are drawn
over their sparsity, a column for each task. What an earlier call measured, in its CSV, can be named
like a run.
"""

import csv
import dataclasses
import gzip
from pathlib import Path

import tyro

from tfdqt.errors import UsageError
from tfdqt.runs.cli import run_main
from tfdqt.runs.folder import find_run
from tfdqt.runs.log import write_rows
from tfdqt.runs.plots import make_figure

COLUMNS = dict(
    task=str,
    seed=int,
    games=int,
    sparsity=float,
    mean_return=float,
    kernel_bytes=int,
    gzip_bytes=int,
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw return and compressed size of text runs over the sparsity of their encoders."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of text runs, each with another --pruning-amount or --seed, and CSVs of earlier
    calls."""
    out: str = "pruning.png"
    """Picture to write; the figures go into a CSV of the same name."""
    games: int = 800
    """Games, or texts, for each run."""
    seed: int = 1_000
    """Seeds the games."""


def read_rows(path):
    """What an earlier call wrote to its CSV."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {name: kind(row[name]) for name, kind in COLUMNS.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} can't be read as figures of pruned runs ({error!r}); name one that this "
            "script wrote."
        ) from None
    if not rows:
        raise UsageError(f"{path} holds no runs; name one that this script wrote.")
    return rows


def play_again(run, games, seed):
    """The row of a run: its return over `games` games, and the size of its kernels."""
    from tfdqt.backend import quiet
    from tfdqt.text.encoder import dense_kernels, sparsity
    from tfdqt.text.evaluate import load_writer

    with quiet():  # TensorFlow takes many networks for one that is traced again and again
        writer = load_writer(run)
    returns, _ = writer.evaluate(games, seed)
    transformer = writer.run.transformer
    kernels = dense_kernels(transformer.bert)
    raw = b"".join(kernel.numpy().tobytes() for kernel in kernels)
    return dict(
        task=writer.task.name,
        seed=writer.settings["seed"],
        games=games,
        sparsity=sparsity(transformer),
        mean_return=float(returns.mean()),
        kernel_bytes=len(raw),
        gzip_bytes=len(gzip.compress(raw, mtime=0)),
    )


def draw(rows, path):
    """Draw the mean return of runs (dots) and the size of their encoders over sparsity into a PNG.

    `rows` are dicts with the keys of COLUMNS; each task has a column.
    """
    names = list(dict.fromkeys(row["task"] for row in rows))
    size = (5 * len(names), 6)
    figure, axes = make_figure(2, len(names), size=size, sharex=True, squeeze=False)
    for (above, below), name in zip(axes.T, names):
        runs = [row for row in rows if row["task"] == name]
        runs.sort(key=lambda row: row["sparsity"])
        x = [100 * row["sparsity"] for row in runs]
        above.plot(x, [row["mean_return"] for row in runs], "o", alpha=0.6)
        above.set(title=name, ylabel="mean return")
        below.plot(x, [row["gzip_bytes"] / 1_000 for row in runs], "o-")
        below.set(
            xlabel="zeros in the encoder's kernels, %",
            ylabel="kernels after gzip, kB",
            ylim=(0, None),
        )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def check_args(args):
    """Raise UsageError for arguments that can't work: -> the path of the CSV to write."""
    if not args.runs or args.games < 1 or args.seed < 0 or not args.out.endswith(".png"):
        raise UsageError(
            "Name at least one run, --games of at least 1, a --seed of 0 or more, and an --out "
            "that ends in .png."
        )
    table = Path(args.out).with_suffix(".csv")
    if any(Path(run).resolve() == table.resolve() for run in args.runs):
        raise UsageError(
            f"The figures would be written over {table}, which is read; choose another --out."
        )
    return table


def main():
    args = tyro.cli(Args, description=__doc__)
    table = check_args(args)
    earlier = {run: read_rows(run) for run in args.runs if run.endswith(".csv")}
    for run in args.runs:
        if run not in earlier:
            find_run(run)
    rows = []
    for run in args.runs:
        if run in earlier:
            rows += earlier[run]
            continue
        rows.append(play_again(run, args.games, args.seed))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    try:
        write_rows(table, rows)
        draw(rows, args.out)
    except OSError as error:
        raise UsageError(
            f"{args.out} can't be written ({error.strerror or error}); choose another --out."
        ) from None
    print(args.out)


if __name__ == "__main__":
    run_main(main)
