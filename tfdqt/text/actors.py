"""Actors that play, or write, for a text run, and how what they do stands beside the run's data."""

from collections import deque
from typing import NamedTuple

import numpy as np

from tfdqt.text.generation import make_run_scores
from tfdqt.text.head import build_task_networks
from tfdqt.text.learn import TextMetrics
from tfdqt.text.replay import concatenate, take_rows

ActedMetrics = NamedTuple(
    "ActedMetrics",
    [
        *TextMetrics.__annotations__.items(),
        ("acted_return", float),  # mean of the actors' last 10 chunks, random actions included
        # Updates between a chunk's weights and its use, mean of the last 100 chunks.
        ("staleness", float),
        ("actors", int),  # alive
        ("replaced", int),  # actors that died and were replaced, since this process started
    ],
)


def make_text_collect(task, network, cfg, epsilons, seed):
    """`collect(weights, step) -> (Transition or Episode, returns)`: a chunk, as a run acts.

    Args:
      task: a `tasks.play.Task`. network: TextNetworkConfig. cfg: TextConfig.
      epsilons: one number, the probability of a random action, for runs that act greedily; others
        explore by drawing.
      seed: what numpy's default_rng takes.
    """
    transformer, head = build_task_networks(task, network, 0)
    scores = make_run_scores(transformer, head, cfg)
    variables = [*transformer.variables, *head.variables]
    rng = np.random.default_rng(seed)
    epsilon = epsilons[0] if cfg.greedy else 0.0

    def collect(weights, step):
        for variable, array in zip(variables, weights):
            variable.assign(array)
        return task.collect(scores, cfg, rng, epsilon)

    return collect


class ActedBatches:
    """The batches of a run's data, each with as much beside it that actors played meanwhile.

    Values are learned from both; the data alone are cloned.

    So there are as many updates for each thing played however many actors there are: a batch waits
    for them, and they wait while nothing is taken.
    """

    def __init__(
        self,
        batches,
        pool,
        weights,
        cfg,
        *,
        broadcast_every,
        updates=0,
        skip=0,
        should_stop=None,
    ):
        """Wrap `batches`, a loader with a length.

        Args:
          pool: `scale.ray_pool.Pool`. weights: () -> list of arrays. cfg: TextConfig.
          broadcast_every: updates between two broadcasts of the weights.
          updates: done so far.
          skip: batches that a resumed run passes over; nothing is played for them.
          should_stop: asked while actors are waited for.
        """
        self.batches = batches
        self.pool = pool
        self.weights = weights
        self.cfg = cfg
        self.broadcast_every = broadcast_every
        self.updates = updates
        self.skip = skip
        self.should_stop = should_stop
        self.broadcast_at = None  # updates done at the last broadcast
        self.left = []  # played and not yet taken
        self.ages = deque(maxlen=100)
        self.returns = deque(maxlen=10)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for items in self.batches:
            if self.skip:
                self.skip -= 1
                yield items
                continue
            age = None if self.broadcast_at is None else self.updates - self.broadcast_at
            if age is None or age >= self.broadcast_every:
                self.pool.broadcast(self.weights(), self.updates)
                self.broadcast_at = self.updates
            yield concatenate([items, *self._take(len(items.action))])
            self.updates += self.cfg.updates_per_batch

    def _take(self, count):
        """The next `count` things played; fewer if the run is to stop."""
        while sum(len(items.action) for items in self.left) < count:
            if self.should_stop and self.should_stop():
                break
            chunk = self.pool.take(self.updates)
            if chunk is not None:
                items, returns = chunk.experience
                # The cloned policy stays the data's: what it calls plausible depends on that.
                nothing = np.zeros(len(items.action), np.float32)
                self.left.append(items._replace(imitated=nothing))
                self.ages.append(self.updates - chunk.version)
                self.returns.append(returns.mean())
        if not self.left:
            return []
        played = concatenate(self.left)
        self.left = [take_rows(played, slice(count, None))]
        return [take_rows(played, slice(count))]

    def metrics(self, metrics):
        """TextMetrics with what there is to tell of the actors."""
        alive, replaced = self.pool.counts()
        acted_return = float(np.mean(self.returns or [np.nan]))
        staleness = float(np.mean(self.ages or [np.nan]))
        return ActedMetrics(*metrics, acted_return, staleness, alive, replaced)
