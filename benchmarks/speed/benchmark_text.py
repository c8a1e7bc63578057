"""How much faster a causal encoder learns from whole texts than from each of their beginnings alone.

    python scripts/benchmark_text.py --out=benchmarks/text_speed.csv
"""

import csv
import dataclasses
import os
import statistics
import time

import tyro

from tfdqt.config import TextConfig, TextNetworkConfig, UsageError
from tfdqt.runs import run_main


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare learning from episodes, one pass each, with learning from their transitions, one pass each beginning."""

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


def main():
    args = tyro.cli(Args, description=__doc__)
    if min(args.repeats, args.updates, args.batch_size, args.threads) < 1 or args.length < 2 or args.vocabulary < 4:
        raise UsageError("--repeats, --updates, --batch-size and --threads must be at least 1, --length 2, --vocabulary 4.")

    from tfdqt import backend

    backend.set_threads(args.threads)

    import numpy as np

    from tfdqt.backend import tf
    from tfdqt.bert import build_text_networks
    from tfdqt.replay import Episode, Transition
    from tfdqt.text import make_text_update

    rng, words = np.random.default_rng(0), args.length - 1
    texts = rng.integers(3, args.vocabulary, (args.batch_size, args.length)).astype(np.int32)
    place = rng.integers(1, args.length, args.batch_size)
    beginnings, longer = (np.where(np.arange(args.length) < (place + more)[:, None], texts, 0) for more in (0, 1))
    ones = np.ones((args.batch_size, words), np.float32)
    at = np.broadcast_to(np.arange(args.length, dtype=np.int32), texts.shape)
    batches = {
        "whole texts": Episode(texts, at, texts[:, 1:], 0 * ones, ones, ones),
        "each beginning alone": Transition(beginnings, texts[np.arange(len(texts)), place], 0 * ones[:, 0], longer, ones[:, 0])}
    network = TextNetworkConfig(width=args.width, layers=args.layers, pruning_amount=0.0)
    sides = {}
    for name, items in batches.items():
        pair = build_text_networks(network, vocabulary=args.vocabulary, length=args.length, num_actions=args.vocabulary, causal=True)
        update = make_text_update(*pair, pair[0].copy(), pair[1].copy(), tf.keras.optimizers.Adam(1e-4), TextConfig())
        tensors = tf.nest.map_structure(tf.constant, items)
        float(update(tensors)["loss"])
        sides[name] = lambda update=update, tensors=tensors: float(update(tensors)["loss"])
    rates = {name: [] for name in sides}
    for _ in range(args.repeats):
        for name, call in sides.items():
            start = time.perf_counter()
            for _ in range(args.updates):
                call()
            decisions = args.batch_size * (words if name == "whole texts" else 1)
            rates[name].append(args.updates * decisions / (time.perf_counter() - start))
    one, other = rates.values()
    ratios = sorted(a / b for a, b in zip(one, other))
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):,.0f} transitions/s (each of {[round(value) for value in values]})")
    print(f"ratio, pair by pair: {ratios[0]:.1f} to {ratios[-1]:.1f}, median {statistics.median(ratios):.1f}")
    if args.out:
        with open(args.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["repeat", *rates, "ratio"])
            writer.writerows([i, *pair, pair[0] / pair[1]] for i, pair in enumerate(zip(one, other)))


if __name__ == "__main__":
    run_main(main)
