"""What holding an environment to its word costs of a step.

    python benchmarks/speed/checks.py

The same environments are stepped with and without the checks of observations, rewards and flags, in
turns; then they are acted in as a DQN with its default network does, for what a step costs in all.
Medians over the rounds, in microseconds for a step of one environment.
"""

import dataclasses
import functools
import time
from unittest import mock

import numpy as np
import tyro

from tfdqt.backend import set_threads
from tfdqt.games import dqn, vec_envs
from tfdqt.games.algorithms import build_q, default_settings
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.flat import flatten_q, make_act
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


class Trusting(vec_envs.Slot):
    """A slot that takes an environment at its word."""

    def __init__(self, env, info, seed, life_loss_ends, out):
        super().__init__(env, info, seed, life_loss_ends, out)
        self.read = lambda obs: obs

    def step(self, action):
        if self.ended:
            self.lives = 0
            self.ret = 0.0
            self.length = 0
            self._show(*self.env.reset(), first=True)
            return
        obs, reward, terminated, truncated, info = self.env.step(self.action_of(action))
        lives = info.get("lives", 0)
        lost_life = lives < self.lives
        self.lives = lives
        over = terminated or (self.life_loss_ends and lost_life)
        self.ret += float(reward)
        self.length += 1
        self._show(
            obs,
            info,
            first=False,
            reward=reward,
            discount=0.0 if over else 1.0,
            terminated=terminated,
            ended=terminated or truncated,
            ret=self.ret,
            length=self.length,
        )


class TrustingSlots(vec_envs.Slots):
    """Slots whose observations are not looked at."""

    def check(self):
        pass


def made(env_fn, info, count, *, checked):
    """A vector of environments in this process, with or without the checks."""
    if checked:
        return vec_envs.make_vec_env(env_fn, info, count, 0, workers=0)
    with (
        mock.patch.object(vec_envs, "Slot", Trusting),
        mock.patch.object(vec_envs, "Slots", TrustingSlots),
    ):
        return vec_envs.make_vec_env(env_fn, info, count, 0, workers=0)


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
    vectors = [made(env_fn, info, args.num_envs, checked=checked) for checked in (True, False)]
    steps = [
        lambda vec=vec: vec.step(rng.integers(info.num_actions, size=args.num_envs))
        for vec in vectors
    ]
    stepper = make_stepper(env_fn, info, network.context, args.num_envs, seed=0)
    net = flatten_q(build_q(info, network), info)
    collect = dqn.make_collect(make_act(net), stepper, info, cfg)
    steps.append(lambda: collect(net.start, cfg.total_steps))
    for step in steps:
        step()
    rounds = [
        [microseconds(step, args.num_envs, args.seconds) for step in steps]
        for _ in range(args.rounds)
    ]
    for vec in (*vectors, stepper.vec):
        vec.close()
    checked, trusted, acted = np.median(rounds, axis=0)
    cost = np.median([one[0] - one[1] for one in rounds])
    print(
        f"{name}: {checked:.2f} us with the checks, {trusted:.2f} without: {cost:.2f} us, "
        f"{cost / trusted:.1%} of a bare step, {cost / acted:.2%} of one that is acted in "
        f"({acted:.0f} us)"
    )


if __name__ == "__main__":
    arguments = tyro.cli(Args)
    set_threads(1)
    for each in arguments.names:
        measure(each, arguments)
