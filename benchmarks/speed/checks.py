"""What holding an environment to its word costs of a step.

    python benchmarks/speed/checks.py

The same environments are stepped with and without the checks of observations, rewards and flags, in
turns; then they are acted in as a DQN with its default network does, for what a step costs in all.
Medians over the rounds, in microseconds for a step of one environment.
"""

import contextlib
import dataclasses
import functools
import time
from unittest import mock

import numpy as np
import tyro

from tfdqt.backend import set_threads
from tfdqt.games import dqn, slots, vec_envs
from tfdqt.games.algorithms import build_q, default_settings
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.flat import flatten_q
from tfdqt.games.loop import make_stepper


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure what the checks of a step cost."""

    names: tuple[str, ...] = ("CartPole-v1", "Breakout-ram-v0")
    """Environments."""
    num_envs: int = 8
    """Environments in a vector."""
    rounds: int = 15
    """Rounds, each with and without the checks."""
    seconds: float = 0.5
    """Length of each half of a round."""


class TrustingSlots(slots.Slots):
    """Slots that take observations as they come."""

    def __init__(self, *args):
        super().__init__(*args)
        for slot in self.slots:
            slot.read = lambda obs: obs

    def check(self):
        pass


@contextlib.contextmanager
def trusted():
    """Within the block, what an environment's reset and step return is not checked."""
    with (
        mock.patch.object(slots, "checked_step", lambda answer: answer),
        mock.patch.object(slots, "checked_reset", lambda answer: answer),
    ):
        yield


def microseconds(step, count, seconds):
    """How long a step of one environment takes when `step()` makes `count` of them."""
    done = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(20):
            step()
        done += 20
    return (time.perf_counter() - started) / done / count * 1e6


def measure(name, args):
    """Print a row of the environment `name`."""
    network, cfg = default_settings(name)
    cfg = dataclasses.replace(cfg, num_envs=args.num_envs, chunk=1)
    env_fn = functools.partial(make_env, name)
    info = info_of(env_fn, name)
    rng = np.random.default_rng(0)
    checked = vec_envs.make_vec_env(env_fn, info, args.num_envs, 0, workers=0)
    with mock.patch.object(vec_envs, "Slots", TrustingSlots):
        bare = vec_envs.make_vec_env(env_fn, info, args.num_envs, 0, workers=0)

    def act(vec):
        vec.step(rng.integers(info.num_actions, size=args.num_envs))

    stepper = make_stepper(env_fn, info, network.context, args.num_envs, seed=0)
    net = flatten_q(build_q(info, network), info)
    collect = dqn.make_collect(dqn.make_greedy(net), stepper, info, cfg)
    kinds = (
        (contextlib.nullcontext, functools.partial(act, checked)),
        (trusted, functools.partial(act, bare)),
        (contextlib.nullcontext, functools.partial(collect, net.start, cfg.total_steps)),
    )
    rounds = []
    for _ in range(args.rounds + 1):  # the first one warms up
        times = []
        for context, step in kinds:
            with context():
                times.append(microseconds(step, args.num_envs, args.seconds))
        rounds.append(times)
    for vec in (checked, bare, stepper.vec):
        vec.close()
    rounds = np.array(rounds[1:])
    with_checks, without, acted = np.median(rounds, axis=0)
    cost = np.median(rounds[:, 0] - rounds[:, 1])
    print(
        f"{name}: {with_checks:.2f} us with the checks, {without:.2f} without: {cost:.2f} us, "
        f"{cost / without:.1%} of a bare step, {cost / acted:.2%} of one that is acted in "
        f"({acted:.0f} us)"
    )


if __name__ == "__main__":
    arguments = tyro.cli(Args)
    set_threads(1)
    for each in arguments.names:
        measure(each, arguments)
