"""How far actors scale: measured on this machine, then modelled for more. python benchmarks/scale.py --out=benchmarks/scale

First, what one part costs alone, in one thread: an actor's step, an update, a step into the replay buffer, handing a chunk over, a
broadcast. Then runs with 1, 2, 4 and 8 actors, each beside a run with as many plain worker processes, in turn, A B A B, by the
protocol of scripts/benchmark.py. Last, a simulation of actors that each have a core, links and one learner, which take chunks in the
order they come, with the costs measured; it tells which of them is busy all the time. Writes OUT.csv, OUT-parts.json and OUT.png.
"""

import dataclasses
import functools
import heapq
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import tyro

from tfdqt.checks import check_far
from tfdqt.config import FarConfig, UsageError, default_config, default_parallel
from tfdqt.runs import check_at_least_one, run_main, write_rows

ROOT = Path(__file__).resolve().parent.parent
CHUNKS = (4, 64)  # steps per environment in a chunk, measured alone and modelled
MODELLED = (dict(chunk=4, faster=1.0, broadcast_every=64), dict(chunk=4, faster=30.0, broadcast_every=64),
            dict(chunk=64, faster=30.0, broadcast_every=64), dict(chunk=64, faster=30.0, broadcast_every=1_024))
sys.path.insert(0, str(ROOT / "scripts"))


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure how actors scale, and model where it ends."""

    name: str = "Breakout-ram-v0"
    """Environment, with its default settings."""
    actors: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of actors, and of plain workers beside them."""
    repeats: int = 3
    """Measurements of each."""
    steps: int = 4_000
    """Environment steps in a measurement."""
    link: float = 1e9
    """Modelled: bits per second into the learner's machine, and as many out of it."""
    per_node: int = 16
    """Modelled: actors on a machine, which share the weights that reach it."""
    out: str = "benchmarks/scale"
    """Where to write, without ending."""


def seconds_of(work, seconds=3.0):
    """Median time of a call of `work`, called for so long."""
    work()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def measure_parts(name):
    """What each part costs: seconds of an environment step, an update, a broadcast, a chunk added and taken, and bytes. A dict."""
    from tfdqt import backend

    backend.set_threads(1)
    import cloudpickle

    from tfdqt import actors, dqn, gpt
    from tfdqt.backend import tf
    from tfdqt.envs import make_env
    from tfdqt.replay import make_add_to, make_sampler, make_uneven_replay

    network, cfg = default_config(name)
    env_fn, q_fn = functools.partial(make_env, name), functools.partial(gpt.build_q, cfg=network)
    learner = dqn.make_learner(env_fn, q_fn, dataclasses.replace(cfg, replay_size=50_000), 0, make_uneven_replay)
    weights, found = learner.state.online.numpy(), {}
    for envs in (1, 4):
        play = actors.make_game_player(env_fn, q_fn, learner.info, cfg, np.arange(envs), np.random.SeedSequence(0))
        found[f"actor_{envs}"] = seconds_of(lambda: play(weights, cfg.total_steps)) / (cfg.chunk * envs)
    rows, steps, _ = play(weights, 0)
    add, chunks = make_add_to(learner.replay), {}
    for length in CHUNKS:
        chunks[length] = rows, tf.nest.map_structure(lambda field: np.resize(field, (length, *field.shape[1:])), steps), []
    for row in range(0, cfg.num_envs, len(rows)):
        for _ in range(1_000 // CHUNKS[-1]):
            add(chunks[CHUNKS[-1]][1], tf.constant(rows + row))
    count = 16
    learn = dqn.make_learn(dqn.make_update(learner.networks, cfg), make_sampler(learner.replay, learner.window), cfg, count, 0)
    found["update"] = seconds_of(lambda: learn(learner.state)[1]["loss"].numpy(), 10.0) / count

    ray = actors.connect(1)

    @ray.remote(num_cpus=1)
    class Echo:
        def __init__(self, chunk):
            self.chunk = chunk

        def collect(self, weights, version, step):
            return self.chunk, version

    kept = ray.put(weights)
    found["broadcast"] = seconds_of(lambda: ray.put(weights))
    for length, chunk in chunks.items():
        echo = Echo.remote(chunk)
        ray.get(echo.collect.remote(kept, 0, 0))

        def take():  # 32 at a time: how long the learner's side is busy, not how long it waits
            for ready in [echo.collect.remote(kept, 0, 0) for _ in range(32)]:
                ray.wait([ready], timeout=10)
                ray.get(ready)

        found[f"take_{length}"] = seconds_of(take) / 32
        found[f"add_{length}"] = seconds_of(lambda: add(chunk[1], tf.constant(rows)))
        found[f"bytes_{length}"] = len(cloudpickle.dumps(chunk))
        ray.kill(echo)
    ray.shutdown()
    found.update(weights_bytes=weights.nbytes, envs=len(rows), updates_per_step=cfg.updates_per_step)
    return found


def simulate(parts, actors, *, chunk=4, link=1e9, per_node=16, broadcast_every=64, faster=1.0, chunks=4_000, ahead=2):
    """Steps per second and how busy each part is, of `actors` actors that each have a core and send `chunk` steps at a time: dict.

    An actor plays a chunk of its environments whenever fewer than `ahead` of its chunks are under way. Chunks pass the learner's inward
    link one after the other, then the learner, which updates as often as their steps ask for. Weights pass its outward link once for
    every `per_node` actors; a chunk asked for after a broadcast is played when its weights have passed. Playing varies by a tenth.
    `faster`: how many times faster the learner's updates are than measured.
    """
    rng = np.random.default_rng(0)
    size = chunk * parts["envs"]
    play, send = size * parts["actor_4"], 8 * parts[f"bytes_{chunk}"] / link
    serve = parts[f"take_{chunk}"] + parts[f"add_{chunk}"] + size * parts["updates_per_step"] * parts["update"] / faster
    every = broadcast_every / (size * parts["updates_per_step"])  # chunks between two broadcasts
    weights = 8 * parts["weights_bytes"] * -(-actors // per_node) / link
    played = np.zeros(actors)  # when each actor will have played what it was asked for
    events = []  # (time, what: 0 a chunk is played or 1 learned from, actor)
    free = dict(inward=0.0, learner=0.0, outward=weights)
    busy, due, done, begin = dict.fromkeys(free, 0.0), every, 0, None

    def ask(i, now):
        played[i] = max(played[i], now, free["outward"]) + play * rng.uniform(0.9, 1.1)
        heapq.heappush(events, (played[i], 0, i))

    def use(part, now, seconds):
        free[part] = max(free[part], now) + seconds
        busy[part] += seconds
        return free[part]

    for i in range(actors):
        for _ in range(ahead):
            ask(i, 0.0)
    while done < chunks:
        now, learned, i = heapq.heappop(events)
        if not learned:
            heapq.heappush(events, (use("learner", use("inward", now, send), serve), 1, i))
            continue
        done, due = done + 1, due - 1
        if due <= 0:
            use("outward", now, weights)
            use("learner", now, parts["broadcast"])
            due += every
        if done == chunks // 4:
            begin = now, dict(busy)
        ask(i, now)
    seconds, steps = now - begin[0], size * (done - chunks // 4)
    rate = steps / seconds
    return dict(actors=actors, chunk=chunk, faster=faster, broadcast_every=broadcast_every, steps_per_second=float(rate),
                actors_busy=float(min(1.0, rate * play / size / actors)),
                **{f"{part}_busy": float(min(1.0, (busy[part] - begin[1][part]) / seconds)) for part in busy})


def measure_runs(args):
    """Runs with actors and with workers, in turn: rows."""
    import benchmark

    from tfdqt.envs import env_info, make_env

    network, cfg = default_config(args.name)
    cfg = dataclasses.replace(cfg, total_steps=10 ** 9, epsilon_start=cfg.epsilon_end)
    info = env_info(make_env(args.name))
    common = dict(env=args.name, unit="env steps", network=dataclasses.asdict(network), algorithm="dqn", cfg=dataclasses.asdict(cfg),
                  actions=info.num_actions, warm_up=1_000 + cfg.learning_starts, threads=default_parallel(args.name)["threads"])
    rows = []
    for count in args.actors:
        check_far(FarConfig(actors=count), cfg.num_envs)
        sides = []
        try:
            for side, workers, actors in (("workers", count, 0), ("actors", 0, count)):
                command = [sys.executable, str(ROOT / "benchmarks" / "ours.py")]
                sides.append((side, benchmark.start(command, dict(common, workers=workers, actors=actors))[0]))
            for repeat in range(args.repeats):
                for side, process in sides:
                    answer = benchmark.ask(process, args.steps)
                    rows.append(dict(count=count, side=side, repeat=repeat, steps=answer["count"], seconds=answer["seconds"],
                                     steps_per_second=answer["count"] / answer["seconds"],
                                     replay_ratio=answer["updates"] / answer["count"], **benchmark.machine()))
                print(f"  {count}: " + " against ".join(f"{row['steps_per_second']:,.0f} ({row['side']})" for row in rows[-2:]), flush=True)
        finally:
            for _, process in sides:
                benchmark.stop(process)
    return rows


def draw(rows, modelled, path):
    """Steps per second as measured and as modelled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = sorted({row["count"] for row in rows})
    for side in ("workers", "actors"):
        found = [[row["steps_per_second"] for row in rows if row["side"] == side and row["count"] == count] for count in counts]
        left.plot(counts, [np.median(values) for values in found], marker="o", label=f"plain {side}" if side == "workers" else side)
        left.vlines(counts, [min(values) for values in found], [max(values) for values in found], linewidth=0.7)
    left.set(xlabel=f"processes, on {os.cpu_count()} cores", ylabel="environment steps per second", ylim=(0, None), xscale="log")
    left.set_xticks(counts, [str(count) for count in counts])
    left.minorticks_off()
    left.legend()
    for setting in MODELLED:
        line = [model for model in modelled if all(model[key] == value for key, value in setting.items())]
        right.plot([model["actors"] for model in line], [model["steps_per_second"] for model in line], marker=".",
                   label="learner x{faster:g}, chunks of {chunk}, weights every {broadcast_every} updates".format(**setting))
    right.set(xlabel="modelled actors, a core each", ylabel="environment steps per second", xscale="log", yscale="log")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "repeats", "steps", "per_node")
    if not args.actors or not args.link > 0:
        raise UsageError("--actors must name at least one number, and --link must be greater than 0.")
    rows = measure_runs(args)
    write_rows(f"{args.out}.csv", rows)
    parts = measure_parts(args.name)
    Path(f"{args.out}-parts.json").write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
    print("Alone, in microseconds: " + ", ".join(f"{key} {1e6 * value:.0f}" for key, value in parts.items() if value < 0.1))
    modelled = [simulate(parts, count, link=args.link, per_node=args.per_node, **setting)
                for setting in MODELLED for count in (1, 2, 4, 8, 10, 30, 100, 300, 1_000)]
    write_rows(f"{args.out}-model.csv", modelled)
    for model in modelled:
        if model["actors"] in (10, 100, 1_000):
            print("  {actors:5d} actors, chunks of {chunk}, learner x{faster:g}, weights every {broadcast_every}: "
                  "{steps_per_second:,.0f} steps/s; busy: actors {actors_busy:.0%}, learner {learner_busy:.0%}, "
                  "link in {inward_busy:.0%}, out {outward_busy:.0%}".format(**model))
    draw(rows, modelled, f"{args.out}.png")
    print(f"Written: {args.out}.csv, {args.out}-parts.json, {args.out}-model.csv, {args.out}.png")
    return 0


if __name__ == "__main__":
    run_main(main)
