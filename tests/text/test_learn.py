"""Learning on texts: the loss by hand, the update, and training that can be stopped."""

import contextlib
import tempfile
import unittest
from pathlib import Path

import numpy as np

from tests.helpers import slow
from tests.text.helpers import NETWORK, eager, without_xla
from tfdqt.backend import keras, tf
from tfdqt.errors import Diverged, EnvFailure, UsageError
from tfdqt.runs.checkpoint import load_checkpoint, make_saver
from tfdqt.text import learn
from tfdqt.text.config import TextConfig
from tfdqt.text.encoder import dense_kernels
from tfdqt.text.generation import make_word_scores
from tfdqt.text.head import DeepQLearningModel, build_text_networks
from tfdqt.text.replay import Episode, ExperienceReplay, Transition, take_rows
from tfdqt.text.tokenizers import make_tokenizer


class TestCustomLoss(tf.test.TestCase):
    q = tf.constant([[[1.0, 2.0, 4.0]], [[0.5, 0.0, -1.0]]])  # [B=2, P=1, A=3]
    actions = tf.constant([[1], [0]])
    rewards = tf.constant([[0.5], [-1.0]])
    next_q = tf.constant([[[3.0, 1.0, 2.0]], [[9.0, 9.0, 9.0]]])
    ends = tf.constant([[0.0], [1.0]])

    def loss(self, next_q=None, **options):
        next_q = self.next_q if next_q is None else next_q
        options = {"gamma": 0.5, **options}
        return learn.custom_loss(self.q, self.actions, self.rewards, next_q, self.ends, **options)

    def test_by_hand(self):
        loss, diagnostics = self.loss()
        # Targets 0.5 + 0.5 * 3 = 2 and -1 (the text ended): errors 0 and 1.5, Huber 0 and 1.
        self.assertAllClose(loss, 0.5)
        self.assertAllClose(diagnostics["td_error"], 0.75)
        self.assertAllClose(diagnostics["q_mean"], (2.0 + 0.5) / 2)

    def test_double_q_takes_the_online_networks_choice(self):
        online = tf.constant([[[0.0, 5.0, 0.0]], [[0.0, 0.0, 0.0]]])
        loss, _ = self.loss(next_q_online=online)
        self.assertAllClose(loss, (0.5 + 1.0) / 2)  # target 0.5 + 0.5 * 1 = 1: error 1, Huber 0.5

    def test_padding_does_not_count(self):
        loss, _ = self.loss(mask=tf.constant([[0.0], [1.0]]))
        self.assertAllClose(loss, 1.0)

    def test_conservative_term(self):
        plain, _ = self.loss()
        loss, _ = self.loss(conservative=2.0)
        above = [np.log(np.exp([1, 2, 4]).sum()) - 2, np.log(np.exp([0.5, 0, -1]).sum()) - 0.5]
        self.assertAllClose(loss - plain, 2.0 * np.mean(above))

    def test_expectile_term_and_values_of_states(self):
        value = tf.constant([[1.0], [1.0]])
        frozen = tf.constant([[[0.0, 3.0, 0.0]], [[0.5, 0.0, 0.0]]])
        next_values = tf.constant([[3.0], [7.0]])
        loss, _ = self.loss(next_values, value=value, frozen_q=frozen, expectile=0.9)
        self.assertAllClose(loss, 0.5 + (0.9 * 2.0**2 + 0.1 * 0.5**2) / 2)

    def test_advantage_learning_lowers_the_target_of_the_worse_word(self):
        # The first word written lies 0.5 below the best, the second is it.
        frozen = tf.constant([[[0.0, 1.0, 1.5]], [[2.0, 0.0, 0.0]]])
        loss, _ = self.loss(frozen_q=frozen, advantage_learning=0.8)
        # Targets 2 - 0.4 and -1: errors 0.4 and 1.5.
        self.assertAllClose(loss, (0.5 * 0.4**2 + 1.0) / 2)

    def test_plain_arrays_will_do(self):
        arrays = (np.array(each) for each in (self.q, self.actions, self.rewards, self.next_q))
        ends = np.array([[False], [True]])
        loss, _ = learn.custom_loss(*arrays, ends, gamma=0.5, mask=np.array([[True], [True]]))
        self.assertAllClose(loss, 0.5)
        doubles = [np.array(each, float) for each in (self.rewards, self.next_q)]
        loss, _ = learn.custom_loss(self.q, self.actions, *doubles, [[0], [1]], gamma=0.5)
        self.assertAllClose(loss, 0.5)

    def test_what_does_not_fit_together_is_refused(self):
        for options, said in (
            (dict(mask=tf.ones([2, 2])), "mask is"),
            (dict(value=tf.ones([2, 1])), "need frozen_q"),
            (dict(advantage_learning=0.5), "need frozen_q"),
            (dict(frozen_q=self.rewards, advantage_learning=0.5), "frozen_q of all words"),
            (dict(next_q=self.rewards, next_q_online=self.next_q), "next_q .B, P, A. too"),
            (dict(next_q=self.next_q[..., :2]), r"next_q is \(2, 1, 2\), neither"),
            (dict(value=self.q, frozen_q=self.q), "value is"),
        ):
            with self.assertRaisesRegex(UsageError, said):
                self.loss(**options)
        for actions, said in (
            (self.actions + 2, "actions from 2 to 3; they must lie between 0 and 2"),
            (tf.cast(self.actions, tf.float32), "actions of whole numbers"),
            (self.actions[0], "rewards is"),
        ):
            with self.assertRaisesRegex(UsageError, said):
                learn.custom_loss(self.q, actions, self.rewards, self.next_q, self.ends)
        given = (self.q[..., 0], self.actions, self.rewards, self.next_q, self.ends)
        with self.assertRaisesRegex(UsageError, "values of all words"):
            learn.custom_loss(*given, conservative=1.0)

    def test_no_gradient_enters_the_targets(self):
        given = [tf.Variable(self.next_q) for _ in range(3)]
        next_q, online, frozen = given
        with tf.GradientTape() as tape:
            loss, _ = self.loss(
                next_q, next_q_online=online, frozen_q=frozen, advantage_learning=0.9
            )
        self.assertAllEqual(tape.gradient(loss, given), [None, None, None])


def corridor(count=60):
    """Walk along five words; the last one pays. Right is action 1, and best everywhere."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count * 5):
        at = int(rng.integers(4))
        action = int(rng.integers(2))
        to = min(4, at + 1) if action else max(0, at - 1)
        ends = to == 4
        rows.append(([2, 3 + at], action, float(ends), [2, 3 + to], 1.0 - ends))
    return Transition(*map(np.array, zip(*rows)))


class Batches:
    def __init__(self, items, size):
        self.items = items
        self.size = size

    def __len__(self):
        return -(-len(self.items[0]) // self.size)

    def __iter__(self):
        for i in range(0, len(self.items[0]), self.size):
            yield take_rows(self.items, slice(i, i + self.size))


class Endless(Batches):
    """A loader that does not know its length."""

    __len__ = None


def networks(*, length=2, actions=2, causal=False, vocabulary=8, seed=0):
    tf.keras.utils.set_random_seed(seed)
    return build_text_networks(
        NETWORK, vocabulary=vocabulary, length=length, num_actions=actions, causal=causal
    )


def train(pair, epochs, loader, *, cfg, optimizer="adam", tokenizer=None, **options):
    if optimizer == "adam":
        optimizer = tf.keras.optimizers.Adam(3e-3)
    replay = ExperienceReplay(1_000)
    return learn.train_model(
        *pair, optimizer, epochs, tokenizer, loader, replay, "cpu", cfg=cfg, **options
    )


def as_tensors(items):
    fields = take_rows(items, slice(None))
    dtypes = [np.int32 if field.dtype.kind == "i" else np.float32 for field in fields]
    return type(items)(*map(tf.constant, fields, dtypes))


class Eager(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        stack = contextlib.ExitStack()
        stack.enter_context(eager())
        self.addCleanup(stack.close)


class TestUpdate(Eager):
    def test_targets_follow_plausible_words_only(self):
        """Action 1, hardly ever in the data, would be valued highest behind the first word."""
        pair = networks(actions=2)
        target = networks(actions=2, seed=1)
        biases = (
            (pair[1].q, [0.0, 5.0]),
            (pair[1].cloned, [5.0, 0.0]),
            (target[1].q, [1.0, 8.0]),
        )
        for branch, bias in biases:
            weights = [np.zeros_like(weight) for weight in branch.get_weights()[:-1]]
            branch.set_weights([*weights, np.array(bias)])
        batch = Transition(
            tf.constant([[2, 3]]),
            tf.constant([0]),
            tf.constant([0.5]),
            tf.constant([[2, 4]]),
            tf.constant([1.0]),
        )
        errors = []
        for plausible in (0.0, 0.5):
            cfg = TextConfig(gamma=1.0, cloning=1.0, plausible=plausible, target_tau=0.0)
            twin = (pair[0].copy(), pair[1].copy())
            optimizer = tf.keras.optimizers.SGD(0.0)
            update = learn.make_text_update(*twin, *target, optimizer, cfg)
            errors.append(float(update(batch)["td_error"]))
        self.assertAllClose(errors, [0.5 + 8.0, 0.5 + 1.0])

    def test_one_pass_over_an_episode_learns_as_its_transitions_do(self):
        """Q, targets and loss of a causal encoder agree between an Episode and its Transitions."""
        pair = networks(length=4, actions=3, causal=True)
        episode = Episode(
            text=np.array([[2, 3, 4, 5]]),
            at=np.array([[0, 1, 2, 3]]),
            action=np.array([[0, 2, 1]]),
            reward=np.array([[0.0, 1.0, 0.5]]),
            discount=np.array([[1.0, 1.0, 0.0]]),
            mask=np.ones((1, 3)),
        )
        steps = Transition(
            state=np.array([[2, 0, 0, 0], [2, 3, 0, 0], [2, 3, 4, 0]]),
            action=np.array([0, 2, 1]),
            reward=np.array([0.0, 1.0, 0.5]),
            next_state=np.array([[2, 3, 0, 0], [2, 3, 4, 0], [2, 3, 4, 5]]),
            discount=np.array([1.0, 1.0, 0.0]),
        )
        seen = []
        for items in (episode, steps):
            twin = (pair[0].copy(), pair[1].copy())
            update = learn.make_text_update(
                *twin, *pair, tf.keras.optimizers.SGD(0.1), TextConfig(target_tau=0.0)
            )
            diagnostics = update(as_tensors(items))
            weights = [variable.numpy() for variable in twin[1].weights]
            seen.append([*weights, diagnostics["loss"], diagnostics["td_error"]])
        for one, other in zip(*seen):
            self.assertAllClose(one, other, atol=1e-6)

    def test_only_what_is_imitated_is_cloned(self):
        """Values are learned from all of a batch."""
        pair = networks(length=4, actions=3, causal=True)
        rng = np.random.default_rng(0)
        text = rng.integers(2, 8, [3, 4])
        at = np.broadcast_to(np.arange(4), [3, 4])
        action = rng.integers(3, size=[3, 3])
        reward = rng.random([3, 3])
        episodes = Episode(text, at, action, reward, np.ones([3, 3]), np.ones([3, 3]))
        steps = Transition(text[:, :2], action[:, 0], reward[:, 0], text[:, 1:3], np.ones(3))
        for items in (episodes, steps):
            marked = items._replace(imitated=np.array([1, 0, 1], np.float32))
            seen = []
            for learned in (marked, items, take_rows(items, [0, 2])):
                update = learn.make_text_update(
                    pair[0].copy(),
                    pair[1].copy(),
                    *pair,
                    tf.keras.optimizers.SGD(0.0),
                    TextConfig(cloning=1.0),
                )
                seen.append(update(as_tensors(learned)))
            marked, whole, part = seen
            self.assertAllClose(marked["td_error"], whole["td_error"], rtol=1e-6)
            self.assertAllClose(marked["cloning"], part["cloning"], rtol=1e-6)
            self.assertNotAllClose(marked["td_error"], part["td_error"], rtol=1e-3)
            self.assertNotAllClose(marked["cloning"], whole["cloning"], rtol=1e-5)

    def test_the_norm_that_is_clipped_is_that_of_the_step(self):
        """Also where a token stands twice in a batch: its gradients are added up first."""
        pair = networks(length=4, actions=3, causal=True)
        tokens = np.array([[2, 2, 3, 2], [2, 4, 2, 3]])
        once = np.ones((2, 1), "float32")
        fields = (tokens, np.array([[0, 1], [0, 2]]), np.array([[1], [2]]), once, once, once)
        batch = Episode(*map(tf.constant, fields))
        trained = [*pair[0].bert.trainable_variables, *pair[1].trainable_variables]
        for limit, expected in ((1e6, None), (0.5, 0.5)):
            before = [variable.numpy() for variable in trained]
            update = learn.make_text_update(
                *pair,
                pair[0].copy(),
                pair[1].copy(),
                tf.keras.optimizers.SGD(1.0),
                TextConfig(max_grad_norm=limit),
            )
            norm = float(update(batch)["grad_norm"])
            moved = [np.square(variable.numpy() - old) for variable, old in zip(trained, before)]
            step = np.sqrt(sum(map(np.sum, moved)))
            self.assertAllClose(step, expected or norm, rtol=1e-3)
            self.assertGreater(norm, 0.5)


@slow("15 s: the same as TestTraining, compiled")
class TestCompiledTraining(tf.test.TestCase):
    """As runs have it, compiled by XLA."""

    def test_learns_the_known_values_of_a_corridor(self):
        pair = networks()
        cfg = TextConfig(batch_size=32, updates_per_batch=4, gamma=0.9, target_tau=0.1)
        lines = []
        last = train(pair, 12, Batches(corridor(), 30), cfg=cfg, log=lines.append)
        states = tf.constant([[2, 3 + i] for i in range(4)])
        q = pair[1](pair[0](states)[:, 0]).numpy()
        self.assertAllClose(q[:, 1], 0.9 ** np.array([3, 2, 1, 0]), atol=0.1)
        self.assertAllClose(q[1:, 0], 0.9 ** np.array([4, 3, 2]), atol=0.1)
        self.assertEqual(last.step, 12 * 10 * 4)
        self.assertEqual(last.samples, 12 * 300)
        self.assertLen(lines, 12 * 10)
        self.assertLess(last.td_error, lines[0].td_error)
        for kernel in dense_kernels(pair[0].bert):  # pruning holds to the end
            self.assertAlmostEqual(np.mean(kernel.numpy() == 0), 0.5, delta=0.01)


class TestTraining(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        stack = without_xla()
        self.addCleanup(stack.close)

    def test_clones_what_it_should(self):
        items = corridor()
        right = take_rows(items, items.action == 1)
        pair = networks()
        cfg = TextConfig(method="clone", batch_size=32, updates_per_batch=4)
        last = train(pair, 4, Batches(right, 50), cfg=cfg)
        self.assertTrue(np.isfinite(last.loss))
        self.assertTrue(np.isnan(last.td_error))
        scores = make_word_scores(*pair, clone=True)
        policy = scores(tf.constant([[2, 3]]), tf.constant([0]))
        self.assertGreater(policy[0, 1], np.log(0.9))

    @slow("15 s: two trainings")
    def test_the_advantage_weights_what_is_cloned(self):
        """Half of the data's moves go left, away from the reward.

        Cloned alike they stay a half, weighted they hardly count.
        """
        left = {}
        for weighting in (0.0, 10.0):
            pair = networks()
            cfg = TextConfig(
                method="implicit",
                batch_size=32,
                updates_per_batch=4,
                gamma=0.9,
                target_tau=0.1,
                cloning=1.0,
                advantage_weighting=weighting,
            )
            train(pair, 6, Batches(corridor(), 30), cfg=cfg)
            scores = make_word_scores(*pair, clone=True)
            policy = scores(tf.constant([[2, 4], [2, 5], [2, 6]]), tf.constant([0, 0, 0]))
            left[weighting] = np.exp(policy[:, 0])
        self.assertAllClose(left[0.0], [0.5] * 3, atol=0.15)
        self.assertAllLess(left[10.0], 0.3)


class TestTrainModel(Eager):
    cfg = TextConfig(batch_size=32, updates_per_batch=1)

    def assertSameNetworks(self, one, other):
        for mine, theirs in zip(one, other):
            for variable, twin in zip(mine.variables, theirs.variables):
                self.assertAllEqual(variable, twin)

    def test_stopped_and_resumed_is_bit_equal_to_unbroken(self):
        cfg = TextConfig(
            method="implicit", cloning=0.5, beta=1.0, batch_size=16, updates_per_batch=1
        )
        whole = networks()
        broken = networks()
        again = networks(seed=5)
        # Without an optimizer of its own, so that the rate falls along the way.
        loader = Batches(corridor(), 100)  # 3 batches
        train(whole, 2, loader, cfg=cfg, optimizer=None)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "checkpoints").mkdir()
            asked = []
            train(
                broken,
                2,
                loader,
                cfg=cfg,
                optimizer=None,
                save=make_saver(Path(folder), 10_000),
                should_stop=lambda: asked.append(0) or len(asked) == 4,
            )
            saved, _ = load_checkpoint(folder)
        self.assertEqual(saved["place"]["step"], 4)
        last = train(again, 2, loader, cfg=cfg, optimizer=None, saved=saved)
        self.assertEqual(last.step, 6)
        self.assertSameNetworks(whole, again)

    in_units = TextConfig(
        batch_size=16, updates_per_batch=1, method="implicit", cloning=1.0, reward_units=True
    )

    def trained_on(self, rewards, cfg=None):
        pair = networks()
        items = corridor()._replace(reward=rewards)
        cfg = cfg or self.in_units
        train(pair, 1, Batches(items, 100), cfg=cfg)
        return pair

    def test_the_size_of_a_reward_does_not_matter(self):
        rewards = corridor().reward
        state = tf.constant([[2, 3]])
        values = []
        steered = []
        for factor in (1.0, 1024.0):  # a power of two, by which no number is rounded
            pair = self.trained_on(factor * rewards)
            self.assertEqual(float(pair[1].unit), factor)
            x = pair[0](state)[:, 0]
            values.append(np.concatenate([pair[1](x)[0], pair[1].value(x)]))
            steered.append(make_word_scores(*pair, beta=2.0)(state))
        self.assertAllEqual(1024 * values[0], values[1])
        self.assertAllEqual(*steered)
        cfg = TextConfig(batch_size=16, updates_per_batch=1, reward_units=False)
        self.assertEqual(float(self.trained_on(1024 * rewards, cfg)[1].unit), 1.0)

    def test_the_unit_waits_for_a_reward_and_stays(self):
        rewards = np.zeros_like(corridor().reward)
        rewards[150:152] = 3, 4  # of the second batch
        rewards[250] = 100
        pair = self.trained_on(rewards)
        self.assertAllClose(pair[1].unit, np.sqrt((3**2 + 4**2) / 2))
        items = corridor()._replace(reward=rewards + 100)
        train(pair, 1, Batches(items, 100), cfg=self.in_units)  # gone on with
        self.assertAllClose(pair[1].unit, np.sqrt((3**2 + 4**2) / 2))

    def test_what_is_not_imitated_does_not_set_the_unit(self):
        rewards = np.full_like(corridor().reward, 100)
        rewards[::2] = 3
        pair = networks()
        imitated = np.float32(rewards == 3)
        items = corridor()._replace(reward=rewards, imitated=imitated)
        train(pair, 1, Batches(items, 100), cfg=self.in_units)
        self.assertAllClose(pair[1].unit, 3.0)

    def test_a_reward_that_is_hardly_one_is_learned_from(self):
        rewards = np.full_like(corridor().reward, 1e-40)
        pair = self.trained_on(rewards)
        self.assertTrue(np.isfinite(pair[1](pair[0](tf.constant([[2, 3]])))).all())

    def test_a_checkpoint_from_before_units_is_read(self):
        pair = networks()
        every = [*pair, *(network.copy() for network in pair)]
        arrays = [[variable.numpy() for variable in network.variables] for network in every]
        for head in arrays[1::2]:
            self.assertEqual(head.pop(), 1.0)
        old = dict(weights=sum(arrays, []), place=dict(step=4))
        got = learn.saved_weights(old, every)
        expected = [variable for network in every for variable in network.variables]
        self.assertEqual([array.shape for array in got], [each.shape for each in expected])
        for array, variable in zip(got, expected):
            self.assertAllEqual(array, variable)

    def test_the_rates_of_the_settings_are_those_of_adam(self):
        loader = Batches(corridor(), 150)  # 2 batches
        cfg = TextConfig(
            batch_size=8, updates_per_batch=1, learning_rate=3e-3, final_learning_rate=1e-4
        )
        rate = learn.make_optimizer(cfg, 1, loader)._learning_rate
        self.assertAllClose([rate(i) for i in (0, 1, 2)], [3e-3, (3e-3 + 1e-4) / 2, 1e-4])
        own = networks()
        given = networks()
        train(own, 1, loader, cfg=cfg, optimizer=None)
        schedule = tf.keras.optimizers.schedules.PolynomialDecay(3e-3, 2, 1e-4)
        train(given, 1, loader, cfg=cfg, optimizer=tf.keras.optimizers.Adam(schedule))
        self.assertSameNetworks(own, given)

    def test_a_rate_that_moves_needs_a_loader_with_a_length(self):
        loader = Endless(corridor(), 150)
        with self.assertRaisesRegex(UsageError, "no length"):
            train(networks(), 1, loader, cfg=self.cfg, optimizer=None)
        cfg = TextConfig(batch_size=8, learning_rate=1e-3, final_learning_rate=1e-3)
        rate = learn.make_optimizer(cfg, 1, loader)._learning_rate
        self.assertAllClose([rate(0), rate(99)], [1e-3, 1e-3])

    def test_every_method_runs(self):
        for method in ("q", "implicit", "montecarlo", "filtered"):
            cfg = TextConfig(method=method, batch_size=32, updates_per_batch=1)
            last = train(networks(), 1, Batches(corridor(), 150), cfg=cfg)
            self.assertEqual(last.step, 2)
            self.assertTrue(np.isfinite(last.loss))

    def test_strings_are_learned_from_as_the_settings_say(self):
        asked = []

        def reward(text):
            asked.append(text)
            return float("sun" in text)

        tokenizer = make_tokenizer(["red", "sun", "moon"])
        texts = ["red sun", "red moon", "moon red", "red red"]
        for settings, rewards, rows in (
            (dict(), [[0, 1], [0, 0], [0, 0], [0, 0]], 4),
            (dict(reward_at="end"), [[0, 1], [0, 0], [0, 0], [0, 0]], 4),
            (dict(method="montecarlo", gamma=0.5), [[0.5, 1], [0, 0], [0, 0], [0, 0]], 4),
            (dict(method="filtered", keep_best=0.2), [[0, 1]], 1),
        ):
            with self.subTest(**settings):
                asked.clear()
                cfg = TextConfig(batch_size=4, updates_per_batch=1, **settings)
                pair = networks(length=3, actions=6, causal=True)
                replay = ExperienceReplay(10)
                how = dict(cfg=cfg, reward_fn=reward, length=3)
                learn.train_model(*pair, None, 1, tokenizer, [texts], replay, **how)
                self.assertLen(replay, rows)
                kept = sorted(replay.sample(200).reward.numpy().tolist(), reverse=True)
                self.assertAllClose(kept[0], rewards[0])
                self.assertEqual(len(asked), 4 if "reward_at" in settings else 8)

    def test_what_fails_before_anything_was_learned_is_told(self):
        def save(step, make, last=False):
            raise AssertionError("there is nothing to save")

        how = dict(cfg=self.cfg, tokenizer=make_tokenizer(["red"]), length=3, save=save)
        pair = networks(length=3, actions=4, causal=True)
        with self.assertRaisesRegex(UsageError, "reward_fn .* fails"):
            train(pair, 1, [["red red"]], reward_fn=lambda text: 1 / 0, **how)
        with self.assertRaisesRegex(UsageError, "list of texts is asked for, not the text 'red'"):
            train(pair, 1, ["red", "red red"], reward_fn=len, **how)
        batch = {"text": ["red", "red red"], "label": [0, 1]}
        with self.assertRaisesRegex(UsageError, "not something of type dict; .*batch..text"):
            train(pair, 1, [batch], reward_fn=len, **how)
        with self.assertRaisesRegex(UsageError, r"gives b'caf\\xe9', which is not UTF-8"):
            train(pair, 1, [["café".encode("latin-1")]], reward_fn=len, **how)
        for length in (0, 1, 2.5):
            how["length"] = length
            with self.assertRaisesRegex(UsageError, f"length must .* at least 2, not {length}"):
                train(pair, 1, [["red"]], reward_fn=len, **how)

    def test_networks_optimizers_and_counts_that_can_not_be(self):
        pair = networks()
        loader = Batches(corridor(), 150)
        for epochs in (0, 1.5):
            with self.assertRaisesRegex(UsageError, f"epochs must be .* at least 1, not {epochs}"):
                train(pair, epochs, loader, cfg=self.cfg)
        with self.assertRaisesRegex(UsageError, "evaluate_every must be .* at least 1, not 0"):
            train(pair, 1, loader, cfg=self.cfg, evaluate_every=0)
        width = pair[1].input_dim
        wider = DeepQLearningModel(width + 8, 2)
        with self.assertRaisesRegex(UsageError, f"the encoder gives {width}; .*={width}"):
            train((pair[0], wider), 1, loader, cfg=self.cfg)
        optimizer = tf.keras.optimizers.Adam(1e-3)
        train(pair, 1, loader, cfg=self.cfg, optimizer=optimizer)
        train(pair, 1, loader, cfg=self.cfg, optimizer=optimizer)
        with self.assertRaisesRegex(UsageError, "networks made before; make a new one"):
            train(networks(), 1, loader, cfg=self.cfg, optimizer=optimizer)
        for odd in (tf.keras.optimizers.legacy.Adam(), keras.optimizers.Adam(), "sgd"):
            with self.assertRaisesRegex(UsageError, "give one of tf.keras.optimizers"):
                train(pair, 1, loader, cfg=self.cfg, optimizer=odd)

    def test_a_loader_that_is_used_up_loses_nothing(self):
        kept = []

        def save(step, make, *, last=False):
            if last:
                kept.append(step)

        batches = (items for items in Batches(corridor(), 150))
        with self.assertRaisesRegex(UsageError, "gave nothing in pass 2; .*a generator is used up"):
            train(networks(), 2, batches, cfg=self.cfg, save=save)
        self.assertEqual(kept, [2])

    def test_an_encoder_that_sees_the_word_that_it_is_to_choose_is_refused(self):
        tokenizer = make_tokenizer(["red", "sun"])
        how = dict(cfg=self.cfg, tokenizer=tokenizer, reward_fn=len, length=3)
        with self.assertRaisesRegex(UsageError, "causal=True, or give batches of Transition"):
            train(networks(length=3, actions=5), 1, [["red sun"]], **how)

    def test_nothing_is_swallowed(self):
        class Broken:
            def __iter__(self):
                yield from Batches(corridor(), 150)
                raise OSError("the disk is gone")

        pair = networks()
        with self.assertRaisesRegex(OSError, "disk is gone"):
            train(pair, 1, Broken(), cfg=self.cfg)
        with self.assertRaisesRegex(UsageError, "nothing to learn"):
            train(pair, 1, [], cfg=self.cfg)
        with self.assertRaisesRegex(UsageError, "reward_fn"):
            train(pair, 1, [["red sun"]], cfg=self.cfg)
        for device in ("/zpu", "tpu", "/CPU:7"):
            with self.assertRaisesRegex(UsageError, f"no device {device}"):
                learn.train_model(*pair, None, 1, None, [[]], ExperienceReplay(9), device)
        for empty in ([[]], [[], []]):
            with self.assertRaisesRegex(UsageError, "ended before its first update"):
                how = dict(tokenizer=make_tokenizer(["a"]), reward_fn=len, length=2)
                train(networks(causal=True), 1, empty, cfg=self.cfg, **how)
        endless = corridor()._replace(reward=np.full(300, np.inf))
        with self.assertRaisesRegex(UsageError, "reward must hold finite numbers"):
            train(pair, 1, Batches(endless, 150), cfg=self.cfg)
        poisoned = corridor()._replace(reward=np.full(300, 3e38))
        with self.assertRaisesRegex(Diverged, "at update 1 .loss (inf|nan), grad_norm"):
            train(pair, 1, Batches(poisoned, 150), cfg=self.cfg)

    def test_numbers_beyond_the_tables_are_refused(self):
        """Compiled by XLA they would be learned from in silence."""
        faults = (
            (dict(state=np.full([300, 2], 8)), "8 token ids, not for 9"),
            (dict(next_state=np.full([300, 2], -1)), "token ids from -1"),
            (dict(state=np.zeros([300, 3], int)), "reads 2 tokens, not 3"),
            (dict(action=np.full(300, 2)), "actions from 2 to 2"),
        )
        pair = networks()
        for fault, message in faults:
            with self.assertRaisesRegex(UsageError, message):
                train(pair, 1, Batches(corridor()._replace(**fault), 150), cfg=self.cfg)
        tokenizer = make_tokenizer(["red", "sun"])
        with self.assertRaisesRegex(UsageError, "reads 2 tokens, not 64"):
            train(pair, 1, [["red sun"]], cfg=self.cfg, tokenizer=tokenizer, reward_fn=len)

    def test_texts_of_unknown_words_teach_nothing(self):
        pair = networks(length=4, actions=4, causal=True)
        tokenizer = make_tokenizer(["red"])
        how = dict(cfg=self.cfg, tokenizer=tokenizer, reward_fn=len, length=4)
        with self.assertRaisesRegex(UsageError, "knows no word"):
            train(pair, 1, [["blue moon", "green"]], **how)
        train(pair, 1, [["blue moon"], ["red"]], **how)

    def failing(self, pair, loader, at, **options):
        """What is saved of a training whose evaluation number `at` calls sys.exit."""
        asked = []

        def evaluate():
            asked.append(0)
            if len(asked) == at:
                raise SystemExit(3)
            return 1.0

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "checkpoints").mkdir()
            save = make_saver(Path(folder), 10_000)
            how = dict(optimizer=None, evaluate=evaluate, save=save)
            with self.assertRaises(SystemExit):
                train(pair, 1, loader, **how, **options)
            return load_checkpoint(folder)[0]

    @slow("10 s: two trainings")
    def test_a_failing_evaluation_within_a_batch_loses_nothing(self):
        """The checkpoint is one to go on from bit for bit."""
        cfg = TextConfig(batch_size=16, updates_per_batch=2)
        loader = Batches(corridor(), 150)  # 2 batches
        whole = networks()
        again = networks(seed=5)
        train(whole, 1, loader, cfg=cfg, optimizer=None)
        saved = self.failing(networks(), loader, 1, cfg=cfg, evaluate_every=1)
        self.assertEqual((saved["place"]["step"], saved["place"]["batch"]), (2, 1))
        train(again, 1, loader, cfg=cfg, optimizer=None, saved=saved)
        self.assertSameNetworks(whole, again)

    def test_a_failing_last_evaluation_loses_nothing(self):
        saved = self.failing(networks(), Batches(corridor(), 300), 1, cfg=self.cfg)
        self.assertEqual((saved["place"]["step"], saved["place"]["epoch"]), (1, 1))

    def test_what_was_learned_is_saved_before_an_environment_fails(self):
        class Failing(Batches):
            def __iter__(self):
                for number, items in enumerate(super().__iter__()):
                    if number == 3:
                        raise EnvFailure("the actors are gone")
                    yield items

        kept = []

        def save(step, make, *, last=False):
            if last:
                kept.append((step, make()))

        with self.assertRaisesRegex(EnvFailure, "actors are gone"):
            train(networks(), 2, Failing(corridor(), 30), cfg=self.cfg, save=save)
        ((step, saved),) = kept
        self.assertEqual(step, 3)
        self.assertEqual(saved["place"]["batch"], 3)
        self.assertLen(saved["replay"]["buffer"], len(Transition._fields) + 2)


if __name__ == "__main__":
    unittest.main()
