"""How much faster a causal encoder learns from whole texts than from each beginning alone.

    python benchmarks/speed/benchmark_text.py --out=text.csv

One side learns from episodes, all transitions of a text in one causal pass; the other from
transitions, one pass for each beginning of a text. Both are compiled and measured in turn.
"""

import dataclasses
import os
import statistics
import time

import numpy as np
import tyro

from tfdqt.errors import UsageError
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import write_rows
from tfdqt.text.config import TextConfig, TextNetworkConfig


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare learning from whole texts with learning from each of their beginnings."""

    width: int = 128
    """Size of a token's vector."""
    layers: int = 2
    """Blocks of the encoder."""
    length: int = 64
    """Tokens in a text."""
    batch_size: int = 32
    """Texts per update, or beginnings of texts."""
    vocabulary: int = 1_000
    """Words known."""
    repeats: int = 5
    """Times each side is measured, in turn."""
    updates: int = 3
    """Updates in a measurement."""
    threads: int = max(1, os.cpu_count() or 1)
    """Threads inside TensorFlow's operations."""
    out: str | None = None
    """CSV file to write."""


def make_batches(args):
    """Random texts, whole and as beginnings: dict side -> (batch, transitions in it)."""
    from tfdqt.text.replay import Episode, Transition

    rng = np.random.default_rng(0)
    decisions = args.length - 1
    texts = rng.integers(3, args.vocabulary, (args.batch_size, args.length)).astype(np.int32)
    ends = rng.integers(1, args.length, args.batch_size)  # tokens in each beginning

    def beginnings(lengths):
        return np.where(np.arange(args.length) < lengths[:, None], texts, 0)

    positions = np.broadcast_to(np.arange(args.length, dtype=np.int32), texts.shape)
    ones = np.ones((args.batch_size, decisions), np.float32)
    whole = Episode(texts, positions, texts[:, 1:], 0 * ones, ones, ones)
    alone = Transition(
        beginnings(ends),
        texts[np.arange(len(texts)), ends],
        0 * ones[:, 0],
        beginnings(ends + 1),
        ones[:, 0],
    )
    return {
        "whole texts": (whole, args.batch_size * decisions),
        "each beginning alone": (alone, args.batch_size),
    }


def make_side(args, batch):
    """A compiled `update()` of networks of its own on a batch; it waits for the result."""
    from tfdqt.backend import tf
    from tfdqt.text.head import build_text_networks
    from tfdqt.text.learn import make_text_update
    from tfdqt.text.replay import with_imitated

    network = TextNetworkConfig(width=args.width, layers=args.layers, pruning_amount=0.0)
    transformer, head = build_text_networks(
        network,
        vocabulary=args.vocabulary,
        length=args.length,
        num_actions=args.vocabulary,
        causal=True,
    )
    update = make_text_update(
        transformer,
        head,
        transformer.copy(),
        head.copy(),
        tf.keras.optimizers.Adam(1e-4),
        TextConfig(),
    )
    tensors = tf.nest.map_structure(tf.constant, with_imitated(batch))

    def side():
        return float(update(tensors)["loss"])

    side()  # compiles
    return side


def transitions_per_second(side, transitions, updates):
    """How fast a side learns."""
    start = time.perf_counter()
    for _ in range(updates):
        side()
    return updates * transitions / (time.perf_counter() - start)


def check_args(args):
    """Raise UsageError for arguments that can't work."""
    least = min(args.repeats, args.updates, args.batch_size, args.threads)
    if least < 1 or args.length < 2 or args.vocabulary < 4:
        raise UsageError(
            "--repeats, --updates, --batch-size and --threads must be at least 1, --length 2, "
            "--vocabulary 4."
        )


def main():
    args = tyro.cli(Args, description=__doc__)
    check_args(args)

    from tfdqt import backend

    backend.set_threads(args.threads)
    batches = make_batches(args)
    sides = {name: make_side(args, batch) for name, (batch, _) in batches.items()}
    rates = {name: [] for name in sides}
    for _ in range(args.repeats):
        for name, side in sides.items():
            rate = transitions_per_second(side, batches[name][1], args.updates)
            rates[name].append(rate)
    ratios = [whole / alone for whole, alone in zip(*rates.values())]
    for name, values in rates.items():
        each = [round(value) for value in values]
        print(f"{name}: {statistics.median(values):,.0f} transitions/s (each of {each})")
    print(
        f"ratio, pair by pair: {min(ratios):.1f} to {max(ratios):.1f}, median "
        f"{statistics.median(ratios):.1f}"
    )
    if args.out:
        names = list(rates)
        write_rows(
            args.out,
            [
                dict(zip(("repeat", *names, "ratio"), (repeat, *pair, ratio)))
                for repeat, (*pair, ratio) in enumerate(zip(*rates.values(), ratios))
            ],
        )


if __name__ == "__main__":
    run_main(main)
