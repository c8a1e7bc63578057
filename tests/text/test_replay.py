"""The replay of texts keeps what it is given, and every word of a text is a decision."""

import unittest

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text.replay import Episode, ExperienceReplay, Transition, episodes_of
from tfdqt.text.tokenizers import make_tokenizer, token_rows

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
        rewards = replay.sample(8_000, seed=(1, 2)).reward.numpy().astype(int)
        self.assertAllInRange(np.bincount(rewards, minlength=8), 850, 1_150)
        self.assertAllEqual(
            replay.sample(50, seed=(3, 4)).reward, replay.sample(50, seed=(3, 4)).reward
        )
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

    def test_numbers_that_nothing_can_be_learned_from(self):
        for changes, said in (
            (dict(reward=[0.0, np.nan]), "reward must hold finite numbers"),
            (dict(reward=["0.5", "1"]), "reward must hold numbers, not <U3"),
            (dict(discount=[1.0, 7.0]), "discount must lie between 0 and 1"),
            (dict(discount=[1.0, -1.0]), "discount must lie between 0 and 1"),
            (dict(action=["a", "b"]), "action must hold numbers"),
        ):
            whole = Transition(*map(np.array, zip(*map(transition, range(2)))))
            whole = whole._replace(**{name: np.array(x) for name, x in changes.items()})
            with self.subTest(said=said), self.assertRaisesRegex(UsageError, said):
                ExperienceReplay().extend(whole)

    def test_all_of_it_can_be_put_back(self):
        replay = ExperienceReplay(capacity=4)
        for i in range(6):
            replay.push(*transition(i))
        again = ExperienceReplay(capacity=4)
        again.restore(replay.arrays())
        for field, other in zip(replay.sample(20, seed=(0, 0)), again.sample(20, seed=(0, 0))):
            self.assertAllEqual(field, other)

    def test_all_is_imitated_unless_it_says_otherwise(self):
        replay = ExperienceReplay(capacity=4)
        whole = Transition(*map(np.array, zip(*map(transition, range(2)))))
        replay.extend(whole._replace(imitated=np.array([0.0, 1.0])))
        replay.extend(whole)
        sample = replay.sample(200)
        of_second = sample.imitated.numpy()[sample.reward.numpy() == 1]
        of_first = sample.imitated.numpy()[sample.reward.numpy() == 0]
        self.assertAllEqual(np.unique(of_second), [1])
        self.assertAllEqual(np.unique(of_first), [0, 1])
        for odd, said in (
            (np.ones(3), "do not belong"),
            (0.0, "do not belong"),
            ([2, 0], "0 or 1"),
        ):
            with self.assertRaisesRegex(UsageError, said):
                replay.extend(whole._replace(imitated=np.asarray(odd)))

    def test_checkpoints_without_what_is_imitated_are_put_back(self):
        replay = ExperienceReplay(capacity=4)
        for i in range(6):
            replay.push(*transition(i))
        saved = replay.arrays()
        saved["shapes"] = saved["shapes"][:-1]
        lacked = [name for name in saved["buffer"] if name.endswith("/imitated")]
        self.assertLen(lacked, 1)
        del saved["buffer"][lacked[0]]
        again = ExperienceReplay(capacity=4)
        again.restore(saved)
        for field, other in zip(replay.sample(20, seed=(0, 0)), again.sample(20, seed=(0, 0))):
            self.assertAllEqual(field, other)

    def test_fields_that_do_not_belong_together_are_refused(self):
        whole = Transition(*map(np.array, zip(*map(transition, range(3)))))
        for faulty, said in (
            (whole._replace(action=np.arange(5)), "do not belong together.*action .5,"),
            (whole._replace(reward=np.zeros([3, 1])), "do not belong together"),
            (whole._replace(next_state=np.zeros([3, 4])), "do not belong together"),
            (whole._replace(state=whole.state + 0.5), "state must hold whole numbers"),
            (whole._replace(action=np.full(3, 2**40)), "action must hold whole numbers"),
            (tuple(whole), "not a tuple"),
        ):
            with self.assertRaisesRegex(UsageError, said):
                ExperienceReplay(4).extend(faulty)
        text = np.zeros([2, 4], int)
        episode = Episode(text, text, *[np.zeros([2, 3])] * 4)
        ExperienceReplay(4).extend(episode)
        with self.assertRaisesRegex(UsageError, "do not belong together"):
            ExperienceReplay(4).extend(episode._replace(at=text[:, :3]))


class TestEpisodes(tf.test.TestCase):
    def test_rewards_of_words_sum_to_the_worth_of_the_text(self):
        tokenizer = make_tokenizer(WORDS)
        worth = {"red": 1.0, "blue": -0.5}

        def reward(text):
            return sum(worth.get(word, 0.0) for word in text.split())

        def episodes(texts, reward_fn=reward, **options):
            return episodes_of(tokenizer, token_rows(tokenizer, texts), 5, reward_fn, **options)

        items = episodes(["red sun blue", "moon odd red"])
        self.assertAllClose(items.reward, [[1, 0, -0.5, 0], [0, 0, 1, 0]])
        # An unknown word is read, not learned.
        self.assertAllEqual(items.mask, [[1, 1, 1, 0], [1, 0, 1, 0]])
        self.assertAllEqual(items.discount, [[1, 1, 0, 1], [1, 1, 0, 1]])
        written = tokenizer.convert_ids_to_tokens(items.action[0, :3].tolist())
        self.assertAllEqual(written, ["red", "sun", "blue"])
        with self.assertRaisesRegex(UsageError, "reward_fn .* on the text 'red' is not finite"):
            episodes(["red"], lambda text: float("nan"))
        self.assertAllEqual(episodes([]).text.shape, [0, 5])

    def test_a_text_ends_with_the_last_word_that_is_known(self):
        # Of a text of none nothing is asked.
        tokenizer = make_tokenizer(WORDS)
        rows = token_rows(tokenizer, ["red sun odd odd", "odd odd", "odd red"])
        asked = []

        def reward(text):
            asked.append(text)
            return 10.0 + len(text.split())

        by_word = episodes_of(tokenizer, rows, 6, reward)
        at_end = episodes_of(tokenizer, rows, 6, reward, reward_at="end")
        self.assertNotIn("", asked)
        self.assertAllEqual(by_word.reward, [[11, 1, 0, 0, 0], [0] * 5, [0, 11, 0, 0, 0]])
        self.assertAllEqual(at_end.reward, [[0, 12, 0, 0, 0], [0] * 5, [0, 11, 0, 0, 0]])
        for items in (by_word, at_end):
            self.assertAllEqual(items.mask, [[1, 1, 0, 0, 0], [0] * 5, [0, 1, 0, 0, 0]])
            ends = [[1, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 0, 1, 1, 1]]
            self.assertAllEqual(items.discount, ends)


if __name__ == "__main__":
    unittest.main()
