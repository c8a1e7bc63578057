"""One game of a trained run, with what the network held of each step."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from tfdqt.backend import keras, tf
from tfdqt.games.envs import close_env, env_fn_of, without_curriculum
from tfdqt.games.evaluate import Policy
from tfdqt.games.search import game_seed
from tfdqt.games.window import network_inputs

GAMES_OF_VALUE = 5  # games whose values are compared with what followed


class Explained(NamedTuple):
    """A game of T steps; of arrays each has a row a step."""

    frames: list  # of pictures [H, W, 3] uint8, or of None where the environment draws none
    scores: np.ndarray  # [T, A] values, or probabilities of a policy
    quantiles: np.ndarray | None  # [T, A, N] of the return, of a run that learns them
    actions: np.ndarray  # [T]
    rewards: np.ndarray  # [T]
    life_lost: np.ndarray  # [T] bool
    attention: np.ndarray | None  # [T, blocks, context] shares of a gpt that reads step by step
    names: tuple  # of the actions [A]
    ended: bool  # whether the game is over behind the last step, and nothing can follow


def play_explained(
    trained, *, seed=0, max_steps=300, epsilon=0.0, sample=False, pictures=True, look=None
):
    """Play one game of a TrainedRun and tell what the network held: -> Explained.

    A run without a picture of its environment is played without. epsilon, sample, seed: as for
    `Policy`. look: from `make_look`, where several games share it.
    """
    trained = trained._replace(settings=without_curriculum(trained.settings))
    env_fn = env_fn_of(trained.settings)
    env, pictures = _make(env_fn, pictures)
    policy = Policy(trained, epsilon=epsilon, sample=sample, seed=seed)
    look = look or make_look(trained)
    frames = []
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
            scores, quantiles, attention = look(network_inputs(policy._window))
            chosen = int(policy._action[0])
            obs, reward, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            lost = lives is not None and info.get("lives", lives) < lives
            lives = info.get("lives", lives)
            rows.append((scores, quantiles, chosen, float(reward), lost, attention))
    finally:
        close_env(env)
    scores, quantiles, actions, rewards, lost, attention = zip(*rows)
    return Explained(
        frames,
        np.stack(scores),
        None if quantiles[0] is None else np.stack(quantiles),
        np.array(actions),
        np.array(rewards),
        np.array(lost, bool),
        None if attention[0] is None else np.stack(attention),
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


def action_names(env, info):
    """What the actions are called: Atari's names, else their numbers."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    if meanings is not None and len(meanings()) == info.num_actions:
        return tuple(meanings())
    return tuple(str(i) for i in range(info.num_actions))


def make_look(trained, *, attends=True):
    """`look(inputs of one window) -> (scores [A], quantiles [A, N] or None, attention or None)`.

    attends: whether attention is looked at, which takes longer.
    """
    algorithm = trained.algorithm
    network = trained.settings["network"]
    attend = make_attention(trained) if attends and reads_steps(network) else None
    compiled = tf.function(trained.net.apply)
    names = list(trained.net.model.input)

    def look(inputs):
        tensors = {name: tf.constant(inputs[name]) for name in names}
        outputs = compiled(trained.weights, tensors)
        scores = np.asarray(algorithm.scores(outputs))[0, -1]
        quantiles = None
        if algorithm.is_policy:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        elif network.quantiles > 1:
            quantiles = np.asarray(outputs)[0, -1]
        return scores, quantiles, attend(inputs) if attend else None

    return look


def reads_steps(network):
    """Whether a network is a gpt of a token a step, whose attention says where it looks."""
    plain = network.network == "gpt" and network.tokens == "steps" and network.loops == 1
    return plain and network.places == "history" and network.context > 1


def make_attention(trained):
    """`attend(inputs of one window) -> [blocks, context]`, the mean over heads at the last step."""
    from tfdqt.games.networks import attention_shares, build_attention_probe  # loads Keras

    cfg = trained.settings["network"]
    model = trained.net.model
    probe = tf.function(build_attention_probe(model, cfg))

    def attend(inputs):
        outputs = probe({name: tf.constant(inputs[name]) for name in model.input})
        episode = np.cumsum(inputs["first"], axis=1)
        visible = episode == episode[:, -1:]
        blocks = [qkv.numpy() for qkv in keras.tree.flatten(outputs)]
        return np.stack([attention_shares(qkv, visible, cfg.heads)[0] for qkv in blocks])

    return attend


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
    look = make_look(trained, attends=False)
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
