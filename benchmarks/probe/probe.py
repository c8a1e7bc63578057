"""What a Q-network says after each of its blocks, compared with look-ahead in the environment.

Look-ahead is explicit: copies of the environment are stepped by every sequence of actions, and the
whole network's values stand at the leaves.
"""

from typing import NamedTuple

import numpy as np

from tfdqt.backend import keras
from tfdqt.errors import UsageError
from tfdqt.games.flat import flatten_q, make_act, make_scores
from tfdqt.games.reader import make_reader
from tfdqt.games.spaces import make_action
from tfdqt.games.state import NoState, env_state, restore_env
from tfdqt.games.window import Window, make_window, network_inputs, push


class Tree(NamedTuple):
    """All that can happen from N states within D steps, a node each, breadth first.

    The N roots come first.
    """

    windows: Window  # obs [M, C, ...], first [M, C], prev_action [M, C]: what the network is shown
    reward: np.ndarray  # [M] of the step that led to the node
    over: np.ndarray  # [M] whether the return ends there
    children: (
        np.ndarray
    )  # [M, A] the nodes that actions lead to; -1 for leaves and where it is over
    depth: int  # D


# --------------------------------------------------------------------------------------------------
# Look-ahead


def roots_of(env, info, net, weights, count, *, epsilon=0.1, every=5, seed=0):
    """States met while playing epsilon-greedily, one in so many steps.

    Returns a list of (window [1, C, ...], state, lives). Raises UsageError for an environment whose
    state can't be copied.
    """
    act = make_act(net)
    rng = np.random.default_rng([seed, 7])
    obs, details = env.reset(seed=seed)
    try:
        env_state(env)
    except NoState as error:
        raise UsageError(
            f"The state of {info.name} can't be copied ({error}), so there is no look-ahead; give "
            "it get_state() and set_state()."
        ) from None
    action_of = make_action(info.action_space)
    row = make_row(info)
    window = make_window(info, 1, net.context)
    push(window, row(obs), np.ones(1), -1)
    roots = []
    steps = 0
    while len(roots) < count:
        if steps % every == every - 1:
            copy = Window(*(part.copy() for part in window))
            roots.append((copy, env_state(env), details.get("lives", 0)))
        if rng.random() < epsilon:
            action = int(rng.integers(info.num_actions))
        else:
            action = int(act(weights, network_inputs(window))[0])
        obs, _, terminated, truncated, details = env.step(action_of(action))
        steps += 1
        over = terminated or truncated
        if over:
            obs, details = env.reset()
            window = make_window(info, 1, net.context)
        push(window, row(obs), np.full(1, over), np.array([action]))
    return roots


def make_row(info):
    """`row(obs)`: an observation as a row of a window, [1, F]."""
    read = make_reader(info).read
    return lambda obs: read(obs)[None]


def grow(env, info, roots, depth, *, life_loss_ends=False):
    """Step copies of the environment from every root by every sequence of actions: -> Tree.

    Chance falls as the saved random state has it, the same for all actions.

    Args:
      roots: what `roots_of` gives.
      depth: length of the sequences.
      life_loss_ends: whether a lost life ends the return.
    """
    row = make_row(info)
    action_of = make_action(info.action_space)
    windows = []
    rewards = []
    overs = []
    children = []
    states = []

    def add(window, reward, over, state, lives):
        """Add a node: -> its number."""
        windows.append(window)
        rewards.append(reward)
        overs.append(over)
        children.append([-1] * info.num_actions)
        states.append((state, lives))
        return len(windows) - 1

    def step(node, action):
        """Take an action from a copy of a node's environment: -> the number of the new node."""
        state, lives = states[node]
        restore_env(env, state, reset=False)
        obs, reward, terminated, _, details = env.step(action_of(action))
        left = details.get("lives", 0)
        over = bool(terminated or (life_loss_ends and left < lives))
        window = Window(*(part.copy() for part in windows[node]))
        push(window, row(obs), np.zeros(1, bool), np.array([action]))
        return add(window, float(reward), over, None if over else env_state(env), left)

    level = [add(window, 0.0, False, state, lives) for window, state, lives in roots]
    env.reset()  # so that it may be restored without a reset each time
    for _ in range(depth):
        next_level = []
        for node in level:
            for action in range(info.num_actions):
                child = step(node, action)
                children[node][action] = child
                if not overs[child]:
                    next_level.append(child)
        level = next_level
    whole = Window(*(np.concatenate(parts) for parts in zip(*windows)))
    return Tree(whole, np.array(rewards), np.array(overs), np.array(children), depth)


def look_ahead(tree, q, roots, gamma):
    """Values of the actions at the roots by look-ahead of each depth: -> [D + 1, roots, A].

    Depth 0 is `q` itself, [M, A]; a step deeper replaces it by the reward and the discounted best
    of the next state.
    """
    values = q
    targets = [q[:roots]]
    for _ in range(tree.depth):
        # Nodes without children keep q: they are only asked for at depths at which they are leaves.
        best = np.where(tree.over, 0.0, values.max(axis=1))
        stepped = tree.reward + gamma * best
        values = np.where(tree.children >= 0, stepped[tree.children], values)
        targets.append(values[:roots])
    return np.array(targets)


# --------------------------------------------------------------------------------------------------
# What a network says


def values_at(net, weights, windows, *, batch=1_024):
    """Q-values at the last step of windows, [M, A]."""
    scores = make_scores(net)
    inputs = network_inputs(windows)
    count = len(windows.first)
    values = []
    for begin in range(0, count, batch):
        rows = np.arange(begin, begin + batch) % count  # always as many, so it is compiled once
        chosen = {name: inputs[name][rows] for name in net.model.input}
        values.append(scores(weights, chosen).numpy())
    return np.concatenate(values)[:count]


def lenses(model, info, cfg):
    """The network read after each block, from none to all: list of (FlatModel, weights)."""
    from tfdqt.games.inside import build_lens  # loads Keras

    models = [build_lens(model, info, cfg, depth) for depth in range(cfg.layers + 1)]
    nets = [flatten_q(each, info) for each in models]
    return [(net, net.start) for net in nets]


def hidden_states(model, info, cfg, depth, windows):
    """What the head would read at the last step of windows after `depth` blocks, [M, D]."""
    from tfdqt.games.networks import gpt_body, input_layers  # loads Keras

    layers = input_layers(info, cfg)
    body = keras.Model(layers, gpt_body(layers, info, cfg, depth))
    for layer in body.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    inputs = network_inputs(windows)
    return body({name: inputs[name] for name in layers}).numpy()[:, -1]


def attention_weights(model, windows, info, cfg):
    """Where the last token of windows looks in each block of a gpt, [layers, T].

    The mean over windows and heads; T tokens, of the oldest step first.
    """
    from tfdqt.games.inside import make_attention  # loads Keras

    inputs = network_inputs(windows)
    return make_attention(model, info, cfg)(inputs).numpy().mean(axis=0)


def importance(net, weights, windows, *, seed=0):
    """What the values rest on, [F]: how far they change when one feature is another state's.

    1 - the correlation of the advantages before and after. The feature is exchanged in all steps of
    a window at once (permutation importance, Breiman, 2001). NaN without advantages.
    """
    count = len(windows.first)
    features = windows.obs.shape[-1]
    order = np.random.default_rng([seed, 9]).permutation(count)
    obs = np.repeat(windows.obs[None], features + 1, axis=0)  # the last copy stays whole
    for feature in range(features):
        obs[feature, ..., feature] = windows.obs[order, :, feature]
    rest = (np.concatenate([part] * (features + 1)) for part in windows[1:])
    whole = Window(obs.reshape(-1, *obs.shape[2:]), *rest)
    values = values_at(net, weights, whole).reshape(features + 1, count, -1)
    return np.array([1.0 - agreement(values[-1], each)[0] for each in values[:-1]])


# --------------------------------------------------------------------------------------------------
# Statistics


def agreement(one, other):
    """How two tables of action values [N, A] agree.

    Returns (correlation of their advantages, part of the states with equal best actions).
    """
    one = one - one.mean(axis=1, keepdims=True)
    other = other - other.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(one) * np.linalg.norm(other)
    same = float((one.argmax(axis=1) == other.argmax(axis=1)).mean())
    return (float((one * other).sum() / sizes) if sizes > 0 else float("nan")), same


def linear_probe(x, y, *, ridge=1e-2, seed=0):
    """How a linear map of x [N, D] agrees with the values y [N, A] on a held-out third.

    The map is fitted by ridge regression to the advantages; returned is the correlation. No R^2: a
    few states near the end of an episode have most of the variance.
    """
    y = y - y.mean(axis=1, keepdims=True)
    order = np.random.default_rng(seed).permutation(len(x))
    test = order[: len(x) // 3]
    train = order[len(x) // 3 :]
    centre = x[train].mean(axis=0)
    scale = x[train].std(axis=0) + 1e-6
    z = np.concatenate([(x - centre) / scale, np.ones((len(x), 1))], axis=1)
    gram = z[train].T @ z[train] + ridge * len(train) * np.eye(z.shape[1])
    return agreement(z[test] @ np.linalg.solve(gram, z[train].T @ y[train]), y[test])[0]
