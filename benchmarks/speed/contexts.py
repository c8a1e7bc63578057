"""What context costs: an update of the DQN against eager PyTorch and the floor, and acting.

    OMP_NUM_THREADS=1 python benchmarks/speed/contexts.py --bench-python=.bench/bin/python
    python benchmarks/speed/contexts.py --plot

The update is double DQN of one step on windows of so many steps, 2 blocks, 128 wide, 8 heads, batch
32, the shape of DTQN (Esslinger et al., 2022). Three sides are measured in turn, A B C A B C, each
in a process of one thread: ours as it is by default (`once`: a state and the next are read in one
pass), ours with `--read-once=False` (`twice`), and eager PyTorch as `torch_update.py` has it, which
does what `twice` does; that their losses agree is checked first. Acting is of 8 environments, by
encoding the window at each step (`window`), and from the keys and values that were kept (`kept`).

The floor is the time that the matrix products of one pass forward and backward for the online
network and one forward each for its choice and the target would take at the float32 rate of a large
product. Times are the processor's.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import benchmark
import numpy as np
import tyro
from benchmark import HERE, INSTALL, check_losses, print_table, settings_of
from measured_process import ask, machine, other_environ, start, stop
from rows import gpt_update, matmul_flops

from tfdqt.errors import UsageError
from tfdqt.games.envs import info_of, make_env
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import read_rows, write_rows
from tfdqt.settings import check_at_least_one

OUT = HERE / "speed_contexts.csv"
ENVS = 8  # that are acted in
COLORS = dict(
    once="tab:blue", twice="tab:cyan", theirs="tab:red", kept="tab:blue", window="tab:cyan"
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure updates and acting over contexts."""

    bench_python: str | None = None
    """The python of an environment made from requirements-bench.txt."""
    contexts: tuple[int, ...] = (4, 16, 32, 50, 64, 128, 256)
    """Steps of a window."""
    layers: int = 2
    """Blocks."""
    width: int = 128
    """Width."""
    heads: int = 8
    """Heads of attention."""
    batch: int = 32
    """Windows in an update."""
    repeats: int = 5
    """Measurements of each side."""
    updates: int = 16
    """Updates in a measurement; fewer where they take long."""
    out: Path = OUT
    """CSV of every measurement; an older one is replaced."""
    plot: bool = False
    """Draw what is in that CSV, and measure nothing."""


# -------------------------------------------------------------------------------------------------
# The update


def row_of(context, args, read_once):
    """The row of `rows.py` that is measured at a context."""
    row = gpt_update()
    sizes = dict(layers=args.layers, width=args.width, heads=args.heads)
    network = dataclasses.replace(row.network, context=context, **sizes)
    cfg = dataclasses.replace(
        row.cfg, batch_size=args.batch, n_step=1, chunk=1, num_envs=4, updates_per_step=1.0
    )
    return row._replace(network=network, cfg=dataclasses.replace(cfg, read_once=read_once))


def measure_updates(context, args):
    """All sides in turn: -> list of dicts, one a measurement."""
    rows = dict(twice=row_of(context, args, False), once=row_of(context, args, None))
    info = info_of(lambda: make_env(rows["twice"].env))
    flops = matmul_flops(rows["twice"], info)
    count = max(4, args.updates * 50 // max(50, context))
    entries = []
    sides = []
    with tempfile.TemporaryDirectory() as folder:
        given = benchmark.Args(workers=0, threads=1, torch_threads=1)
        settings = {side: settings_of(row, given, info, folder) for side, row in rows.items()}
        try:
            ours = [sys.executable, str(HERE / "ours.py")]
            sides.append(("twice", *start(ours, settings["twice"])))
            theirs = [args.bench_python, str(HERE / "torch_update.py")]
            sides.append(("theirs", *start(theirs, settings["twice"], other_environ())))
            check_losses(sides[0][2], sides[1][2])
            sides.append(("once", *start(ours, settings["once"])))
            for repeat in range(args.repeats):
                for side, process, about in sides:
                    answer = ask(process, count)
                    entry = dict(what="update", side=side, context=context, repeat=repeat)
                    entry |= dict(ms=1000 * answer["cpu_seconds"] / answer["updates"])
                    entry |= dict(floor_ms=1000 * flops / answer["matmul_rate"])
                    entries.append(entry | answer | {"threads": about["threads"]})
        finally:
            for _, process, _ in sides:
                stop(process)
    return entries


# -------------------------------------------------------------------------------------------------
# Acting


def measure_acting(context, args):
    """Steps of episodes as long as the context: -> list of dicts, one a measurement."""
    from tfdqt.games.flat import best_at_last, flatten_q, make_act  # loads TensorFlow
    from tfdqt.games.networks import build_q
    from tfdqt.games.stepwise import make_stepwise
    from tfdqt.games.window import make_window, network_inputs, push

    row = row_of(context, args, None)
    info = info_of(lambda: make_env(row.env))
    net = flatten_q(build_q(info, row.network), info)
    encode = make_act(net)
    acts = dict(
        window=lambda inputs: encode(net.start, inputs).numpy(),
        kept=make_stepwise(net, best_at_last())(net.start),
    )
    rng = np.random.default_rng(0)
    window = make_window(info, ENVS, context)
    entries = []
    for repeat in range(args.repeats + 1):
        seconds = dict.fromkeys(acts, 0.0)
        for step in range(max(64, context)):
            obs = rng.integers(0, 256, (ENVS, *info.obs_shape))
            push(window, obs, np.full(ENVS, step % context == 0), np.zeros(ENVS, int))
            inputs = network_inputs(window)
            for side, act in acts.items():
                begin = time.process_time()
                act(inputs)
                seconds[side] += time.process_time() - begin
        if repeat:  # the first compiles
            for side, total in seconds.items():
                ms = 1000 * total / max(64, context)
                entries.append(
                    dict(what="acting", side=side, context=context, repeat=repeat, ms=ms)
                )
    return entries


# -------------------------------------------------------------------------------------------------
# Telling


def medians(entries, what):
    """Milliseconds by side and context: {side: {context: [repeats]}}."""
    found = {}
    for entry in entries:
        if entry["what"] == what:
            of_side = found.setdefault(entry["side"], {})
            of_side.setdefault(int(entry["context"]), []).append(float(entry["ms"]))
    return found


def table(entries):
    """The lines of a table: a context each."""
    updates = medians(entries, "update")
    acting = medians(entries, "acting")
    lines = [
        ("context", "twice", "once", "PyTorch", "PyTorch / twice", "PyTorch / once", "once / floor",
         "acting, window", "acting, kept")
    ]  # fmt: skip
    for context in sorted(updates["once"]):
        ms = {side: np.array(of_side[context]) for side, of_side in updates.items()}
        floors = [
            float(entry["floor_ms"])
            for entry in entries
            if entry["what"] == "update" and int(entry["context"]) == context
        ]
        ratios = {side: ms["theirs"] / ms[side] for side in ("twice", "once")}
        lines.append(
            [
                str(context),
                *(f"{np.median(ms[side]):.1f}" for side in ("twice", "once", "theirs")),
                *(
                    f"{np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]"
                    for ratio in ratios.values()
                ),
                f"{np.median(ms['once']) / np.median(floors):.2f}",
                *(f"{np.median(acting[side][context]):.2f}" for side in ("window", "kept")),
            ]
        )
    return lines


def draw(entries, path):
    """Two panels: an update and a step of acting over contexts."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names = dict(
        once="tfdqt", twice="tfdqt, read twice", theirs="eager PyTorch", kept="tfdqt",
        window="tfdqt, window encoded at each step",
    )  # fmt: skip
    titles = dict(update="An update, batch 32", acting=f"A step of {ENVS} environments")
    for axis, what in zip(axes, titles):
        for side, of_side in medians(entries, what).items():
            contexts = sorted(of_side)
            ms = [np.median(of_side[context]) for context in contexts]
            axis.plot(contexts, ms, marker="o", color=COLORS[side], label=names[side])
        axis.set(
            title=titles[what], xlabel="context (steps)", ylabel="ms", xscale="log", yscale="log"
        )
        axis.set_xticks(contexts, contexts)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=100)


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "layers", "width", "heads", "batch", "repeats", "updates")
    if args.plot:
        entries = read_rows(args.out)
    else:
        if args.bench_python is None:
            raise UsageError(f"PyTorch is measured in an environment of its own: {INSTALL}")
        about = machine()
        print(f"{about['cpu']}, {about['cores']} cores, {about['date']}", flush=True)
        entries = []
        for context in args.contexts:
            for measure in (measure_updates, measure_acting):
                entries += [dict(entry, **about) for entry in measure(context, args)]
                write_rows(args.out, entries)
            print(*table(entries)[-1], sep=" | ", flush=True)
    print_table(table(entries))
    draw(entries, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    run_main(main)
