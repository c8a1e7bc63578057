"""How far actors scale: measured on this machine, then modelled for more.

    python benchmarks/scale/scale.py --out=benchmarks/scale/scale

First, what one part costs alone, in one thread: an actor's step, an update, a step into the replay
buffer, handing a chunk over, a broadcast. Then runs with 1, 2, 4 and 8 actors, each in turn with a
run with as many plain worker processes, A B A B, by the protocol of ../speed/benchmark.py. Last, a
simulation of actors that each have a core, links and one learner, which take chunks in the order
they come, with the costs measured; it tells which of them is busy all the time.

Writes OUT.csv, OUT-parts.json, OUT-model.csv and OUT.png.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import tyro
from scale_model import simulate

from tfdqt.backend import set_threads, tf
from tfdqt.errors import UsageError
from tfdqt.games import apex, dqn
from tfdqt.games.algorithms import default_parallel, default_settings
from tfdqt.games.envs import info_of, make_env
from tfdqt.replay import make_add_to, make_sampler, make_uneven_replay
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import write_rows
from tfdqt.runs.plots import make_figure
from tfdqt.scale import ray_pool
from tfdqt.scale.config import ScaleConfig, check_scale
from tfdqt.settings import check_at_least_one

SPEED = Path(__file__).resolve().parents[1] / "speed"
sys.path.insert(0, str(SPEED))
from measured_process import ask, machine, start, stop  # noqa: E402

CHUNKS = (4, 64)  # steps per environment in a chunk, measured alone and modelled
MODELLED = (
    dict(chunk=4, faster=1.0, broadcast_every=64),
    dict(chunk=4, faster=30.0, broadcast_every=64),
    dict(chunk=64, faster=30.0, broadcast_every=64),
    dict(chunk=64, faster=30.0, broadcast_every=1_024),
)
ACTORS = (1, 2, 4, 8, 10, 30, 100, 300, 1_000)  # modelled
PRINTED = (10, 100, 1_000)


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure how actors scale, and model where it ends."""

    name: str = "Breakout-ram-v0"
    """Environment, with its default settings."""
    actors: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of actors, and of plain workers they are compared with."""
    repeats: int = 3
    """Measurements of each."""
    steps: int = 4_000
    """Environment steps in a measurement."""
    link: float = 1e9
    """Modelled: bits per second into the learner's machine, and as many out of it."""
    per_node: int = 16
    """Modelled: actors on a machine, which share the weights that reach it."""
    out: str = "benchmarks/scale/scale"
    """Where to write, without ending."""


# --------------------------------------------------------------------------------------------------
# What each part costs


def seconds_of(work, seconds=3.0):
    """Median time of a call of `work`, called for so long."""
    work()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def measure_parts(name):
    """What each part costs alone: a dict of seconds and bytes.

    actor_N: seconds of an environment step of an actor with N environments; update; broadcast;
    take_L and add_L: to take a chunk of L steps from Ray, and to add it to the replay buffer.
    """
    set_threads(1)

    from tfdqt.games.networks import build_q  # loads Keras

    network, cfg = default_settings(name, "dqn")
    env_fn = functools.partial(make_env, name)
    q_fn = functools.partial(build_q, cfg=network)
    small = dataclasses.replace(cfg, replay_size=50_000)
    learner = dqn.make_learner(env_fn, q_fn, small, 0, make_buffer=make_uneven_replay)
    state = dqn.first_state(learner.net)
    weights = state.online.numpy()
    parts = {}
    for envs in (1, 4):
        seeds = np.random.SeedSequence(0)
        play = apex.make_actor_collect(env_fn, q_fn, learner.info, cfg, np.arange(envs), seeds)
        seconds = seconds_of(lambda: play(weights, cfg.total_steps))
        parts[f"actor_{envs}"] = seconds / (cfg.chunk * envs)
    rows, steps, _ = play(weights, 0)
    parts["update"] = measure_update(learner, state, cfg, rows, steps)
    parts |= measure_chunks(learner, weights, rows, steps)
    parts |= dict(
        weights_bytes=weights.nbytes, envs=len(rows), updates_per_step=cfg.updates_per_step
    )
    return parts


def stretched(steps, length):
    """A chunk of `length` steps made of the given ones."""
    return tf.nest.map_structure(lambda field: np.resize(field, (length, *field.shape[1:])), steps)


def measure_update(learner, state, cfg, rows, steps, count=16):
    """Seconds of an update, on a replay buffer that holds 1,000 steps of each environment."""
    add = make_add_to(learner.replay)
    length = CHUNKS[-1]
    chunk = stretched(steps, length)
    for row in range(0, cfg.num_envs, len(rows)):
        for _ in range(1_000 // length):
            add(chunk, tf.constant(rows + row))
    update = dqn.make_update(learner.net, cfg)
    sample = make_sampler(learner.replay, learner.window)
    draw = dqn.make_draw(sample, cfg, count, 0)

    def learn():
        return update(state, draw(state.updates))[1]["loss"].numpy()

    return seconds_of(learn, 10.0) / count


def measure_chunks(learner, weights, rows, steps):
    """What it costs to broadcast weights, to take chunks from Ray and to add them: a dict."""
    import cloudpickle

    ray = ray_pool.connect(1)

    @ray.remote(num_cpus=1)
    class Echo:
        def __init__(self, chunk):
            self.chunk = chunk

        def collect(self, weights, version, step):
            return self.chunk, version

    add = make_add_to(learner.replay)
    kept = ray.put(weights)
    parts = dict(broadcast=seconds_of(lambda: ray.put(weights)))
    for length in CHUNKS:
        chunk = rows, stretched(steps, length), []
        echo = Echo.remote(chunk)
        ray.get(echo.collect.remote(kept, 0, 0))

        def take():  # 32 at a time: how long the learner's side is busy, not how long it waits
            for ready in [echo.collect.remote(kept, 0, 0) for _ in range(32)]:
                ray.wait([ready], timeout=10)
                ray.get(ready)

        parts[f"take_{length}"] = seconds_of(take) / 32
        parts[f"add_{length}"] = seconds_of(lambda: add(chunk[1], tf.constant(rows)))
        parts[f"bytes_{length}"] = len(cloudpickle.dumps(chunk))
        ray.kill(echo)
    ray.shutdown()
    return parts


# --------------------------------------------------------------------------------------------------
# Whole runs


def measure_runs(args):
    """Runs with actors and with workers, in turn: rows."""
    network, cfg = default_settings(args.name, "dqn")
    cfg = dataclasses.replace(cfg, total_steps=10**9, epsilon_start=cfg.epsilon_end)
    common = dict(
        env=args.name,
        unit="env steps",
        network=dataclasses.asdict(network),
        algorithm="dqn",
        cfg=dataclasses.asdict(cfg),
        actions=info_of(functools.partial(make_env, args.name)).num_actions,
        warm_up=1_000 + cfg.learning_starts,
        threads=default_parallel(args.name, "dqn")["threads"],
    )
    rows = []
    for count in args.actors:
        check_scale(ScaleConfig(actors=count), cfg.num_envs)
        rows += measure_pair(args, count, common)
    return rows


def measure_pair(args, count, common):
    """A run with `count` actors and one with as many workers, in turn: rows."""
    command = [sys.executable, str(SPEED / "ours.py")]
    rows = []
    sides = []
    try:
        for side, workers, actors in (("workers", count, 0), ("actors", 0, count)):
            process, _ = start(command, dict(common, workers=workers, actors=actors))
            sides.append((side, process))
        for repeat in range(args.repeats):
            for side, process in sides:
                answer = ask(process, args.steps)
                rows.append(
                    dict(
                        count=count,
                        side=side,
                        repeat=repeat,
                        steps=answer["count"],
                        seconds=answer["seconds"],
                        steps_per_second=answer["count"] / answer["seconds"],
                        replay_ratio=answer["updates"] / answer["count"],
                        **machine(),
                    )
                )
            pair = [f"{row['steps_per_second']:,.0f} ({row['side']})" for row in rows[-2:]]
            print(f"  {count}: {' against '.join(pair)}", flush=True)
    finally:
        for _, process in sides:
            stop(process)
    return rows


# --------------------------------------------------------------------------------------------------
# Telling


def draw(rows, modelled, path):
    """Draw steps per second, as measured and as modelled, into a PNG."""
    figure, (left, right) = make_figure(1, 2, size=(9, 4.2))
    draw_measured(left, rows)
    draw_modelled(right, modelled)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def draw_measured(axis, rows):
    """Medians as lines, and from the least to the largest as bars."""
    counts = sorted({row["count"] for row in rows})
    for side, label in (("workers", "plain workers"), ("actors", "actors")):
        rates = [
            [
                row["steps_per_second"]
                for row in rows
                if (row["side"], row["count"]) == (side, count)
            ]
            for count in counts
        ]
        axis.plot(counts, [np.median(values) for values in rates], marker="o", label=label)
        axis.vlines(counts, *zip(*[(min(v), max(v)) for v in rates]), linewidth=0.7)
    axis.set(
        xlabel=f"processes, on {os.cpu_count()} cores",
        ylabel="environment steps per second",
        ylim=(0, None),
        xscale="log",
    )
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.legend()


def draw_modelled(axis, modelled):
    """A line for each setting of the model."""
    for setting in MODELLED:
        line = [row for row in modelled if all(row[key] == setting[key] for key in setting)]
        axis.plot(
            [row["actors"] for row in line],
            [row["steps_per_second"] for row in line],
            marker=".",
            label="learner x{faster:g}, chunks of {chunk}, weights every {broadcast_every} "
            "updates".format(**setting),
        )
    axis.set(
        xlabel="modelled actors, a core each",
        ylabel="environment steps per second",
        xscale="log",
        yscale="log",
    )


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "repeats", "steps", "per_node")
    if not args.actors or not args.link > 0:
        raise UsageError(
            "--actors must name at least one number, and --link must be greater than 0."
        )
    rows = measure_runs(args)
    write_rows(f"{args.out}.csv", rows)
    parts = measure_parts(args.name)
    text = json.dumps(parts, indent=2) + "\n"
    Path(f"{args.out}-parts.json").write_text(text, encoding="utf-8")
    seconds = {key: value for key, value in parts.items() if value < 0.1}
    print(
        "Alone, in microseconds: "
        + ", ".join(f"{key} {1e6 * value:.0f}" for key, value in seconds.items())
    )
    modelled = [
        simulate(parts, count, link=args.link, per_node=args.per_node, **setting)
        for setting in MODELLED
        for count in ACTORS
    ]
    write_rows(f"{args.out}-model.csv", modelled)
    for row in modelled:
        if row["actors"] in PRINTED:
            print(
                "  {actors:5d} actors, chunks of {chunk}, learner x{faster:g}, weights every "
                "{broadcast_every}: {steps_per_second:,.0f} steps/s; busy: actors "
                "{actors_busy:.0%}, learner {learner_busy:.0%}, link in {inward_busy:.0%}, out "
                "{outward_busy:.0%}".format(**row)
            )
    draw(rows, modelled, f"{args.out}.png")
    print(f"Written: {args.out}.csv, {args.out}-parts.json, {args.out}-model.csv, {args.out}.png")
    return 0


if __name__ == "__main__":
    run_main(main)
