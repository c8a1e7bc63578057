"""A tree of what can come next, searched by PUCT. Knows no network and no environment.

A simulation walks down from the root. At each node it takes the action of the greatest

    scaled(Q(s, a)) + c P(s, a) sqrt(N(s)) / (1 + N(s, a))

(Silver et al., 2017, "Mastering the game of Go without human knowledge"), until it comes to a node
that was not valued yet. That one is valued, and its value v is backed up: Q(s, a) is the mean of r
+ gamma discount v over the simulations that took a. N(s) counts the valuation of s itself and all
simulations that went on from there, the present one included; N(s, a) counts those by a before it.
Before its first visit an action has the Q(s, a) that it is given. `scaled` maps the least value in
the tree to 0 and the greatest to 1, so that c says the same in every game (Schrittwieser et al.,
2020, "Mastering Atari, Go, chess and shogi by planning with a learned model", equation 5; its c
grows with N by less than a hundredth within 100 simulations and is constant here).

Of actions that score the same the one is taken that the network values most, before its prior: a
state that looks the same after either says nothing of them.

Where repeats are to be avoided, an action that surely leads to what was met before, in the game or
on the way from the root, is barred unless it is the last one of its node.

An action that drew from a random generator is a node of chance: it is drawn anew at each visit, and
has a child for each outcome.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any, NamedTuple

from tfdqt.errors import UsageError

BARRED = -1e300  # the value of an action that is not to be taken


class Step(NamedTuple):
    """What an action led to."""

    state: Any  # whatever the function `step` needs to go on from there
    reward: float
    discount: float  # 0 where nothing comes after it
    over: bool  # whether there is nothing to try after it; at a discount of 1 it still has a value
    drawn: bool = False  # whether chance had a part in it
    outcome: Any = None  # what tells it from other outcomes of chance; hashable


class Node:
    """A state of the tree; its lists have an entry for each legal action, once it is valued."""

    __slots__ = (
        "state",
        "look",
        "over",
        "value",
        "waits",
        "count",
        "legal",
        "prior",
        "first",
        "visits",
        "totals",
        "means",
        "edges",
    )

    def __init__(self, state, look=None, over=False, value=None):
        self.state = state
        self.look = look  # what another state that is no news has too
        self.over = over
        self.value = value  # None: not valued yet
        self.waits = False  # whether it is being valued just now
        self.count = 0
        self.legal = None
        self.prior = None
        self.first = None
        self.visits = None
        self.totals = None
        self.means = None  # of the returns; before the first of them `first`
        self.edges = None  # None: not tried; an _Edge; or those of chance, by outcome


class _Edge(NamedTuple):
    reward: float
    discount: float  # gamma times that of the step
    node: Node


class Leaf(NamedTuple):
    """A node that waits for its value, and how it was come to."""

    node: Node
    path: list  # [(node, index of the action there, edge)] from the root on
    loss: float | None  # what its actions were charged with meanwhile


class Tree:
    """The search for one decision.

    >>> tree = Tree(state, step, gamma=0.99, exploration=1.25)
    >>> tree.expand(tree.descend(), legal=[0, 1], prior=[0.5, 0.5], first=[0.3, 0.1], value=0.3)
    >>> while tree.count < 32:
    ...     leaf = tree.descend()  # None: the simulation came to an end that needs no network
    ...     if leaf is not None:
    ...         tree.expand(leaf, *valued(leaf.node.state))
    >>> tree.choose()

    Args:
      state: of the root.
      step: (state, action) -> Step.
      exploration: c.
      look: state -> what tells whether it was met before, hashable; None: repeats are not avoided.
      met: the looks that were met before the root, and its own.
    """

    def __init__(self, state, step, *, gamma, exploration, look=None, met=()):
        self.root = Node(state)
        self.look = look
        self.met = met if isinstance(met, Container) else set(met)
        self.step = step
        self.gamma = gamma
        self.exploration = exploration
        self.low = math.inf
        self.high = -math.inf

    @property
    def count(self):
        """Simulations so far; the valuation of the root is the first."""
        return self.root.count

    def descend(self, several=False):
        """One simulation down to a node that must be valued: -> Leaf for `expand`, or None.

        None: it came to what is known already, and is done; or, with `several`, to a node that
        waits already, and was taken back. several: whether other leaves wait, or will; the way to
        this one is charged with the least value of the tree until it is valued (virtual loss), so
        that they go elsewhere.
        """
        node = self.root
        path = []
        node.count += 1
        while node.visits is not None:
            index = self._best(node)
            edge = node.edges[index]
            if type(edge) is not _Edge:
                edge = self._try(node, index)
                if self._bar(node, index, path):
                    continue
            node.visits[index] += 1
            path.append((node, index, edge))
            node = edge.node
            node.count += 1
        if node.value is not None:
            self._back_up(path, node.value)
            return None
        if node.waits:
            self._take_back(path, node)
            return None
        node.waits = True
        loss = None
        if several and path:
            loss = self.low
            for parent, index, _ in path:
                parent.totals[index] += loss
                parent.means[index] = parent.totals[index] / parent.visits[index]
        return Leaf(node, path, loss)

    def _best(self, node):
        span = self.high - self.low
        scale = 1.0 / span if span > 0 else 0.0
        bonus = self.exploration * math.sqrt(node.count)
        scores = [
            scale * mean + bonus * prior / (1 + visits)
            for mean, prior, visits in zip(node.means, node.prior, node.visits)
        ]
        best = max(scores)
        if scores.count(best) == 1:
            return scores.index(best)
        # Actions whose effect is not seen at once lead to what looks the same.
        equal = [index for index, score in enumerate(scores) if score == best]
        return max(equal, key=lambda index: (node.first[index], node.prior[index]))

    def _try(self, node, index):
        """Take an action that was not tried yet, or that chance has a part in: -> _Edge."""
        step = self.step(node.state, node.legal[index])
        if not step.drawn:
            edge = self._edge(step)
            node.edges[index] = edge
            return edge
        if node.edges[index] is None:
            node.edges[index] = {}
        outcomes = node.edges[index]
        edge = outcomes.get(step.outcome)
        if edge is None:
            edge = self._edge(step)
            outcomes[step.outcome] = edge
        return edge

    def _bar(self, node, index, path):
        """Bar an action that was just tried if it only repeats: whether it is barred now."""
        edge = node.edges[index]
        if self.look is None or type(edge) is not _Edge or not self._repeats(edge, path):
            return False
        if sum(mean > BARRED for mean in node.means) == 1:
            return False
        node.means[index] = BARRED
        node.prior[index] = 0.0
        return True

    def _repeats(self, edge, path):
        look = edge.node.look
        if not edge.discount:
            return False
        # The node that it was tried at is the last one on the path, or the root, which is in `met`.
        return look in self.met or any(look == on.node.look for _, _, on in path)

    def _edge(self, step):
        known = None if step.discount else 0.0
        look = None if self.look is None else self.look(step.state)
        node = Node(step.state, look, step.over, known)
        return _Edge(step.reward, self.gamma * step.discount, node)

    def _take_back(self, path, node):
        node.count -= 1
        for parent, index, _ in path:
            parent.count -= 1
            parent.visits[index] -= 1

    def expand(self, leaf, legal, prior, first, value):
        """Value a leaf, and back that up.

        Args:
          legal: actions that can be taken. prior, first: of each of them, P(s, a), and Q(s, a)
            before the first visit.
          value: of its state.
        """
        node = leaf.node
        node.waits = False
        self._stretch(value)
        if node.over:
            node.value = value
        else:
            node.legal = list(legal)
            node.prior = list(prior)
            node.first = list(first)
            if not len(node.legal) == len(node.prior) == len(node.first):
                raise UsageError("prior and first must have one number of each legal action.")
            for each in node.first:
                self._stretch(each)
            node.means = list(node.first)
            node.visits = [0] * len(node.legal)
            node.totals = [0.0] * len(node.legal)
            node.edges = [None] * len(node.legal)
        self._back_up(leaf.path, value, leaf.loss)

    def _stretch(self, value):
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    def _back_up(self, path, value, loss=None):
        for node, index, edge in reversed(path):
            value = edge.reward + edge.discount * value
            node.totals[index] += value if loss is None else value - loss
            mean = node.totals[index] / node.visits[index]
            node.means[index] = mean
            self._stretch(mean)

    def bar_repeats(self):
        """Leave the root only actions that may lead to what was not met yet, if there are any.

        Before the first simulation by any of them. Each is stepped, which is not done again where
        chance has no part in it.
        """
        root = self.root
        fresh = []
        for index in range(len(root.legal)):
            step = self.step(root.state, root.legal[index])
            edge = self._edge(step)
            if not step.drawn:
                root.edges[index] = edge
            if step.drawn or not self._repeats(edge, []):
                fresh.append(index)
        if not fresh:
            return
        for name in ("legal", "prior", "first", "visits", "totals", "means", "edges"):
            values = getattr(root, name)
            setattr(root, name, [values[index] for index in fresh])

    def choose(self):
        """The root's action of the most visits; of equal ones that of the greatest value.

        After that go the network's own value and the prior. After one simulation it is the best by
        the network alone.
        """
        root = self.root
        ranks = list(zip(root.visits, root.means, root.first, root.prior))
        return root.legal[ranks.index(max(ranks))]
