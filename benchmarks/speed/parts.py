"""Where the time of a DQN run goes: its parts, one after another on one core.

    taskset -c 0 python benchmarks/speed/parts.py

Every part is called as training calls it, with the defaults of the environment, and its processor's
time is divided by the environment steps that it serves. In a run the update goes on beside the rest
if there is a second core. The floor is the time of the update's matrix products alone, at the rate
of a large one. Medians; every repeat is a row of the CSV.
"""

import dataclasses
import functools
import time
from pathlib import Path

import numpy as np
import tyro
from ours import make_matmul_rate
from rows import gpt_breakout, matmul_flops

from tfdqt.backend import set_threads, tf
from tfdqt.games import dqn
from tfdqt.games.algorithms import build_q, default_settings
from tfdqt.games.envs import make_env
from tfdqt.games.loop import stepping
from tfdqt.replay import make_add, make_sampler
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import write_rows
from tfdqt.settings import check_at_least_one

HERE = Path(__file__).parent
FILLED = 8  # chunks of steps in the replay buffer before updates are timed


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure the parts of a DQN run."""

    name: str = "Breakout-ram-v0"
    """Environment."""
    repeats: int = 9
    """Measurements of each part."""
    chunks: int = 8
    """Chunks of steps, with the updates that follow them, in a measurement."""
    out: Path = HERE / "speed_parts.csv"
    """CSV of every measurement; an older one is replaced."""


class Clock:
    """Adds up the processor's time of what it is put around."""

    def __init__(self):
        self.seconds = {}

    def around(self, part, function):
        """The same function, timed."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.process_time() - begin
                self.seconds[part] = self.seconds.get(part, 0.0) + taken

        return timed


def timed_envs(env_fn, clock):
    """The same environments, whose own steps are timed."""
    env = env_fn()
    env.step = clock.around("the environment", env.step)
    return env


def measure(args):
    """List of dicts of microseconds an environment step, one a repeat."""
    network, cfg = default_settings(args.name, "dqn")
    cfg = dataclasses.replace(cfg, learning_starts=1, epsilon_start=cfg.epsilon_end)
    clock = Clock()
    env_fn = functools.partial(timed_envs, functools.partial(make_env, args.name), clock)
    learner = dqn.make_learner(env_fn, functools.partial(build_q, cfg=network), cfg, seed=0)
    steps = cfg.chunk * cfg.num_envs
    updates = round(cfg.updates_per_step * steps)
    add = clock.around("storing steps", make_add(learner.replay))
    sample = clock.around("drawing batches", make_sampler(learner.replay, learner.window))
    update = clock.around("updates", dqn.make_update(learner.net, cfg))
    found = []
    with stepping(env_fn, learner.info, learner.net.context, cfg, seed=0, workers=0) as stepper:
        vec = stepper.vec
        stepper = stepper._replace(vec=vec._replace(step=clock.around("stepping", vec.step)))
        begin = functools.partial(timed_actions, dqn.make_greedy(learner.net), clock)
        collect = dqn.make_collect(begin, stepper, learner.info, cfg)
        collect = clock.around("collecting", collect)
        state = dqn.first_state(learner.net)
        seed = tf.constant([0, 0], tf.int64)
        for repeat in range(args.repeats + 1):
            clock.seconds.clear()
            for _ in range(args.chunks if repeat else FILLED):
                chunk, _ = collect(state.acting, 0)
                add(chunk)
            for _ in range(args.chunks if repeat else 1):
                batch = sample(updates * cfg.batch_size, seed)
                batch = tf.nest.map_structure(
                    lambda x: tf.reshape(x, [updates, cfg.batch_size, *x.shape[1:]]), batch
                )
                state, means = update(state, batch)
                float(means["loss"])
            if repeat:  # the first compiles
                found.append({part: 1e6 * seconds / (steps * args.chunks)
                              for part, seconds in clock.seconds.items()})  # fmt: skip
    return found, network, cfg, learner.info


def timed_actions(begin, clock, weights):
    return clock.around("acting", begin(weights))


def in_parts(row):
    """The measured times of a repeat, none of which holds another."""
    parts = {"the environment": row["the environment"]}
    parts["checks, wrappers of ours"] = row["stepping"] - row["the environment"]
    parts["acting"] = row["acting"]
    parts["the rest of collecting"] = row["collecting"] - row["stepping"] - row["acting"]
    for part in ("storing steps", "drawing batches", "updates"):
        parts[part] = row[part]
    return parts


def main():
    args = tyro.cli(Args, description=__doc__)
    check_at_least_one(args, "repeats", "chunks")
    set_threads(1)
    tf.config.set_visible_devices([], "GPU")
    rate = make_matmul_rate(clock=time.process_time)
    before = rate()
    found, network, cfg, info = measure(args)
    flops = matmul_flops(gpt_breakout()._replace(network=network, cfg=cfg), info)
    floor = 1e6 * cfg.updates_per_step * flops / ((before + rate()) / 2)
    rows = [in_parts(row) for row in found]
    rows = [dict(repeat=i, **row, floor=floor) for i, row in enumerate(rows)]
    write_rows(args.out, rows)
    medians = {part: np.median([row[part] for row in rows]) for part in rows[0]}
    del medians["repeat"], medians["floor"]
    total = sum(medians.values())
    print("| part | microseconds an environment step | of all |\n| --- | --- | --- |")
    for part, value in medians.items():
        print(f"| {part} | {value:.0f} | {value / total:.0%} |")
    print(f"\nAll: {total:.0f}. Updates are {medians['updates'] / floor:.1f} times their floor.")


if __name__ == "__main__":
    run_main(main)
