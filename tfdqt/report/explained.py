"""One game of a trained run, with what the network held of each step."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from gymnasium.spaces import Discrete

from tfdqt.backend import tf, traced
from tfdqt.games.envs import close_env, env_fn_of, its_failures, without_curriculum
from tfdqt.games.trained import Policy
from tfdqt.games.vec_envs import env_seeds, game_seed, make_slots
from tfdqt.games.window import network_inputs
from tfdqt.losses import ILLEGAL, log_probabilities, one_hot
from tfdqt.report.maps import Maps, attention_maps, best_values, influence_maps

GAMES_OF_VALUE = 5  # games whose values are compared with what followed
MOST_MARGIN = 64  # cells around those of an observation


class Explained(NamedTuple):
    """A game of T steps; of arrays each has a row a step. A: outputs for actions or their parts."""

    frames: list | None  # of pictures [H, W, 3] uint8; None where the environment draws none
    scores: np.ndarray  # [T, A] values, or probabilities of a policy; NaN of what is not legal
    quantiles: np.ndarray | None  # [T, A, N] of the return, of a run that learns them
    chosen: np.ndarray  # [T, A] bool, what was done; of actions of several parts one of each
    rewards: np.ndarray  # [T]
    life_lost: np.ndarray  # [T] bool
    attention: np.ndarray | None  # [T, blocks, context] shares of the steps, of a gpt
    maps: Maps | None  # over the entries of an observation
    names: tuple  # of the outputs [A]
    ended: bool  # whether the game is over behind the last step, and nothing can follow


def play_explained(
    trained, *, seed=0, max_steps=300, epsilon=0.0, sample=False, pictures=True, look=None
):
    """Play one game of a TrainedRun and tell what the network held: -> Explained.

    It is the first of those that `play_games` plays with the seed. An environment that draws no
    picture is played without. epsilon, sample, seed: as for `Policy`. look: a `Look`, where several
    games share it. Raises EnvFailure for an environment that fails.
    """
    trained = trained._replace(settings=without_curriculum(trained.settings))
    env, pictures = _make(env_fn_of(trained.settings), pictures)
    try:
        policy = Policy(trained, epsilon=epsilon, sample=sample, seed=seed)
        return _play(env, policy, look or Look(trained), max_steps, pictures, seed)
    finally:
        close_env(env)


def _play(env, policy, look, max_steps, pictures, seed):
    info = policy.info
    with its_failures(info.name, "in a game"):
        slots, out = make_slots(lambda: env, info, env_seeds(game_seed(seed), 1))
    slot = slots.slots[0]
    policy.reset(1)
    frames = [] if pictures else None
    windows = []
    rows = []
    while not slot.ended and len(rows) < max_steps:
        if frames is not None:
            frames.append(picture_of(env))
            frames = None if frames[-1] is None else frames
        action = int(policy.act(out["obs"], out["first"])[0])
        inputs = network_inputs(policy._window)
        windows.append({name: inputs[name].copy() for name in policy.trained.net.model.input})
        lives = slot.lives
        with its_failures(info.name, "in a game"):
            slot.step(action)
        reward = float(out["reward"][0])
        rows.append((*look.at(windows[-1]), action, reward, slot.lives < lives))
    scores, quantiles, shares, actions, rewards, lost = zip(*rows)
    shares = None if shares[0] is None else np.stack(shares)
    return Explained(
        frames,
        np.stack(scores),
        None if quantiles[0] is None else np.stack(quantiles),
        one_hot(np.array(actions), info.outputs, info.parts).numpy() > 0,
        np.array(rewards),
        np.array(lost, bool),
        look.over_steps(shares),
        look.maps(shares, windows, margin_of(env), seed),
        action_names(env, info),
        bool(slot.ended and out["discount"][0] == 0),
    )


def _make(env_fn, pictures):
    """-> (environment, whether it says that it draws pictures)."""
    if pictures:
        try:
            env = env_fn(render_mode="rgb_array")
            if env.render_mode == "rgb_array":
                return env, True
            close_env(env)
        except Exception:  # it may not draw at all; it plays without
            pass
    return env_fn(), False


def picture_of(env):
    """What an environment draws now, [H, W, 3] uint8; None if that is no picture."""
    try:
        picture = np.asarray(env.render())
    except Exception:  # a game without a picture is better than none
        return None
    known = picture.ndim == 3 and picture.shape[2] in (3, 4) and min(picture.shape) > 0
    if not known or picture.dtype != np.uint8:
        return None
    return picture[..., :3]


def margin_of(env):
    """`metadata["picture_margin"]` of an environment, None without a number of cells there."""
    margin = (getattr(env.unwrapped, "metadata", None) or {}).get("picture_margin")
    return margin if type(margin) is int and 0 <= margin <= MOST_MARGIN else None


def action_names(env, info):
    """What the outputs for actions are called: Atari's names, else the environment's numbers.

    Of actions of several parts "1: 4" is the value 4 of the part 1, both counted from 0.
    """
    if info.parts:
        return tuple(f"{part}: {i}" for part, count in enumerate(info.parts) for i in range(count))
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    if meanings is not None and len(meanings()) == info.num_actions:
        return tuple(str(each) for each in meanings())
    start = int(info.action_space.start) if isinstance(info.action_space, Discrete) else 0
    return tuple(str(start + i) for i in range(info.num_actions))


class Look:
    """What a TrainedRun's network holds of windows.

    whole: whether attention and what the choice hangs on are looked at, which takes longer.
    """

    def __init__(self, trained, *, whole=True):
        self.trained = trained
        self.whole = whole
        self.network = trained.settings["network"]
        self._compiled = traced(trained.net.apply)
        self._attend = None
        if whole and self.network.network == "gpt":
            from tfdqt.games.inside import make_attention  # loads Keras

            attend = make_attention(trained.net.model, trained.info, self.network)
            self._attend = traced(attend)

    def _outputs(self, inputs):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return self._compiled(self.trained.weights, tensors)

    def _scores(self, outputs):
        """What the actions of the last step are chosen by: [N, A], of a policy probabilities.

        NaN where an action is not legal.
        """
        scores = self.trained.algorithm.scores(outputs)[:, -1]
        legal = scores > ILLEGAL / 2
        if self.trained.algorithm.is_policy:
            scores = tf.exp(log_probabilities(scores, self.trained.net.parts))
        return np.where(legal, scores, np.nan).astype(float)

    def _score(self, inputs):
        return self._scores(self._outputs(inputs))

    def at(self, inputs):
        """Of one window: (scores [A], quantiles [A, N] or None, attention or None).

        Attention: [blocks, tokens of a window], see `make_attention`; of random loops those that
        are run.
        """
        outputs = self._outputs(inputs)
        scores = self._scores(outputs)[0]
        quantiles = None
        if not self.trained.algorithm.is_policy and self.network.quantiles > 1:
            quantiles = np.where(np.isnan(scores)[:, None], np.nan, outputs[0, -1])
        shares = None
        if self._attend:
            shares = self._attend(inputs).numpy()[0]
            limit = self.trained.net.loop_limit
            if limit is not None:
                loops = int(self.trained.weights[limit])
                shares = shares[: loops * self.network.layers]
        return scores, quantiles, shares

    def over_steps(self, shares):
        """Attention [T, blocks, tokens] to each step of the window, [T, blocks, context].

        None of a window of one step.
        """
        if shares is None or self.network.context == 1:
            return None
        return shares.reshape(*shares.shape[:2], self.network.context, -1).sum(axis=-1)

    def maps(self, shares, windows, margin, seed):
        """The Maps of a game: of attention [T, blocks, tokens], or of what its choices hang on.

        windows: inputs of each step, of one window. margin: as in Maps.
        """
        if not self.whole:
            return None
        info = self.trained.info
        found = None if shares is None else attention_maps(shares, info, self.network, margin)
        if found is not None:
            return found
        inputs = {name: np.concatenate([each[name] for each in windows]) for name in windows[0]}
        policy = self.trained.algorithm.is_policy
        return influence_maps(self._score, inputs, info, margin, policy=policy, seed=seed)


def what_followed(game, cfg):
    """The discounted return behind each step of an Explained game: [T], NaN where it is not known.

    As the learner sees it: signs of rewards, and lives as games, where the settings say so. Steps
    of a game that was cut short are not known where what is cut off counts for over a hundredth.
    """
    rewards = game.rewards
    if getattr(cfg, "reward_transform", "none") == "sign":
        rewards = np.sign(rewards)
    ends = game.life_lost if getattr(cfg, "life_loss_ends", False) else np.zeros(len(rewards), bool)
    total = 0.0
    weight = 0.0 if game.ended else 1.0  # of what is cut off
    returns = np.full(len(rewards), np.nan)
    for t in reversed(range(len(rewards))):
        total = rewards[t] + cfg.gamma * total * (not ends[t])
        weight *= cfg.gamma * (not ends[t])
        returns[t] = total if weight < 0.01 else np.nan
    return returns


def value_rows(trained, cfg, *, seed=0, max_steps=1_000):
    """Rows of some games: the value of each step's best action, and what followed.

    Of a policy, which has values of states, none.
    """
    if trained.algorithm.is_policy:
        return []
    look = Look(trained, whole=False)
    play = functools.partial(
        play_explained, trained, max_steps=max_steps, pictures=False, look=look
    )
    rows = []
    for game in range(GAMES_OF_VALUE):
        played = play(seed=seed + game)
        followed = what_followed(played, cfg)
        values = best_values(played.scores, trained.info.parts)
        for step in np.flatnonzero(np.isfinite(followed)):
            rows.append(
                dict(game=game, step=int(step), value=values[step], followed=followed[step])
            )
    return rows
