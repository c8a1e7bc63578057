"""What actors play for a text run, and how it stands beside the run's data."""

import dataclasses
import math
import tempfile
import unittest
from pathlib import Path

import numpy as np

from tfdqt import corpora, tasks, text_runs
from tfdqt.apex import Part, Pool
from tfdqt.backend import tf
from tfdqt.config import TextNetworkConfig, default_text_config
from tfdqt.replay import Episode, Transition
from tfdqt.text import Metrics

SMALL = TextNetworkConfig(layers=1, heads=2, width=16, hidden=(16,), dueling=True, saturating=True, pruning_amount=0.0)


def numbered(begin, count):
    """Transitions told apart by their action."""
    numbers = np.arange(begin, begin + count)
    return Transition(*(np.zeros((count, 3)) if field.endswith("state") else numbers for field in Transition._fields))


class TestActing(tf.test.TestCase):

    def test_temperature_says_how_evenly_actions_are_drawn(self):
        task, cfg = tasks.make_task("maze"), default_text_config("maze")[2]
        far = tasks.maze_distances()
        worth = {tuple(text): -far[tasks.NEXT[cell]].astype(float) for text, cell in
                 ((task.show(dict(cell=np.array([cell])))[0][0], cell) for cell in range(len(far)))}

        def mean(**acting):
            scores = lambda texts, at: np.array([worth[tuple(text)] for text in texts])  # noqa: E731
            return text_runs.returns_of(task, scores, dataclasses.replace(cfg, **acting), games=100, seed=0)[0].mean()

        self.assertAllClose(mean(greedy=True, temperature=9.0), 1 - far[tasks.STARTS].mean())  # greedy: nothing is drawn
        self.assertAllClose(mean(greedy=False, temperature=0.01), 1 - far[tasks.STARTS].mean())
        self.assertLess(mean(greedy=False, temperature=1.0), -8.0)
        self.assertLess(mean(greedy=False, temperature=9.0), mean(greedy=False, temperature=1.0) - 10)


class TestActedBatches(tf.test.TestCase):

    def test_as_much_played_as_read(self):
        """The data is three batches of 4, actors deliver 3 at a time; a resumed run passes the first batch over."""
        sent, taken = [], []

        def take():
            taken.append(None)
            if len(taken) % 2:  # nothing came within a second
                return None
            return Part((numbered(100 + 3 * len(taken) // 2, 3), np.array([-5.0, -7.0])), sent[-1][1])

        pool = Pool(lambda *broadcast: sent.append(broadcast), take, lambda: (2, 1), lambda: None)
        cfg = dataclasses.replace(default_text_config("maze")[2], updates_per_batch=8)
        batches = text_runs.ActedBatches(tasks.Batches(numbered(0, 12), 4), pool, lambda: "weights", cfg, broadcast_every=16, done=8,
                                         skip=1)
        first, second, third = batches
        self.assertLen(batches, 3)
        self.assertLen(first.action, 4)
        for batch in (second, third):
            self.assertAllEqual(batch.action >= 100, [False] * 4 + [True] * 4)
        self.assertAllEqual(np.sort(np.concatenate([first.action, second.action[:4], third.action[:4]])), np.arange(12))
        self.assertAllEqual(np.concatenate([second.action[4:], third.action[4:]]), np.arange(103, 111))  # nothing lost, nothing twice
        self.assertEqual([broadcast[:2] for broadcast in sent], [("weights", 8)])
        for _ in batches:
            pass
        self.assertEqual([broadcast[1] for broadcast in sent], [8, 24, 40])
        told = batches.metrics(Metrics(*range(len(Metrics._fields))))
        self.assertEqual((told.step, told.acted_return, told.actors, told.replaced), (0, -6.0, 2, 1))
        self.assertBetween(told.staleness, 0, 16)

    def test_a_run_that_is_to_stop_does_not_wait_for_actors(self):
        pool = Pool(lambda *broadcast: None, lambda: None, lambda: (0, 0), lambda: None)
        cfg = default_text_config("maze")[2]
        batches = text_runs.ActedBatches(tasks.Batches(numbered(0, 4), 4), pool, list, cfg, broadcast_every=16, should_stop=lambda: True)
        self.assertAllEqual(np.sort(next(iter(batches)).action), np.arange(4))


class TestPlayers(tf.test.TestCase):

    def weights_of(self, task, cfg):
        transformer, head = text_runs._networks_for(task, SMALL, 1)
        return [variable.numpy() for variable in (*transformer.variables, *head.variables)], transformer, head

    def test_games_are_played_with_the_weights_given(self):
        for name, kind in (("maze", Transition), ("wordle", Episode)):
            task, cfg = tasks.make_task(name), default_text_config(name)[2]
            weights, transformer, head = self.weights_of(task, cfg)
            play = text_runs.make_text_player(task, SMALL, cfg, [0.0], np.random.SeedSequence(0))
            items, returns = play(weights, 0)
            self.assertIsInstance(items, kind)
            self.assertLen(returns, text_runs.PLAYED[name])
            scores = text_runs.make_run_scores(task, transformer, head, cfg)
            if kind is Transition:
                best = np.argmax(scores(items.state, np.zeros(len(items.state), np.int32)), axis=-1)
                self.assertAllEqual(items.action, best)
                random, _ = text_runs.make_text_player(task, SMALL, cfg, [1.0], np.random.SeedSequence(0))(weights, 0)
                self.assertAllInRange(np.bincount(random.action, minlength=4) / len(random.action), 0.15, 0.35)
            else:
                best = np.argmax(scores(items.text, np.full(len(items.text), 5, np.int32)), axis=-1)
                self.assertAllEqual(items.action[:, 1][items.mask[:, 1]], best[items.mask[:, 1]])

    def test_a_runs_settings_reach_its_head_and_its_play(self):
        task, cfg = tasks.make_task("wordle"), default_text_config("wordle")[2]
        transformer, head = text_runs._networks_for(task, SMALL, 1)
        self.assertTrue(head.dueling and head.saturating)
        seen = task.show(task.start(1, np.random.default_rng(0)))

        def scores(cfg=cfg, **options):
            return text_runs.make_run_scores(task, transformer, head, cfg, **options)(*seen).numpy()[0]

        x = transformer(seen[0])[:, 0]
        q, policy = head(x).numpy()[0], tf.nn.softmax(head.prior(x)).numpy()[0]
        part = np.median(policy) / policy.max()
        plausible = scores(dataclasses.replace(cfg, plausible=float(part) * 0.9999), beta=math.inf)
        self.assertAllEqual(plausible > -1e30, policy >= np.median(policy) * 0.9999)
        self.assertAllClose(plausible[plausible > -1e30], q[plausible > -1e30], atol=1e-5)
        self.assertAllClose(scores(dataclasses.replace(cfg, plausible=0.0, beta=None)), q, atol=1e-5)
        self.assertAllClose(scores(), np.log(policy) + 12 * (q - policy @ q), atol=1e-4)

    def test_texts_are_written_and_priced(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "a.txt").write_text("a good day and a bad night . " * 40, encoding="utf-8")
            task = corpora.make_corpus(folder, "sentiment", vocabulary=10, length=6)
            cfg = default_text_config("corpus")[2]
            weights, *_ = self.weights_of(task, cfg)
            items, returns = text_runs.make_text_player(task, SMALL, cfg, [0.4], np.random.SeedSequence(0))(weights, 0)
        self.assertAllEqual(items.text.shape, [text_runs.PLAYED["corpus"], 6])
        self.assertGreater(len(np.unique(items.text, axis=0)), 8)
        worth = [task.reward(task.tokenizer.decode(text, skip_special_tokens=True)) for text in items.text]
        self.assertAllClose(returns, worth, atol=1e-5)


if __name__ == "__main__":
    unittest.main()
