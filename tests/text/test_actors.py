"""What actors play for a text run, and how it stands beside the run's data."""

import dataclasses
import math
import tempfile
import unittest
from pathlib import Path

import numpy as np

from tests.text.helpers import eager, without_xla
from tfdqt.backend import tf
from tfdqt.scale.ray_pool import Chunk, Pool
from tfdqt.text.actors import ActedBatches, make_text_collect
from tfdqt.text.config import TextNetworkConfig
from tfdqt.text.generation import make_run_scores
from tfdqt.text.head import build_task_networks
from tfdqt.text.learn import TextMetrics
from tfdqt.text.replay import Episode, Transition
from tfdqt.text.tasks import maze
from tfdqt.text.tasks.corpus import make_corpus
from tfdqt.text.tasks.play import Batches
from tfdqt.text.tasks.table import default_text_config, make_task
from tfdqt.text.tokenizers import token_rows
from tfdqt.text.words import RAW

SMALL = TextNetworkConfig(
    layers=1,
    heads=2,
    width=16,
    hidden=(16,),
    dueling=True,
    saturating=True,
    pruning_amount=0.0,
)


def length(text):
    return float(len(text))


def numbered(begin, count):
    """Transitions told apart by their action."""
    numbers = np.arange(begin, begin + count)
    texts = np.zeros((count, 3))
    return Transition(texts, numbers, numbers, texts, numbers)


class TestActing(tf.test.TestCase):
    def test_temperature_says_how_evenly_actions_are_drawn(self):
        task = make_task("maze")
        cfg = default_text_config("maze")[2]
        moves = maze.maze_distances()
        texts = task.show(dict(cell=np.arange(len(moves))))[0]
        worth = {tuple(text): -moves[maze.NEXT[cell]] for cell, text in enumerate(texts)}

        def scores(texts, at):
            return np.array([worth[tuple(text)] for text in texts], float)

        def mean(**acting):
            how = dataclasses.replace(cfg, **acting)
            return task.evaluate(scores, how, games=100, seed=0)[0].mean()

        optimum = 1 - moves[maze.STARTS].mean()
        self.assertAllClose(mean(greedy=True, temperature=9.0), optimum)  # greedy: none is drawn
        self.assertAllClose(mean(greedy=False, temperature=0.01), optimum)
        drawn = mean(greedy=False, temperature=1.0)
        self.assertLess(drawn, -8.0)
        self.assertLess(mean(greedy=False, temperature=9.0), drawn - 10)


class TestActedBatches(tf.test.TestCase):
    def test_as_much_played_as_read(self):
        """Data of three batches of 4, chunks of 3; a resumed run passes the first batch over."""
        broadcasts = []
        asked = []

        def take(step):
            asked.append(None)
            if len(asked) % 2:  # nothing came within a second
                return None
            played = numbered(100 + 3 * len(asked) // 2, 3)
            return Chunk((played, np.array([-5.0, -7.0])), broadcasts[-1][1])

        pool = Pool(
            broadcast=lambda *sent: broadcasts.append(sent),
            take=take,
            counts=lambda: (2, 1),
            close=lambda: None,
        )
        cfg = dataclasses.replace(default_text_config("maze")[2], updates_per_batch=8)
        batches = ActedBatches(
            Batches(numbered(0, 12), 4),
            pool,
            lambda: "weights",
            cfg,
            broadcast_every=16,
            updates=8,
            skip=1,
        )
        first, second, third = batches
        self.assertLen(batches, 3)
        self.assertLen(first.action, 4)
        for batch in (second, third):
            self.assertAllEqual(batch.action >= 100, [False] * 4 + [True] * 4)
            self.assertAllEqual(batch.imitated, [1] * 4 + [0] * 4)
        read = np.concatenate([first.action, second.action[:4], third.action[:4]])
        self.assertAllEqual(np.sort(read), np.arange(12))
        played = np.concatenate([second.action[4:], third.action[4:]])
        self.assertAllEqual(played, np.arange(103, 111))  # nothing lost, nothing twice
        self.assertEqual([sent[:2] for sent in broadcasts], [("weights", 8)])
        for _ in batches:
            pass
        self.assertEqual([sent[1] for sent in broadcasts], [8, 24, 40])
        metrics = batches.metrics(TextMetrics(*range(len(TextMetrics._fields))))
        told = (metrics.step, metrics.acted_return, metrics.actors, metrics.replaced)
        self.assertEqual(told, (0, -6.0, 2, 1))
        self.assertBetween(metrics.staleness, 0, 16)

    def test_a_run_that_is_to_stop_does_not_wait_for_actors(self):
        pool = Pool(lambda *sent: None, lambda step: None, lambda: (0, 0), lambda: None)
        batches = ActedBatches(
            Batches(numbered(0, 4), 4),
            pool,
            list,
            default_text_config("maze")[2],
            broadcast_every=16,
            should_stop=lambda: True,
        )
        self.assertAllEqual(np.sort(next(iter(batches)).action), np.arange(4))


class TestCollect(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        stack = without_xla()
        self.addCleanup(stack.close)

    def collect(self, task, cfg, epsilon, weights):
        seed = np.random.SeedSequence(0)
        return make_text_collect(task, SMALL, cfg, [epsilon], seed)(weights, 0)

    def networks_of(self, task):
        """The networks of a task and their weights."""
        transformer, head = build_task_networks(task, SMALL, 1)
        weights = [variable.numpy() for variable in (*transformer.variables, *head.variables)]
        return transformer, head, weights

    def test_moves_are_made_with_the_weights_given(self):
        task = make_task("maze")
        cfg = default_text_config("maze")[2]
        transformer, head, weights = self.networks_of(task)
        items, returns = self.collect(task, cfg, 0.0, weights)
        self.assertIsInstance(items, Transition)
        self.assertLen(returns, task.chunk_games)
        scores = make_run_scores(transformer, head, cfg)
        best = np.argmax(scores(items.state, np.zeros(len(items.state), np.int32)), axis=-1)
        self.assertAllEqual(items.action, best)
        random, _ = self.collect(task, cfg, 1.0, weights)
        counts = np.bincount(random.action, minlength=4)
        self.assertAllInRange(counts / len(random.action), 0.15, 0.35)

    def test_words_are_guessed_with_the_weights_given(self):
        task = make_task("wordle")
        cfg = default_text_config("wordle")[2]
        transformer, head, weights = self.networks_of(task)
        items, returns = self.collect(task, cfg, 0.0, weights)
        self.assertIsInstance(items, Episode)
        self.assertLen(returns, task.chunk_games)
        scores = make_run_scores(transformer, head, cfg)
        best = np.argmax(scores(items.text, np.full(len(items.text), 5, np.int32)), axis=-1)
        second = items.mask[:, 1]
        self.assertAllEqual(items.action[:, 1][second], best[second])

    def test_a_runs_settings_reach_its_head_and_its_play(self):
        self.enterContext(eager())
        task = make_task("wordle")
        cfg = default_text_config("wordle")[2]
        transformer, head, _ = self.networks_of(task)
        self.assertTrue(head.dueling and head.saturating)
        seen = task.show(task.start(1, np.random.default_rng(0)))

        def scores(cfg=cfg, **options):
            return make_run_scores(transformer, head, cfg, **options)(*seen).numpy()[0]

        x = transformer(seen[0])[:, 0]
        q = head(x).numpy()[0]
        policy = tf.nn.softmax(head.prior(x)).numpy()[0]
        part = float(np.median(policy) / policy.max()) * 0.9999
        plausible = scores(dataclasses.replace(cfg, plausible=part), beta=math.inf)
        kept = plausible > -1e30
        self.assertAllEqual(kept, policy >= np.median(policy) * 0.9999)
        self.assertAllClose(plausible[kept], q[kept], atol=1e-5)
        unsteered = dataclasses.replace(cfg, plausible=0.0, beta=None)
        self.assertAllClose(scores(unsteered), q, atol=1e-5)
        self.assertAllClose(scores(), np.log(policy) + 12 * (q - policy @ q), atol=1e-4)

    def test_texts_are_written_and_priced(self):
        with tempfile.TemporaryDirectory() as folder:
            text = "a good day and a bad night . " * 40
            Path(folder, "a.txt").write_text(text, encoding="utf-8")
            task = make_corpus(folder, "sentiment", vocabulary=10, length=6)
        cfg = default_text_config("corpus")[2]
        _, _, weights = self.networks_of(task)
        items, returns = self.collect(task, cfg, 0.4, weights)
        self.assertAllEqual(items.text.shape, [task.chunk_texts, 6])
        self.assertGreater(len(np.unique(items.text, axis=0)), 8)
        written = [task.tokenizer.decode(text, skip_special_tokens=True) for text in items.text]
        self.assertAllClose(returns, [task.reward(text) for text in written], atol=1e-5)

    def test_the_tokens_that_were_written_are_learned_from(self):
        # Of most of these texts the tokenizer would make other tokens, and more.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "a.txt").write_text("ein schöner Tag " * 40, encoding="utf-8")
            task = make_corpus(folder, f"{__name__}:length", rule=RAW, vocabulary=270, length=9)
        cfg = default_text_config("corpus")[2]
        transformer, head, weights = self.networks_of(task)
        items, returns = self.collect(task, cfg, 0.4, weights)
        self.assertAllEqual(items.mask, np.ones([task.chunk_texts, 8]))
        texts = [task.tokenizer.decode(text, skip_special_tokens=True) for text in items.text]
        self.assertAllClose(returns, [length(text) for text in texts])
        again = [row[1:] for row in token_rows(task.tokenizer, texts)]
        self.assertNotEqual(again, items.action.tolist())


if __name__ == "__main__":
    unittest.main()
