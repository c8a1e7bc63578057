"""One game of a trained run, with what the network held of each step."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.games.envs import close_env, env_fn_of, without_curriculum
from tfdqt.games.trained import Policy
from tfdqt.games.vec_envs import game_seed
from tfdqt.games.window import network_inputs
from tfdqt.report.maps import Maps, attention_maps, influence_maps

GAMES_OF_VALUE = 5  # games whose values are compared with what followed


class Explained(NamedTuple):
    """A game of T steps; of arrays each has a row a step."""

    frames: list  # of pictures [H, W, 3] uint8, or of None where the environment draws none
    scores: np.ndarray  # [T, A] values, or probabilities of a policy
    quantiles: np.ndarray | None  # [T, A, N] of the return, of a run that learns them
    actions: np.ndarray  # [T]
    rewards: np.ndarray  # [T]
    life_lost: np.ndarray  # [T] bool
    attention: np.ndarray | None  # [T, blocks, context] shares of the steps, of a gpt
    maps: Maps | None  # over the entries of an observation
    names: tuple  # of the actions [A]
    ended: bool  # whether the game is over behind the last step, and nothing can follow


def play_explained(
    trained, *, seed=0, max_steps=300, epsilon=0.0, sample=False, pictures=True, look=None
):
    """Play one game of a TrainedRun and tell what the network held: -> Explained.

    A run without a picture of its environment is played without. epsilon, sample, seed: as for
    `Policy`. look: a `Look`, where several games share it.
    """
    trained = trained._replace(settings=without_curriculum(trained.settings))
    env_fn = env_fn_of(trained.settings)
    env, pictures = _make(env_fn, pictures)
    policy = Policy(trained, epsilon=epsilon, sample=sample, seed=seed)
    look = look or Look(trained)
    frames = []
    windows = []
    rows = []
    try:
        obs, info = env.reset(seed=int(game_seed(seed)))
        policy.reset()
        lives = info.get("lives")
        over = False
        while not over and len(rows) < max_steps:
            frames.append(np.asarray(env.render()) if pictures else None)
            mask = info.get("action_mask") if trained.info.mask == "info" else None
            action = policy(obs, mask=mask)
            inputs = network_inputs(policy._window)
            windows.append({name: inputs[name].copy() for name in trained.net.model.input})
            chosen = int(policy._action[0])
            obs, reward, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            lost = lives is not None and info.get("lives", lives) < lives
            lives = info.get("lives", lives)
            rows.append((*look.at(windows[-1]), chosen, float(reward), lost))
        margin = margin_of(env)
    finally:
        close_env(env)
    scores, quantiles, shares, actions, rewards, lost = zip(*rows)
    shares = None if shares[0] is None else np.stack(shares)
    return Explained(
        frames,
        np.stack(scores),
        None if quantiles[0] is None else np.stack(quantiles),
        np.array(actions),
        np.array(rewards),
        np.array(lost, bool),
        look.over_steps(shares),
        look.maps(shares, windows, margin, seed),
        action_names(env, trained.info),
        terminated,
    )


def _make(env_fn, pictures):
    """-> (environment, whether it draws pictures)."""
    if pictures:
        try:
            env = env_fn(render_mode="rgb_array")
            if env.render_mode == "rgb_array":
                return env, True
            close_env(env)
        except Exception:  # it may not draw at all; it plays without
            pass
    return env_fn(), False


def margin_of(env):
    """`metadata["picture_margin"]` of an environment, None without a whole number there."""
    margin = (getattr(env.unwrapped, "metadata", None) or {}).get("picture_margin")
    return margin if isinstance(margin, int) and margin >= 0 else None


def action_names(env, info):
    """What the actions are called: Atari's names, else their numbers."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    if meanings is not None and len(meanings()) == info.num_actions:
        return tuple(meanings())
    return tuple(str(i) for i in range(info.num_actions))


class Look:
    """What a TrainedRun's network holds of windows.

    whole: whether attention and what the choice hangs on are looked at, which takes longer.
    """

    def __init__(self, trained, *, whole=True):
        self.trained = trained
        self.whole = whole
        self.network = trained.settings["network"]
        self._compiled = tf.function(trained.net.apply)
        self._attend = None
        if whole and self.network.network == "gpt":
            from tfdqt.games.inside import make_attention  # loads Keras

            attend = make_attention(trained.net.model, trained.info, self.network)
            self._attend = tf.function(attend)

    def _outputs(self, inputs):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return self._compiled(self.trained.weights, tensors)

    def _scores(self, outputs):
        """What the actions of the last step are chosen by: [N, A], of a policy probabilities."""
        scores = np.asarray(self.trained.algorithm.scores(outputs))[:, -1]
        if self.trained.algorithm.is_policy:
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
        return scores

    def _score(self, inputs):
        return self._scores(self._outputs(inputs))

    def at(self, inputs):
        """Of one window: (scores [A], quantiles [A, N] or None, attention or None).

        Attention: [blocks, tokens of a window], see `make_attention`.
        """
        outputs = self._outputs(inputs)
        quantiles = None
        if not self.trained.algorithm.is_policy and self.network.quantiles > 1:
            quantiles = np.asarray(outputs)[0, -1]
        shares = self._attend(inputs).numpy()[0] if self._attend else None
        return self._scores(outputs)[0], quantiles, shares

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
        values = played.scores.max(axis=1)
        for step in np.flatnonzero(np.isfinite(followed)):
            rows.append(
                dict(game=game, step=int(step), value=values[step], followed=followed[step])
            )
    return rows
