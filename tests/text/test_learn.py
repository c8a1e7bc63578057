"""Learning and writing: the loss by hand, the replay of texts, training that can be stopped, loaders, and generation."""

import tempfile
import unittest
from pathlib import Path

import numpy as np

from tfdqt import reading, text, writing
from tfdqt.backend import tf
from tfdqt.bert import build_text_networks, dense_kernels
from tfdqt.config import TextConfig, TextNetworkConfig, UsageError
from tfdqt.replay import Episode, ExperienceReplay, Transition
from tfdqt.runs import load_checkpoint, make_saver

NETWORK = TextNetworkConfig(layers=1, heads=2, width=16, hidden=(16,), pruning_amount=0.5)
WORDS = ["red", "green", "blue", "sun", "moon"]


def transition(i):
    return [i, i + 1, 0], i % 3, float(i), [i + 1, i + 2, 0], i % 2 == 1


class TestExperienceReplay(tf.test.TestCase):

    def test_keeps_the_latest_and_gives_them_back_whole(self):
        replay = ExperienceReplay(capacity=4)
        self.assertLen(replay, 0)
        for i in range(6):
            replay.push(*transition(i))
        self.assertLen(replay, 4)
        sample = replay.sample(500)
        self.assertIsInstance(sample, Transition)
        rewards = sample.reward.numpy().astype(int)
        self.assertAllEqual(np.unique(rewards), [2, 3, 4, 5])  # 0 and 1 went first
        self.assertAllEqual(sample.state[:, 0], rewards)
        self.assertAllEqual(sample.next_state[:, 0], rewards + 1)
        self.assertAllEqual(sample.action, rewards % 3)
        self.assertAllEqual(sample.discount, 1.0 - rewards % 2)

    def test_draws_are_uniform_and_follow_the_seed(self):
        replay = ExperienceReplay(capacity=10)
        for i in range(8):
            replay.push(*transition(i))
        counts = np.bincount(replay.sample(8_000, seed=(1, 2)).reward.numpy().astype(int), minlength=8)
        self.assertAllInRange(counts, 850, 1_150)
        self.assertAllEqual(replay.sample(50, seed=(3, 4)).reward, replay.sample(50, seed=(3, 4)).reward)
        self.assertNotAllEqual(replay.sample(50).reward, replay.sample(50).reward)

    def test_what_can_not_be(self):
        with self.assertRaises(UsageError):
            ExperienceReplay(capacity=0)
        replay = ExperienceReplay()
        with self.assertRaisesRegex(UsageError, "empty"):
            replay.sample(1)
        replay.push(*transition(0))
        with self.assertRaisesRegex(UsageError, "one length"):
            replay.push([1, 2], 0, 0.0, [1, 2], False)

    def test_all_of_it_can_be_put_back(self):
        replay = ExperienceReplay(capacity=4)
        for i in range(6):
            replay.push(*transition(i))
        again = ExperienceReplay(capacity=4)
        again.restore(replay.arrays())
        for field, other in zip(replay.sample(20, seed=(0, 0)), again.sample(20, seed=(0, 0))):
            self.assertAllEqual(field, other)


class TestCustomLoss(tf.test.TestCase):

    q = tf.constant([[[1.0, 2.0, 4.0]], [[0.5, 0.0, -1.0]]])  # [B=2, P=1, A=3]
    actions = tf.constant([[1], [0]])
    rewards = tf.constant([[0.5], [-1.0]])
    next_q = tf.constant([[[3.0, 1.0, 2.0]], [[9.0, 9.0, 9.0]]])
    ends = tf.constant([[0.0], [1.0]])

    def test_by_hand(self):
        loss, found = text.custom_loss(self.q, self.actions, self.rewards, self.next_q, self.ends, gamma=0.5)
        # Targets 0.5 + 0.5 * 3 = 2 and -1 (the text ended): errors 0 and 1.5, Huber 0 and 1.5 - 0.5.
        self.assertAllClose(loss, 0.5)
        self.assertAllClose(found["td_error"], 0.75)

    def test_double_q_takes_the_online_networks_choice(self):
        online = tf.constant([[[0.0, 5.0, 0.0]], [[0.0, 0.0, 0.0]]])
        loss, _ = text.custom_loss(self.q, self.actions, self.rewards, self.next_q, self.ends, gamma=0.5, next_q_online=online)
        self.assertAllClose(loss, (0.5 + 1.0) / 2)  # target 0.5 + 0.5 * 1 = 1: error 1, Huber 0.5

    def test_padding_does_not_count(self):
        loss, _ = text.custom_loss(self.q, self.actions, self.rewards, self.next_q, self.ends, gamma=0.5, mask=tf.constant([[0.0], [1.0]]))
        self.assertAllClose(loss, 1.0)

    def test_conservative_term(self):
        plain, _ = text.custom_loss(self.q, self.actions, self.rewards, self.next_q, self.ends, gamma=0.5)
        loss, _ = text.custom_loss(self.q, self.actions, self.rewards, self.next_q, self.ends, gamma=0.5, conservative=2.0)
        above = [np.log(np.exp([1, 2, 4]).sum()) - 2, np.log(np.exp([0.5, 0, -1]).sum()) - 0.5]
        self.assertAllClose(loss - plain, 2.0 * np.mean(above))

    def test_expectile_term_and_values_of_states(self):
        value, frozen = tf.constant([[1.0], [1.0]]), tf.constant([[[0.0, 3.0, 0.0]], [[0.5, 0.0, 0.0]]])
        loss, _ = text.custom_loss(self.q, self.actions, self.rewards, tf.constant([[3.0], [7.0]]), self.ends, gamma=0.5, value=value,
                                   frozen_q=frozen, expectile=0.9)
        self.assertAllClose(loss, 0.5 + (0.9 * 2.0 ** 2 + 0.1 * 0.5 ** 2) / 2)

    def test_advantage_learning_lowers_the_target_of_the_worse_word(self):
        frozen = tf.constant([[[0.0, 1.0, 1.5]], [[2.0, 0.0, 0.0]]])  # the first word written lies 0.5 below the best, the second is it
        loss, _ = text.custom_loss(self.q, self.actions, self.rewards, self.next_q, self.ends, gamma=0.5, frozen_q=frozen,
                                   advantage_learning=0.8)
        self.assertAllClose(loss, (0.5 * 0.4 ** 2 + 1.0) / 2)  # targets 2 - 0.4 and -1: errors 0.4 and 1.5

    def test_no_gradient_enters_the_targets(self):
        next_q, online, frozen = (tf.Variable(self.next_q) for _ in range(3))
        with tf.GradientTape() as tape:
            loss, _ = text.custom_loss(self.q, self.actions, self.rewards, next_q, self.ends, next_q_online=online, frozen_q=frozen,
                                       advantage_learning=0.9)
        self.assertAllEqual(tape.gradient(loss, [next_q, online, frozen]), [None, None, None])


def corridor(count=60):
    """Walk along five words; the last one pays. Right is action 1; the best is to go right at once."""
    rng = np.random.default_rng(0)
    items = [[], [], [], [], []]
    for _ in range(count * 5):
        at, action = int(rng.integers(4)), int(rng.integers(2))
        to = min(4, at + 1) if action else max(0, at - 1)
        for column, value in zip(items, ([2, 3 + at], action, 1.0 if to == 4 else 0.0, [2, 3 + to], 0.0 if to == 4 else 1.0)):
            column.append(value)
    return Transition(*map(np.array, items))


class Batches:

    def __init__(self, items, size):
        self.items, self.size = items, size

    def __iter__(self):
        for i in range(0, len(self.items[0]), self.size):
            yield type(self.items)(*(field[i:i + self.size] for field in self.items))


def networks(*, length=2, actions=2, causal=False, vocabulary=8, seed=0):
    tf.keras.utils.set_random_seed(seed)
    return build_text_networks(NETWORK, vocabulary=vocabulary, length=length, num_actions=actions, causal=causal)


def train(pair, epochs, loader, *, cfg, **options):
    return text.train_model(*pair, tf.keras.optimizers.Adam(3e-3), epochs, None, loader, ExperienceReplay(1_000), "cpu", cfg=cfg, **options)


class TestTrainModel(tf.test.TestCase):

    cfg = TextConfig(batch_size=32, updates_per_batch=4, gamma=0.9, target_tau=0.1)

    def test_learns_the_known_values_of_a_corridor(self):
        pair = networks()
        lines = []
        last = train(pair, 12, Batches(corridor(), 30), cfg=self.cfg, log=lines.append)
        states = tf.constant([[2, 3 + i] for i in range(4)])
        q = pair[1](pair[0](states)[:, 0]).numpy()
        self.assertAllClose(q[:, 1], 0.9 ** np.array([3, 2, 1, 0]), atol=0.1)
        self.assertAllClose(q[1:, 0], 0.9 ** np.array([4, 3, 2]), atol=0.1)
        self.assertEqual(last.step, 12 * 10 * 4)
        self.assertLen(lines, 12 * 10)
        self.assertLess(last.td_error, lines[0].td_error)
        for kernel in dense_kernels(pair[0].bert):  # pruning holds to the end
            self.assertAlmostEqual(np.mean(kernel.numpy() == 0), 0.5, delta=0.01)

    def test_targets_follow_plausible_words_only(self):
        """Action 1, hardly ever in the data, would be valued highest behind the first word."""
        pair, target = networks(actions=2), networks(actions=2, seed=1)
        for branch, bias in ((pair[1].q, [0.0, 5.0]), (pair[1].cloned, [5.0, 0.0]), (target[1].q, [1.0, 8.0])):
            branch.set_weights([np.zeros_like(branch.get_weights()[i]) for i in range(len(branch.weights) - 1)] + [np.array(bias)])
        batch = Transition(tf.constant([[2, 3]]), tf.constant([0]), tf.constant([0.5]), tf.constant([[2, 4]]), tf.constant([1.0]))
        errors = []
        for plausible in (0.0, 0.5):
            cfg = TextConfig(gamma=1.0, cloning=1.0, plausible=plausible, target_tau=0.0)
            twin = (pair[0].copy(), pair[1].copy())
            errors.append(float(text.make_text_update(*twin, *target, tf.keras.optimizers.SGD(0.0), cfg)(batch)["td_error"]))
        self.assertAllClose(errors, [0.5 + 8.0, 0.5 + 1.0])

    def test_one_pass_over_an_episode_learns_as_its_transitions_do(self):
        """Q, targets and loss of a causal encoder agree between an Episode and the same steps as Transitions."""
        pair = networks(length=4, actions=3, causal=True)
        episode = Episode(np.array([[2, 3, 4, 5]]), np.array([[0, 1, 2, 3]]), np.array([[0, 2, 1]]), np.array([[0.0, 1.0, 0.5]]),
                          np.array([[1.0, 1.0, 0.0]]), np.ones((1, 3)))
        steps = Transition(np.array([[2, 0, 0, 0], [2, 3, 0, 0], [2, 3, 4, 0]]), np.array([0, 2, 1]), np.array([0.0, 1.0, 0.5]),
                           np.array([[2, 3, 0, 0], [2, 3, 4, 0], [2, 3, 4, 5]]), np.array([1.0, 1.0, 0.0]))
        seen = []
        for items in (episode, steps):
            twin = (pair[0].copy(), pair[1].copy())
            update = text.make_text_update(*twin, pair[0], pair[1], tf.keras.optimizers.SGD(0.1), TextConfig(target_tau=0.0))
            fields = [tf.constant(np.asarray(f, np.int32 if np.asarray(f).dtype.kind == "i" else np.float32)) for f in items]
            found = update(type(items)(*fields))
            seen.append([*[variable.numpy() for variable in twin[1].weights], *(found[name].numpy() for name in ("loss", "td_error"))])
        for one, other in zip(*seen):
            self.assertAllClose(one, other, atol=1e-6)

    def test_stopped_and_resumed_is_bit_equal_to_unbroken(self):
        cfg = TextConfig(method="implicit", cloning=0.5, beta=1.0, batch_size=16, updates_per_batch=2)
        whole, broken, again = networks(), networks(), networks(seed=5)
        train(whole, 2, Batches(corridor(), 30), cfg=cfg)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "checkpoints").mkdir()
            count = []
            train(broken, 2, Batches(corridor(), 30), cfg=cfg, save=make_saver(Path(folder), 10_000),
                  should_stop=lambda: count.append(0) or len(count) == 13)
            saved, _ = load_checkpoint(folder)
        last = train(again, 2, Batches(corridor(), 30), cfg=cfg, saved=saved)
        self.assertEqual(last.step, 40)
        for one, other in zip(whole, again):
            for mine, theirs in zip(one.variables, other.variables):
                self.assertAllEqual(mine, theirs)

    def test_every_method_runs_and_clones_what_it_should(self):
        items = corridor()
        right = Transition(*(field[items.action == 1] for field in items))
        for method in ("clone", "montecarlo", "implicit"):
            pair = networks()
            last = train(pair, 4, Batches(right, 50), cfg=TextConfig(method=method, batch_size=32, updates_per_batch=4))
            self.assertTrue(np.isfinite(last.loss))
            if method == "clone":
                policy = writing.make_scores(*pair, clone=True)(tf.constant([[2, 3]]), tf.constant([0]))
                self.assertGreater(policy[0, 1], np.log(0.9))

    def test_the_advantage_weights_what_is_cloned(self):
        """Half of the data's moves go left, away from the reward: cloned alike they stay a half, weighted they hardly count."""
        left = {}
        for weighting in (0.0, 10.0):
            pair, cfg = networks(), TextConfig(method="implicit", batch_size=32, updates_per_batch=4, gamma=0.9, target_tau=0.1,
                                               cloning=1.0, advantage_weighting=weighting)
            train(pair, 12, Batches(corridor(), 30), cfg=cfg)
            policy = writing.make_scores(*pair, clone=True)(tf.constant([[2, 4], [2, 5], [2, 6]]), tf.constant([0, 0, 0]))
            left[weighting] = np.exp(policy[:, 0])
        self.assertAllClose(left[0.0], [0.5] * 3, atol=0.15)
        self.assertAllLess(left[10.0], 0.3)

    def test_the_norm_that_is_clipped_is_that_of_the_step(self):
        """Also where a token stands twice in a batch: what its two places ask for is added up before it is measured."""
        pair, tokens = networks(length=4, actions=3, causal=True), np.array([[2, 2, 3, 2], [2, 4, 2, 3]])
        once = np.ones((2, 1), "float32")
        batch = Episode(*map(tf.constant, (tokens, np.array([[0, 1], [0, 2]]), np.array([[1], [2]]), once, once, once)))
        for limit, expected in ((1e6, None), (0.5, 0.5)):
            trained = [*pair[0].bert.trainable_variables, *pair[1].trainable_variables]
            before = [variable.numpy() for variable in trained]
            update = text.make_text_update(*pair, pair[0].copy(), pair[1].copy(), tf.keras.optimizers.SGD(1.0),
                                           TextConfig(max_grad_norm=limit))
            norm = float(update(batch)["grad_norm"])
            step = np.sqrt(sum(np.sum(np.square(variable.numpy() - old)) for variable, old in zip(trained, before)))
            self.assertAllClose(step, expected or norm, rtol=1e-3)
            self.assertGreater(norm, 0.5)

    def test_nothing_is_swallowed(self):
        class Broken:
            def __iter__(self):
                yield from Batches(corridor(), 30)
                raise OSError("the disk is gone")

        with self.assertRaisesRegex(OSError, "disk is gone"):
            train(networks(), 1, Broken(), cfg=self.cfg)
        with self.assertRaisesRegex(UsageError, "nothing to learn"):
            train(networks(), 1, [], cfg=self.cfg)
        with self.assertRaisesRegex(UsageError, "reward_fn"):
            train(networks(), 1, [["red sun"]], cfg=self.cfg)
        poisoned = corridor()._replace(reward=np.full(300, np.inf))
        with self.assertRaisesRegex(UsageError, "loss is"):
            train(networks(), 1, Batches(poisoned, 30), cfg=self.cfg)


class TestTexts(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.tmp = Path(self.folder.name)

    def test_words_are_streamed_in_order_over_block_borders(self):
        Path(self.tmp, "b.txt").write_text("The sun’s red, RED moon.\n\n" * 40, encoding="utf-8")
        Path(self.tmp, "a.txt").write_text("", encoding="utf-8")
        expected = ["the", "sun’s", "red", ",", "red", "moon", "."] * 40
        before = reading.BLOCK
        try:
            for reading.BLOCK in (7, 64, before):
                pieces = list(reading.read_texts(self.tmp))
                self.assertAllEqual([word for _, words in pieces for word in words], expected)
        finally:
            reading.BLOCK = before
        self.assertAllEqual(reading.common_words(self.tmp, 2), ["red", "the"])

    def test_windows_stay_inside_a_file_and_hold_out_every_twentieth(self):
        for name in "ab":
            Path(self.tmp, f"{name}.txt").write_text(" ".join(f"{name}{i}" for i in range(101)), encoding="utf-8")
        everything = [line.decode() for batch in reading.text_loader(self.tmp, 5, 8) for line in batch.numpy()]
        self.assertLen(everything, 40)
        self.assertEqual(everything[20], "b0 b1 b2 b3 b4")
        heldout = [line for batch in reading.text_loader(self.tmp, 5, 8, heldout=True) for line in batch.numpy()]
        rest = [line for batch in reading.text_loader(self.tmp, 5, 8, heldout=False) for line in batch.numpy()]
        self.assertLen(heldout, 2)
        self.assertLen(rest, 38)

    def test_bad_bytes_are_named_with_file_and_offset(self):
        before = reading.BLOCK
        try:
            for reading.BLOCK in (5, before):
                Path(self.tmp, "bad.txt").write_bytes("sunny día ".encode() + b"\xff more")
                with self.assertRaisesRegex(UsageError, "bad.txt is not UTF-8 at byte 11"):
                    list(reading.read_texts(self.tmp))
        finally:
            reading.BLOCK = before
        with tempfile.TemporaryDirectory() as empty, self.assertRaisesRegex(UsageError, "no .txt files"):
            list(reading.read_texts(empty))

    def test_rewards_of_words_sum_to_the_worth_of_the_text(self):
        tokenizer = reading.make_tokenizer(WORDS)
        worth = {"red": 1.0, "blue": -0.5}
        items = reading.episodes(tokenizer, ["red sun blue", "moon odd red"], 5, lambda t: sum(worth.get(w, 0.0) for w in t.split()))
        self.assertAllClose(items.reward, [[1, 0, -0.5, 0], [0, 0, 1, 0]])
        self.assertAllEqual(items.mask, [[1, 1, 1, 0], [1, 0, 1, 0]])  # an unknown word is read, not learned
        self.assertAllEqual(items.discount, [[1, 1, 0, 1], [1, 1, 0, 1]])
        self.assertAllEqual(tokenizer.convert_ids_to_tokens(items.action[0, :3].tolist()), ["red", "sun", "blue"])
        with self.assertRaisesRegex(UsageError, "not finite"):
            reading.episodes(tokenizer, ["red"], 5, lambda t: float("nan"))


class TestWriting(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        self.tokenizer = reading.make_tokenizer(WORDS)
        self.size = len(self.tokenizer)

    def chain(self, table):
        """Scores that depend on the last word alone: {word: {next: probability}}."""
        names = self.tokenizer.convert_ids_to_tokens(list(range(self.size)))

        def scores(ids, at):
            last = [names[row[i]] for row, i in zip(np.asarray(ids), np.asarray(at))]
            return np.log([[table.get(word, {}).get(name, 1e-9) for name in names] for word in last])

        return scores

    def test_greedy_beam_and_sample(self):
        # The likeliest first word leads to no likely text: greedy 0.6 * 0.5, beam 0.4 * 1.
        table = {"[CLS]": {"red": 0.6, "blue": 0.4}, "red": {"sun": 0.5, "moon": 0.5}, "blue": {"moon": 1.0}}
        write = self.chain(table)
        self.assertEqual(writing.generate(write, self.tokenizer, [""], words=2, method="greedy"), ["red sun"])
        self.assertEqual(writing.generate(write, self.tokenizer, [""], words=2, method="beam", beams=2), ["blue moon"])
        texts = writing.generate(write, self.tokenizer, [""] * 2_000, words=1, seed=1)
        self.assertAlmostEqual(texts.count("red") / 2_000, 0.6, delta=0.04)
        cold = writing.generate(write, self.tokenizer, [""] * 500, words=1, seed=1, temperature=0.1)
        self.assertGreater(cold.count("red"), 480)
        self.assertEqual(set(writing.generate(write, self.tokenizer, [""] * 100, words=1, top_k=1)), {"red"})
        self.assertEqual(set(writing.generate(write, self.tokenizer, [""] * 100, words=1, top_p=0.5)), {"red"})

    def test_masks_and_long_texts(self):
        write = self.chain({word: {"red": 0.9, "sun": 0.1} for word in ["[CLS]", *WORDS]})
        names = self.tokenizer.convert_ids_to_tokens(list(range(self.size)))
        never_red = np.array([name != "red" for name in names])
        self.assertEqual(writing.generate(write, self.tokenizer, ["blue"], words=3, method="greedy", allowed=lambda t: never_red),
                         ["blue sun sun sun"])
        self.assertEqual(writing.generate(write, self.tokenizer, ["moon"], words=9, length=4, method="greedy"), ["moon" + " red" * 9])
        with self.assertRaisesRegex(UsageError, "forbids"):
            writing.generate(write, self.tokenizer, ["blue"], allowed=lambda t: np.zeros(self.size, bool))
        with self.assertRaises(UsageError):
            writing.generate(write, self.tokenizer, ["blue"], temperature=0)

    def test_the_advantage_steers_the_cloned_policy(self):
        transformer, head = networks(length=6, actions=self.size, causal=True, vocabulary=self.size)
        ids, at = tf.constant([[2, 3, 4, 0, 0, 0]]), tf.constant([2])
        x = transformer(ids)[:, 2]
        policy, q = tf.nn.log_softmax(head.prior(x)).numpy(), head(x).numpy()
        self.assertAllClose(writing.make_scores(transformer, head)(ids, at), q, atol=1e-5)
        self.assertAllClose(writing.make_scores(transformer, head, clone=True)(ids, at), policy, atol=1e-5)
        advantage = q - (np.exp(policy) * q).sum()
        self.assertAllClose(writing.make_scores(transformer, head, beta=3.0)(ids, at), policy + 3 * advantage, atol=1e-5)

    def test_only_plausible_words_are_chosen_by_their_values(self):
        transformer, head = networks(length=6, actions=self.size, causal=True, vocabulary=self.size)
        ids, at = tf.constant([[2, 3, 4, 0, 0, 0]]), tf.constant([2])
        x = transformer(ids)[:, 2]
        policy, q = tf.nn.softmax(head.prior(x)).numpy()[0], head(x).numpy()[0]
        part = np.sort(policy)[-3] / policy.max() * 0.999  # three words are likely enough
        scores = writing.make_scores(transformer, head, plausible=float(part))(ids, at).numpy()[0]
        self.assertAllClose(np.sort(scores)[-3:], np.sort(q[np.argsort(policy)[-3:]]), atol=1e-5)
        self.assertEqual(scores.argmax(), max(np.argsort(policy)[-3:], key=lambda word: q[word]))

    def test_a_collapse_is_named(self):
        fine = writing.diversity(["the red sun and a blue moon", "all that green grass we saw"])
        self.assertIsNone(fine["collapsed"])
        self.assertEqual(fine["distinct1"], 1.0)
        bad = writing.diversity(["sun sun sun sun sun"])
        self.assertIn("'sun'", bad["collapsed"])
        self.assertAlmostEqual(bad["repetition"], 0.8)
        self.assertEqual(bad["entropy"], 0.0)


if __name__ == "__main__":
    unittest.main()
