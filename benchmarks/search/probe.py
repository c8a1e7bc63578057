"""Is it a search? What a Q-network says after each of its blocks, beside explicit look-ahead from copies of the environment."""

from typing import NamedTuple

import numpy as np

from tfdqt.acting import Window, make_window, push, shown
from tfdqt.backend import keras
from tfdqt.config import UsageError
from tfdqt.envs import env_state, restore_env
from tfdqt.networks import flatten_model, make_act, make_scores


class Tree(NamedTuple):
    """All that can happen from some states within D steps, node by node, breadth first; the N roots come first."""

    windows: Window  # obs [M, C, ...], first [M, C], prev_action [M, C]: what the network is shown at each node
    reward: np.ndarray  # [M] of the step that led to the node
    over: np.ndarray  # [M] whether the return ends there
    children: np.ndarray  # [M, A] the nodes behind each action; -1 for leaves and where it is over
    depth: int  # D


def roots_of(env, info, networks, weights, count, *, epsilon=0.1, every=5, seed=0):
    """States met while playing epsilon-greedily, every so many steps: -> list of (window [1, C, ...], state, lives).

    Raises UsageError for an environment whose state can't be copied.
    """
    act, rng, found = make_act(networks), np.random.default_rng([seed, 7]), []
    obs, details = env.reset(seed=seed)
    if env_state(env) is None:
        raise UsageError(f"The state of {info.name} can't be copied, so there is no look-ahead; give it get_state() and set_state().")
    window, steps = make_window(info, 1, networks.context), 0
    push(window, _row(env, obs), np.ones(1), -1)
    while len(found) < count:
        if steps % every == every - 1:
            found.append((Window(*(part.copy() for part in window)), env_state(env), details.get("lives", 0)))
        action = int(rng.integers(info.num_actions) if rng.random() < epsilon else act(weights, shown(window))[0])
        obs, _, terminated, truncated, details = env.step(action + getattr(env.action_space, "start", 0))
        steps, over = steps + 1, terminated or truncated
        if over:
            obs, details = env.reset()
            window = make_window(info, 1, networks.context)
        push(window, _row(env, obs), np.full(1, over), np.array([action]))
    return found


def _row(env, obs):
    """An observation as a row of a window, [1, F]; a Discrete one counts from 0."""
    return np.reshape(obs, (1, -1)) - getattr(env.observation_space, "start", 0)


def grow(env, info, roots, depth, *, life_loss_ends=False):
    """Step copies of the environment from every root by every sequence of `depth` actions: -> Tree.

    Chance falls as the saved random state has it, the same for all actions.
    """
    start = getattr(env.action_space, "start", 0)
    windows, rewards, overs, children, states = [], [], [], [], []

    def add(window, reward, over, state, lives):
        windows.append(window)
        rewards.append(reward)
        overs.append(over)
        children.append([-1] * info.num_actions)
        states.append((state, lives))
        return len(windows) - 1

    level = [add(window, 0.0, False, state, lives) for window, state, lives in roots]
    env.reset()
    for _ in range(depth):
        behind = []
        for node in level:
            state, lives = states[node]
            for action in range(info.num_actions):
                restore_env(env, state, reset=False)
                obs, reward, terminated, _, details = env.step(action + start)
                left = details.get("lives", 0)
                over = bool(terminated or (life_loss_ends and left < lives))
                window = Window(*(part.copy() for part in windows[node]))
                push(window, _row(env, obs), np.zeros(1, bool), np.array([action]))
                children[node][action] = add(window, float(reward), over, None if over else env_state(env), left)
                if not over:
                    behind.append(children[node][action])
        level = behind
    return Tree(Window(*(np.concatenate(parts) for parts in zip(*windows))), np.array(rewards), np.array(overs), np.array(children), depth)


def look_ahead(tree, q, roots, gamma):
    """Values of the actions at the roots by look-ahead of each depth, with `q` [M, A] at its leaves: -> [D + 1, roots, A].

    Depth 0 is q itself; a step deeper replaces it by the reward and the discounted best of the next state.
    """
    found, values = [q[:roots]], q
    for _ in range(tree.depth):
        # Nodes without children keep q: they are only asked for at depths at which they are leaves.
        best = np.where(tree.over, 0.0, values.max(axis=1))
        stepped = tree.reward + gamma * best
        values = np.where(tree.children >= 0, stepped[tree.children], values)
        found.append(values[:roots])
    return np.array(found)


def values_at(networks, weights, windows, *, batch=1_024):
    """Q-values at the last step of windows, [M, A]."""
    scores, inputs, count = make_scores(networks), shown(windows), len(windows.first)
    found = []
    for begin in range(0, count, batch):
        rows = np.arange(begin, begin + batch) % count  # always as many, so that it is compiled once
        found.append(scores(weights, {name: inputs[name][rows] for name in networks.model.input}).numpy())
    return np.concatenate(found)[:count]


def lenses(model, info, cfg):
    """The network read after each block, from none to all: list of (Networks, weights)."""
    from tfdqt.gpt import build_lens

    networks = [flatten_model(build_lens(model, info, cfg, depth)) for depth in range(cfg.layers + 1)]
    return [(each, each.start) for each in networks]


def agreement(one, other):
    """How two tables of action values [N, A] agree: (correlation of their advantages, part of equal best actions)."""
    one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(one) * np.linalg.norm(other)
    same = float((one.argmax(axis=1) == other.argmax(axis=1)).mean())
    return (float((one * other).sum() / sizes) if sizes > 0 else float("nan")), same


def linear_probe(x, y, *, ridge=1e-2, seed=0):
    """How a linear map from x [N, D], fitted by ridge regression, agrees with the values y [N, A] on a held-out third: the correlation.

    No R^2: a few states beside the end of an episode have most of the variance.
    """
    y = y - y.mean(axis=1, keepdims=True)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[len(x) // 3:], order[:len(x) // 3]
    centre, scale = x[train].mean(axis=0), x[train].std(axis=0) + 1e-6
    z = np.concatenate([(x - centre) / scale, np.ones((len(x), 1))], axis=1)
    gram = z[train].T @ z[train] + ridge * len(train) * np.eye(z.shape[1])
    return agreement(z[test] @ np.linalg.solve(gram, z[train].T @ y[train]), y[test])[0]


def importance(networks, weights, windows, *, seed=0):
    """What the values rest on: 1 - the correlation of the advantages with those when one feature is another state's: -> [F].

    The feature is exchanged in all steps of a window at once (permutation importance, Breiman, 2001). NaN without advantages.
    """
    count, features = len(windows.first), windows.obs.shape[-1]
    order = np.random.default_rng([seed, 9]).permutation(count)
    obs = np.repeat(windows.obs[None], features + 1, axis=0)  # the last copy stays whole
    for feature in range(features):
        obs[feature, ..., feature] = windows.obs[order, :, feature]
    rest = (np.concatenate([part] * (features + 1)) for part in windows[1:])
    values = values_at(networks, weights, Window(obs.reshape(-1, *obs.shape[2:]), *rest)).reshape(features + 1, count, -1)
    return np.array([1.0 - agreement(values[-1], each)[0] for each in values[:-1]])


def attention_weights(model, windows, cfg):
    """Where the last token of windows looks in each block of the gpt `model`, mean over windows and heads: -> [layers, T]."""
    inputs, first = shown(windows), windows.first.astype(int)
    episode = first.cumsum(axis=1)
    visible = np.repeat(episode == episode[:, -1:], model.get_layer("block0_attention_qkv").output.shape[1] // first.shape[1], axis=1)
    found = []
    for layer in range(cfg.layers):
        qkv = keras.Model(model.input, model.get_layer(f"block{layer}_attention_qkv").output)({name: inputs[name] for name in model.input})
        qkv = qkv.numpy().reshape(*visible.shape, 3, cfg.heads, cfg.width // cfg.heads)
        scores = np.einsum("bhd,bthd->bht", qkv[:, -1, 0], qkv[:, :, 1]) / np.sqrt(qkv.shape[-1])
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True)) * visible[:, None]
        found.append((scores / scores.sum(axis=-1, keepdims=True)).mean(axis=(0, 1)))
    return np.array(found)
