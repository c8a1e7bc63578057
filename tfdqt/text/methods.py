"""Data as each method of a TextConfig learns from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfdqt.text.replay import Episode, Transition, episodes_of, take_rows


class Data(NamedTuple):
    """What a policy did, such as a task's own or whoever wrote a text."""

    items: Transition | Episode  # of arrays [N, ...]
    returns: np.ndarray  # [N], of the whole game that each comes from
    to_go: np.ndarray  # discounted return from each decision on, of the shape of items.reward
    games: np.ndarray  # returns of all games, one each


def to_go(rewards, gamma):
    """Discounted sums of what is still to come: [..., S] -> [..., S]."""
    total = np.zeros(rewards.shape[:-1])
    sums = np.empty(rewards.shape)
    for i in reversed(range(rewards.shape[-1])):
        total = rewards[..., i] + gamma * total
        sums[..., i] = total
    return sums


def prepare(data, method, *, keep_best=0.1):
    """The items of Data as a method of TextConfig learns from them.

    Only the best for filtered, whole returns for montecarlo.
    """
    items = data.items
    if method == "montecarlo":
        return items._replace(reward=data.to_go)
    if method == "filtered":
        rows = data.returns >= np.quantile(data.games, 1 - keep_best)  # of equal games all are kept
        return take_rows(items, rows)
    return items


def prepared_episodes(tokenizer, rows, length, reward_fn, cfg):
    """`episodes_of` rows of token ids, as the method of a TextConfig learns from them."""
    items = episodes_of(tokenizer, rows, length, reward_fn, reward_at=cfg.reward_at)
    if not len(items.reward):
        return items
    returns = items.reward.sum(axis=1)
    data = Data(items, returns, to_go(items.reward, cfg.gamma), returns)
    return prepare(data, cfg.method, keep_best=cfg.keep_best)
