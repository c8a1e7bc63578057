"""How values become actions."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt.errors import UsageError

LONGEST = 100_000  # steps for which a random action may be held


def epsilon_at(step, cfg, end=None):
    """Probability of a random action at environment step `step`.

    A straight line to `end`, by default cfg.epsilon_end, then flat.
    """
    part = min(1.0, step / (cfg.epsilon_fraction * cfg.total_steps))
    return cfg.epsilon_start + part * (
        (cfg.epsilon_end if end is None else end) - cfg.epsilon_start
    )


def epsilon_ladder(count, base=0.4, steepness=7.0):
    """An epsilon for each environment, from `base` down to base^(1 + steepness): [count].

    Ape-X (Horgan et al., 2018).
    """
    return base ** (1 + steepness * np.arange(count) / max(1, count - 1))


def epsilon_greedy(rng, greedy, num_actions, epsilon, legal=None, parts=()):
    """Each of `greedy` [N], or with probability `epsilon` a uniformly random action: [N].

    Drawn from the numpy Generator `rng`. legal: bool [N, A], what may be drawn; None: everything.
    parts: as in `losses`; A is their sum then.
    """
    explore = rng.random(len(greedy)) < epsilon
    if legal is None:
        return np.where(explore, rng.integers(num_actions, size=len(greedy)), greedy)
    drawn = [_draw_legal(rng, part) for part in split_outputs(legal, parts)]
    return np.where(explore, np.ravel_multi_index(drawn, parts) if parts else drawn[0], greedy)


class Held(NamedTuple):
    """The random actions that go on: arrays [N], changed in place."""

    action: np.ndarray  # int64
    left: np.ndarray  # int64, for how many more steps


def hold_nothing(count):
    """A Held of `count` environments in which no action goes on."""
    return Held(np.zeros(count, np.int64), np.zeros(count, np.int64))


def make_explore(info, longest=1) -> Callable:
    """`explore(rng, greedy, epsilon, held, first, legal) -> actions [N]`, epsilon-z-greedy.

    Dabney et al. (2021): a random action is held for up to `longest` steps, d steps with a
    probability in proportion to 1 / d^2. It ends with its episode, or where it is not legal. Fewer
    are begun than by `epsilon_greedy`, so that `epsilon` stays the part of steps that are random.
    info: EnvInfo; held: Held; first [N]: whether a step is an episode's first; the others as in
    `epsilon_greedy`, which it is with `longest` 1. Raises UsageError for more than LONGEST steps.
    """
    if longest > LONGEST:
        raise UsageError(f"--hold must be at most {LONGEST:,}, not {longest:,}.")
    if longest == 1:

        def explore(rng, greedy, epsilon, held, first, legal=None):
            return epsilon_greedy(rng, greedy, info.num_actions, epsilon, legal, info.parts)

        return explore

    weights = 1.0 / np.arange(1, longest + 1) ** 2.0
    ends = np.cumsum(weights) / weights.sum()
    mean = np.arange(1, longest + 1) @ weights / weights.sum()

    def explore_held(rng, greedy, epsilon, held, first, legal=None):
        goes_on = (held.left > 0) & ~np.asarray(first, bool)
        if legal is not None:
            goes_on &= is_legal(legal, held.action, info.parts)
        # Of n steps that choose, p n begin `mean` random ones: p mean / (p mean + 1 - p) = epsilon.
        begun = epsilon / (epsilon + (1 - epsilon) * mean)
        begins = ~goes_on & (rng.random(len(greedy)) < begun)
        drawn = epsilon_greedy(rng, greedy, info.num_actions, 1.0, legal, info.parts)
        lasts = np.minimum(np.searchsorted(ends, rng.random(len(greedy))), longest - 1) + 1
        held.action[...] = np.where(begins, drawn, held.action)
        held.left[...] = np.where(begins, lasts, np.where(goes_on, held.left, 0))
        random = held.left > 0
        held.left[random] -= 1
        return np.where(random, held.action, greedy)

    return explore_held


def is_legal(legal, actions, parts=()):
    """Whether actions [N] are, by legal [N, A] bool; parts: as in `losses`: [N] bool."""
    values = np.unravel_index(actions, parts) if parts else [actions]
    rows = np.arange(len(actions))
    each = [part[rows, value] for part, value in zip(split_outputs(legal, parts), values)]
    return np.logical_and.reduce(each)


def can_act(legal, parts=()):
    """Whether some action is legal, by legal [A] bool; parts: as in `losses`."""
    return all(part.any() for part in split_outputs(legal, parts))


def _draw_legal(rng, legal):
    counts = np.cumsum(legal, axis=-1)
    drawn = rng.integers(counts[:, -1])  # which of the legal ones
    return (counts <= drawn[:, None]).sum(axis=-1)


def split_outputs(values, parts):
    """The outputs [..., A] for each part of an action; all of them if it has no parts."""
    return np.split(values, np.cumsum(parts)[:-1], axis=-1) if parts else [values]


def best_actions(scores, parts=()):
    """The action of the greatest score: [B, A] -> [B]; parts: as in `losses`."""
    each = [part.argmax(axis=-1) for part in split_outputs(scores, parts)]
    return np.ravel_multi_index(each, parts) if parts else each[0]


def draw_actions(rng, logits, parts=()):
    """An action by the probabilities of its logits: [B, A] -> [B]; parts: as in `losses`."""
    each = [choose_actions(rng, part, greedy=False) for part in split_outputs(logits, parts)]
    return np.ravel_multi_index(each, parts) if parts else each[0]


def narrow(logits, *, temperature=1.0, top_k=0, top_p=1.0):
    """Log-weights [B, A] as probabilities [B, A], after temperature.

    Only the `top_k` best keep any, and of them the fewest that hold `top_p`.
    """
    logits = np.asarray(logits, np.float64) / max(temperature, 1e-6)
    if top_k:
        floor = np.sort(logits, axis=-1)[:, -min(top_k, logits.shape[-1]), None]
        logits = np.where(logits >= floor, logits, -np.inf)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    if top_p < 1:
        order = np.argsort(-p, axis=-1, kind="stable")
        ranked = np.take_along_axis(p, order, -1)
        ranked[np.cumsum(ranked, axis=-1) - ranked >= top_p] = 0  # the first one is always kept
        np.put_along_axis(p, order, ranked, -1)
        p /= p.sum(axis=-1, keepdims=True)
    return p


def choose_actions(rng, logits, *, greedy=True, **narrowing):
    """One action for each row of log-weights [B, A]: the best, or drawn as `narrow` says: [B]."""
    if greedy:
        return np.argmax(logits, axis=-1)
    ends = np.cumsum(narrow(logits, **narrowing), axis=-1)
    return np.minimum(
        (ends < rng.random((len(ends), 1)) * ends[:, -1:]).sum(axis=-1), ends.shape[-1] - 1
    )
