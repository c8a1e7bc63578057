"""A trained run, and its network as a policy."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from tfdqt.backend import tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.algorithms import ALGORITHMS, Algorithm, is_game_run, settings_classes
from tfdqt.games.envs import saved_info
from tfdqt.games.flat import (
    FlatModel,
    best_at_last,
    flatten_model,
    scores_at_last,
    set_weights,
    with_loops,
)
from tfdqt.games.reader import make_reader
from tfdqt.games.spaces import MASK_KEY, EnvInfo, legal_actions, make_action, read_mask
from tfdqt.games.stepwise import make_stepwise
from tfdqt.games.window import make_window, network_inputs, push
from tfdqt.policy import can_act, draw_actions, epsilon_greedy
from tfdqt.runs.checkpoint import load_checkpoint
from tfdqt.runs.cli import check_complete, read_settings
from tfdqt.runs.folder import find_run
from tfdqt.settings import check_whole


class TrainedRun(NamedTuple):
    """A trained network and where it comes from."""

    net: FlatModel
    weights: tf.Tensor  # [W], those that act
    info: EnvInfo
    algorithm: Algorithm
    settings: dict  # of config.json, but for the loops that were asked for
    step: int  # environment steps it was trained for


def load_run(run_dir, checkpoint=None, loops=None):
    """The network of a run's newest checkpoint, of the one named, or of "best".

    loops: how often a looped network runs its blocks; by default as often as it was trained.
    Raises UsageError if there is none that is whole, or it does not fit its config.json.
    """
    folder = find_run(run_dir)
    plain = read_settings(folder)
    if not is_game_run(plain):
        raise UsageError(f"{run_dir} is a text run; load_writer opens it.")
    check_complete(folder, plain)
    name = plain["algorithm"]
    algorithm = ALGORITHMS[name]
    settings = read_settings(folder, **settings_classes(name, plain))
    saved, _ = load_checkpoint(folder, checkpoint, best_too=True)
    info = saved_info(settings)
    network = settings["network"]
    if loops is not None:
        check_whole(1, loops=loops)
        if network.loops == 1:
            raise UsageError(
                f"--loops is for runs trained with --loops, and {run_dir} was trained without; "
                "leave it out."
            )
        network = dataclasses.replace(network, loops=max(loops, 2 if network.loops_random else 1))
    net = flatten_model(algorithm.build(info, network), info)
    weights = tf.constant(algorithm.acting_weights(saved))
    if weights.shape != net.start.shape:
        raise UsageError(
            f"The checkpoint of {run_dir} holds {weights.shape[0]} weights, but the network of its "
            f"config.json has {net.start.shape[0]}; put back the config.json that the run was "
            "started with."
        )
    if net.loop_limit is not None:
        weights = with_loops(net, weights, loops or network.loops)
    set_weights(net, weights)
    settings = settings | {"network": network}
    return TrainedRun(net, weights, info, algorithm, settings, saved["progress"]["step"])


class Policy:
    """Acts in one environment or in many, with the window of past steps kept inside.

    >>> policy = tfdqt.load_policy("runs/cartpole-0")
    >>> env = gymnasium.make("CartPole-v1")
    >>> obs, _ = env.reset()
    >>> policy.reset()
    >>> action = policy(obs)  # an int; then env.step(action), policy(obs) and so on

    Of many environments the rows that start an episode are told at each call:

    >>> policy.reset(num_envs=8)
    >>> actions = policy(obs, first=first)  # obs [8, ...], first [8] bool -> [8]

    Args:
      trained: TrainedRun.
      epsilon: probability of a random action; 0: the best always.
      sample: of a run that learned a policy: actions are drawn from it.
      seed: of what is drawn.
    """

    def __init__(self, trained, *, epsilon=0.0, sample=False, seed=0):
        if not isinstance(epsilon, numbers.Real) or not 0 <= epsilon <= 1:
            raise UsageError(f"epsilon must lie between 0 and 1, not {epsilon!r}.")
        check_whole(0, seed=seed)
        self.trained = trained
        self.info = trained.info
        self.epsilon = epsilon
        self.sample = sample
        self._rng = np.random.default_rng([seed, 2])
        scores_of = trained.algorithm.scores
        self._read = make_reader(trained.info).read
        self._action_of = make_action(trained.info.action_space)
        scores = scores_at_last(scores_of)
        best = best_at_last(scores_of, trained.net.parts)
        self._begin = make_stepwise(trained.net, scores if sample else best)
        self._single = True
        self.reset()

    def reset(self, num_envs=None):
        """Forget the past: all environments start an episode. num_envs: None for a single one."""
        self._single = num_envs is None
        count = 1 if num_envs is None else num_envs
        check_whole(1, num_envs=count)
        self._window = make_window(self.info, count, self.trained.net.context)
        self._action = np.full(count, -1)
        self._fresh = np.ones(count, bool)
        self._look = self._begin(self.trained.weights)

    def __call__(self, obs, first=None, mask=None):
        """The action for an observation, or for N of them: an int, or [N].

        Observations and actions as the environment, or gymnasium's vector of N, has them; actions
        of several parts are arrays.

        Args:
          first: [N], which rows start an episode with this observation; of a single environment
            `reset` tells that.
          mask: [A] or [N, A], the legal actions, where they are not in the observation.

        Raises UsageError for what does not fit the spaces the network was trained on, but for the
        bounds of numbers, which may be beyond them.
        """
        count = len(self._fresh)
        observations = [obs] if self._single else _apart(obs, self.info.observation_space)
        if len(observations) != count:
            raise UsageError(
                f"{count} observations of {self.info.name} are asked for, not {len(observations)}; "
                "reset(num_envs=N) makes the policy act for N environments at once."
            )
        if first is not None and np.shape(first) != (count,):
            raise UsageError(f"first must tell of each of {count} environments, not {first}.")
        if mask is not None and not self.info.mask:
            raise UsageError(
                f"{self.info.name} did not say which actions are legal when it was trained on; "
                "leave out mask."
            )
        if self._single or mask is None:
            masks = [mask] * count
        elif isinstance(mask, Iterable) and not isinstance(mask, Mapping):
            masks = list(mask)
        else:
            raise UsageError(f"mask must hold one of each of {count} environments, not {mask!r}.")
        if self.info.mask and (
            len(masks) != count or masks[0] is None and self.info.mask != "observation"
        ):
            raise UsageError(
                f"{self.info.name} says which actions are legal: give mask, one of each of {count} "
                "environments."
            )
        try:
            rows = [self._row(*one) for one in zip(observations, masks)]
        except EnvFailure as error:
            raise UsageError(
                f"A policy of {self.info.name} was given what its environment never shows: {error}."
            ) from None
        actions = [self._action_of(action) for action in self.act(np.stack(rows), first)]
        return actions[0] if self._single else np.array(actions)

    def _row(self, obs, mask):
        """An observation as the network is shown it, [F]; raises EnvFailure if it does not fit."""
        row = self._read(obs)
        if not np.isfinite(row).all():
            raise EnvFailure("its observation has numbers that are not finite")
        if not self.info.mask:
            return row
        if self.info.mask == "observation" and mask is None:
            mask = obs.get(MASK_KEY)
        legal = read_mask(mask, self.info, "mask")
        if not can_act(legal, self.info.parts):
            legal = np.ones_like(legal)  # an episode is over, and no action counts
        return np.concatenate([row, legal])

    def act(self, obs, first=None):
        """As a call, for obs [N, ...] and actions [N] that both count from 0."""
        first = self._fresh if first is None else np.asarray(first, bool) | self._fresh
        push(self._window, obs, first, self._action)
        self._fresh = np.zeros(len(first), bool)
        inputs = network_inputs(self._window)
        found = self._look(inputs)
        if self.sample:
            self._action = draw_actions(self._rng, found, self.info.parts)
        else:
            legal = legal_actions(self.info, self._window.obs[:, -1])
            self._action = epsilon_greedy(
                self._rng, found, self.info.num_actions, self.epsilon, legal, self.info.parts
            )
        return self._action


def _apart(obs, space):
    """Observations of N environments, one by one.

    They come as a list or tuple of N, or as gymnasium's vectors have them: each part of a space for
    all environments together.
    """
    if isinstance(obs, Mapping):
        named = space.spaces if isinstance(space, spaces.Dict) else {}
        parts = [_apart(part, named.get(name)) for name, part in obs.items()]
        return [dict(zip(obs, each)) for each in _side_by_side(parts)]
    if isinstance(obs, tuple) and isinstance(space, spaces.Tuple):
        if len(obs) == len(space.spaces):
            return list(_side_by_side(list(map(_apart, obs, space.spaces))))
    if isinstance(obs, (list, tuple)):
        return list(obs)
    return list(obs) if np.ndim(obs) else [obs]


def _side_by_side(parts):
    """Rows of the parts of observations; raises UsageError if some have more."""
    rows = {len(part) for part in parts}
    if len(rows) > 1:
        raise UsageError(
            "The parts of the observations have different numbers of rows: "
            f"{', '.join(str(len(part)) for part in parts)}; give one of each environment."
        )
    return zip(*parts)


def load_policy(run_dir, checkpoint=None, *, epsilon=0.0, sample=False, seed=0, loops=None):
    """The Policy of a run's newest checkpoint, of the one named, or of "best" (the one that played
    best while it trained); see `Policy` and `load_run` for the others.

    Raises UsageError if there is none that is whole, or nothing to draw from.
    """
    trained = load_run(run_dir, checkpoint, loops)
    if sample and (not trained.algorithm.is_policy or epsilon):
        raise UsageError(
            "--sample draws from the policy of a PPO run, without --epsilon; leave it out."
        )
    return Policy(trained, epsilon=epsilon, sample=sample, seed=seed)
