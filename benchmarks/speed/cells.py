"""Measure an update of the network on cells against eager PyTorch and against the floor.

    OMP_NUM_THREADS=1 python benchmarks/speed/cells.py --bench-python=.bench/bin/python

An update is a regression on four values: forward, backward, clipping, Adam. Both sides start from
equal weights on equal batches, that their losses agree is checked first, and they are measured in
turn, A B A B, each in a process of one thread. Ours does as many updates in a call as training
does; theirs is eager PyTorch as one would write it for speed: scaled_dot_product_attention with the
relative bias as its mask, Adam's fused kernel, batches that are tensors already.

The floor is the time that the blocks' matrix products, forward and backward, would take at the
float32 rate of a large product, measured after each measurement; that of the faster library counts.
Times are the processor's, not the clock's, so that what runs beside it counts less; both are in the
CSV, as `cpu_seconds` and `seconds`.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro
from benchmark import print_table
from measured_process import ask, machine, other_environ, start, stop

from tfdqt.errors import UsageError
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import write_rows
from tfdqt.settings import check_at_least_one

HERE = Path(__file__).resolve().parent
INSTALL = (
    "make one by `python -m venv .bench && .bench/bin/pip install -r "
    "benchmarks/speed/requirements-bench.txt` and give --bench-python=.bench/bin/python."
)
HEADER = (
    "cells", "blocks", "loops", "ours, ms", "theirs, ms", "theirs / ours", "ours / floor",
    "theirs / floor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure an update of the network on cells against eager PyTorch and the floor."""

    bench_python: str | None = None
    """The python of an environment made from requirements-bench.txt."""
    sides: tuple[int, ...] = (5, 8, 10)
    """Cells of a side of the grid."""
    blocks: tuple[str, ...] = ("1x1", "2x1", "1x4")
    """Blocks x loops."""
    batch: int = 32
    """Grids in an update."""
    width: int = 64
    """Width of the network."""
    heads: int = 4
    """Heads of its attention."""
    repeats: int = 7
    """Measurements of each side."""
    updates: int = 40
    """Updates in a measurement."""
    out: str = "benchmarks/speed/speed_cells.csv"
    """CSV of every measurement; an older one is replaced."""


def matmul_flops(tokens, blocks, args):
    """Floating point operations of the blocks' matrix products, forward and backward."""
    width = args.width
    # queries, keys, values; out; the feed-forward part; scores and weighted values
    forward = 2 * tokens * ((3 + 1 + 8) * width**2 + 2 * tokens * width)
    return 3 * args.batch * blocks * forward


def measure(side, blocks, loops, args):
    """Both sides in turn: -> list of dicts, one a measurement."""
    flops = matmul_flops(side**2 + 1, blocks * loops, args)
    entries = []
    sides = []
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(
            side=side,
            blocks=blocks,
            loops=loops,
            batch=args.batch,
            width=args.width,
            heads=args.heads,
            exchange=str(Path(folder, "update.npz")),
        )
        try:
            sides.append(("ours", *start([sys.executable, str(HERE / "ours_cells.py")], settings)))
            theirs = [args.bench_python, str(HERE / "torch_cells.py")]
            sides.append(("theirs", *start(theirs, settings, other_environ())))
            losses = [about.pop("losses") for _, _, about in sides]
            if not np.allclose(*losses, rtol=1e-3):
                raise UsageError(
                    f"The two updates are not the same: losses {losses[0]} against {losses[1]}; "
                    "compare benchmarks/speed/torch_cells.py with tfdqt/games/blocks.py."
                )
            for repeat in range(args.repeats):
                for name, process, about in sides:
                    answer = ask(process, args.updates)
                    entry = dict(side=name, cells=f"{side}x{side}", blocks=blocks, loops=loops)
                    entry |= dict(repeat=repeat, batch=args.batch, width=args.width)
                    floor = flops / answer["matmul_rate"]
                    entries.append(dict(entry, **answer, floor_seconds=floor, **about))
        finally:
            for _, process, _ in sides:
                stop(process)
    return entries


def summary(entries):
    """One line of the table, with the columns of HEADER."""

    def per_update(side, key="cpu_seconds"):
        return np.array([one[key] / one["count"] for one in entries if one["side"] == side])

    ours = per_update("ours")
    theirs = per_update("theirs")
    floor = min(
        np.median([one["floor_seconds"] for one in entries if one["side"] == side])
        for side in ("ours", "theirs")
    )
    ratios = theirs / ours
    return [
        *(str(entries[0][key]) for key in ("cells", "blocks", "loops")),
        *(f"{1000 * np.median(side):.1f}" for side in (ours, theirs)),
        f"{ratios.min():.2f} / {np.median(ratios):.2f} / {ratios.max():.2f}",
        f"{np.median(ours) / floor:.2f}",
        f"{np.median(theirs) / floor:.2f}",
    ]


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "batch", "width", "heads", "repeats", "updates")
    if args.bench_python is None:
        raise UsageError(f"PyTorch is measured in an environment of its own: {INSTALL}")
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, {about['date']}", flush=True)
    entries = []
    lines = [HEADER]
    for side in args.sides:
        for blocks in args.blocks:
            measured = measure(side, *map(int, blocks.split("x")), args)
            entries += [dict(entry, **about) for entry in measured]
            write_rows(args.out, entries)
            lines.append(summary(measured))
            print(*lines[-1], sep=" | ", flush=True)
    print_table(lines)
    return 0


if __name__ == "__main__":
    run_main(main)
