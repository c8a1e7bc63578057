"""What pruning costs: python scripts/plot_pruning.py RUN... --out=pruning.png

Each text run is played again; its return and the compressed size of its encoder's kernels are drawn over their sparsity.
"""

import csv
import dataclasses
import gzip
from pathlib import Path

import tyro

from tfdqt.config import UsageError
from tfdqt.runs import find_run, run_main


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw return and compressed size of text runs over the sparsity of their encoders."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of text runs of one task, each with another --pruning-amount or --seed."""
    out: str = "pruning.png"
    """Picture to write; the figures go beside it as CSV."""
    games: int = 800
    """Games, or texts, for each run."""
    seed: int = 1_000
    """Seeds the games."""


def main():
    args = tyro.cli(Args, description=__doc__)
    if not args.runs or args.games < 1 or args.seed < 0 or not args.out.endswith(".png"):
        raise UsageError("Name at least one run, --games of at least 1, a --seed of 0 or more, and an --out that ends in .png.")
    for run in args.runs:
        find_run(run)

    from tfdqt.backend import quiet
    from tfdqt.bert import dense_kernels, sparsity
    from tfdqt.plots import plot_pruning
    from tfdqt.text_runs import load_text_run, make_run_scores, returns_of

    rows = []
    for run in args.runs:
        with quiet():  # TensorFlow takes many networks for one that is traced again and again
            trained = load_text_run(run)
        cfg = trained.settings["text"]
        scores = make_run_scores(trained.task, trained.transformer, trained.head, cfg)
        returns, _ = returns_of(trained.task, scores, cfg, games=args.games, seed=args.seed)
        kernels = b"".join(kernel.numpy().tobytes() for kernel in dense_kernels(trained.transformer.bert))
        rows.append(dict(seed=trained.settings["seed"], sparsity=sparsity(trained.transformer), mean_return=float(returns.mean()),
                         kernel_bytes=len(kernels), gzip_bytes=len(gzip.compress(kernels, mtime=0))))
        print("  ".join(f"{name} {value:g}" for name, value in rows[-1].items()), flush=True)
    try:
        with open(Path(args.out).with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        plot_pruning(rows, trained.task.name, args.out)
    except OSError as error:
        raise UsageError(f"{args.out} can't be written ({error.strerror or error}); choose another --out.") from None
    print(args.out)


if __name__ == "__main__":
    run_main(main)
