"""The replay buffer: what is kept, which windows are drawn, and that all of it can be put back."""

import unittest
from unittest import mock

import numpy as np

from tfdqt import memory
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.games.spaces import EnvInfo
from tfdqt.replay import (
    Steps,
    check_memory,
    make_add,
    make_add_to,
    make_replay,
    make_sampler,
    make_uneven_replay,
    replay_arrays,
    restore_replay,
    steps_spec,
    steps_stored,
    stored_obs,
    stored_rewards,
)

ROWS, LENGTH, WINDOW = 3, 10, 4
INFO = EnvInfo("Counter", (2,), "int32", (), 5)


def counted(begin, end):
    """Steps [S, N] from `begin` to `end`, told apart in every field: row and time."""
    time, row = np.meshgrid(np.arange(begin, end), np.arange(ROWS), indexing="ij")
    return Steps(
        np.stack([row, time], axis=-1).astype(np.int32),
        (time % 5).astype(np.int32),
        (100 * row + time).astype(np.float32),
        ((time + row) % 3 != 0).astype(np.float32),
        (time + row) % 4 == 0,
    )


class Filled:
    """A small buffer and its compiled functions; made once, because each is a compilation."""

    def __init__(self):
        self.replay = make_replay(
            steps_spec(INFO), ROWS, ROWS * LENGTH + 2
        )  # the rest of the division is dropped
        self.add, sample = make_add(self.replay), make_sampler(self.replay, WINDOW)
        self.draw = tf.function(lambda seed: sample(2_000, seed))
        self.seen = 0

    def fill(self, *ends):
        for end in ends:
            self.add(counted(self.seen, end))
            self.seen = end
        return self

    def windows(self, seed=0, counter=0):
        return tf.nest.map_structure(
            lambda field: field.numpy(), self.draw(tf.constant([seed, counter], tf.int64))
        )


class Windows(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.partial = Filled().fill(2, 6)
        cls.wrapped = Filled().fill(
            4, 8, 27
        )  # steps 17 to 26 are left; the oldest stands in the middle of its row

    def test_windows_are_pieces_of_the_stream(self):
        for filled, oldest in ((self.partial, 0), (self.wrapped, 17)):
            windows = filled.windows()
            self.assertEqual(windows.obs.shape, (2_000, WINDOW, 2))
            row, time = windows.obs[..., 0], windows.obs[..., 1]
            self.assertAllEqual(row, np.repeat(row[:, :1], WINDOW, axis=1))
            self.assertAllEqual(np.diff(time), np.ones((2_000, WINDOW - 1)))
            self.assertEqual((time.min(), time.max()), (oldest, filled.seen - 1))
            # The other fields belong to the same steps.
            stream = counted(0, filled.seen)
            for field, whole in zip(windows[1:], stream[1:]):
                self.assertAllEqual(field, whole[time, row])

    def test_uniform_over_all_windows(self):
        for filled, oldest in ((self.partial, 0), (self.wrapped, 17)):
            first = filled.windows().obs[:, 0]
            starts = filled.seen - oldest - WINDOW + 1
            counts = np.zeros((ROWS, starts), int)
            np.add.at(counts, (first[:, 0], first[:, 1] - oldest), 1)
            expected = 2_000 / counts.size
            self.assertAllInRange(
                counts, expected - 5 * expected**0.5, expected + 5 * expected**0.5
            )

    def test_seed_and_counter_decide(self):
        once, again = self.wrapped.windows(1, 5), self.wrapped.windows(1, 5)
        tf.nest.map_structure(self.assertAllEqual, once, again)
        twin = Filled().fill(1, 2, 3, 19, 27)  # the same contents, added in other portions
        tf.nest.map_structure(self.assertAllEqual, once, twin.windows(1, 5))
        for seed, counter in ((1, 6), (2, 5), (5, 1)):
            self.assertGreater(np.mean(self.wrapped.windows(seed, counter).obs != once.obs), 0.3)


class Contents(tf.test.TestCase):
    def test_layout_agrees_with_tf_agents(self):
        for ends in ((6,), (4, 8, 27)):
            filled = Filled().fill(*ends)
            begin = max(0, filled.seen - LENGTH)
            gathered = filled.replay.buffer.gather_all()  # [N, T, ...], oldest first
            for field, whole in zip(gathered, counted(begin, filled.seen)):
                self.assertAllEqual(field, np.swapaxes(whole, 0, 1))
            self.assertEqual(steps_stored(filled.replay), ROWS * (filled.seen - begin))
            # The same rows, in the order in which they lie in memory.
            arrays = replay_arrays(filled.replay)
            order = np.argsort(stored_obs(filled.replay)[0].reshape(ROWS, -1, 2)[..., 1], axis=1)
            for saved, field in zip(arrays.values(), gathered):
                order_of_field = order.reshape(order.shape + (1,) * (saved.ndim - 2))
                self.assertAllEqual(np.take_along_axis(saved, order_of_field, axis=1), field)

    def test_stored_obs(self):
        filled = Filled().fill(3)
        obs, first = stored_obs(filled.replay)
        self.assertAllEqual(obs, [[row, time] for row in range(ROWS) for time in range(3)])
        self.assertAllEqual(
            first, [time == 0 or (time + row) % 4 == 0 for row in range(ROWS) for time in range(3)]
        )
        obs, first = stored_obs(filled.fill(27).replay)
        self.assertEqual((obs.shape, first.shape), ((ROWS * LENGTH, 2), (ROWS * LENGTH,)))

    def test_stored_rewards_are_those_of_actions(self):
        # `counted` starts an episode where (time + row) % 4 == 0: the step before took no action.
        for filled, begin, end in ((Filled().fill(6), 0, 6), (Filled().fill(4, 27), 17, 27)):
            expected = [
                100 * row + time
                for row in range(ROWS)
                for time in range(begin, end - 1)
                if (time + 1 + row) % 4
            ]
            self.assertAllEqual(stored_rewards(filled.replay), expected)

    def test_rest_of_the_division_is_dropped(self):
        replay = make_replay(steps_spec(INFO), 3, 32)
        self.assertEqual((replay.rows, replay.length), (3, 10))
        self.assertEqual(steps_stored(replay), 0)

    def test_memory_of_a_million_steps(self):
        breakout = EnvInfo("Breakout-ram-v0", (128,), "uint8", (), 4)
        replay = make_replay(steps_spec(breakout), 8, 800)
        used = sum(variable.numpy().nbytes for variable in replay.buffer.variables())
        self.assertGreater(used, 800 * 128)
        self.assertLess(used / 800 * 1_000_000, 400e6)


class Restore(tf.test.TestCase):
    def test_round_trip(self):
        for ends in ((6,), (4, 8, 27)):
            filled, fresh = Filled().fill(*ends), Filled().fill(2)
            arrays = replay_arrays(filled.replay)
            per_row = min(filled.seen, LENGTH)
            self.assertEqual(
                {value.shape[:2] for value in arrays.values() if value.ndim}, {(ROWS, per_row)}
            )
            restore_replay(fresh.replay, arrays)
            fresh.seen = filled.seen
            self.assertEqual(steps_stored(fresh.replay), ROWS * per_row)
            tf.nest.map_structure(self.assertAllEqual, filled.windows(3, 4), fresh.windows(3, 4))
            # And it goes on in the same way.
            filled.fill(filled.seen + 3)
            fresh.fill(fresh.seen + 3)
            tf.nest.map_structure(self.assertAllEqual, filled.windows(3, 5), fresh.windows(3, 5))

    def test_what_is_not_written_is_not_read(self):
        # A buffer may be most of the memory that there is.
        filled, fresh = Filled().fill(6), Filled().fill(0)
        kind = type(filled.replay.table.variables()[0])
        read_value = kind.read_value

        def read_number(variable):
            self.assertEqual(variable.shape.rank, 0, "the whole buffer is read")
            return read_value(variable)

        with mock.patch.object(kind, "read_value", read_number):
            restore_replay(fresh.replay, replay_arrays(filled.replay))
            stored = stored_obs(filled.replay)
        tf.nest.map_structure(self.assertAllEqual, stored, stored_obs(fresh.replay))

    def test_arrays_are_a_copy(self):
        filled = Filled().fill(6)
        arrays = replay_arrays(filled.replay)
        before = {key: np.array(value) for key, value in arrays.items()}
        filled.fill(27)
        for key, value in before.items():
            self.assertAllEqual(arrays[key], value)

    def test_other_shape_is_refused(self):
        arrays = replay_arrays(Filled().fill(10).replay)
        for spec, rows, capacity in (
            (INFO, 4, 40),
            (INFO, 3, 27),
            (INFO._replace(obs_shape=(3,)), 3, 30),
        ):
            with self.assertRaises(ValueError):
                restore_replay(make_replay(steps_spec(spec), rows, capacity), arrays)

    def test_ring_that_has_wrapped_does_not_fit_a_longer_one(self):
        with self.assertRaises(ValueError):
            restore_replay(
                make_replay(steps_spec(INFO), ROWS, ROWS * 12),
                replay_arrays(Filled().fill(27).replay),
            )


class TestMemory(unittest.TestCase):
    def test_a_buffer_that_does_not_fit_is_refused_with_one_that_does(self):
        wide = steps_spec(EnvInfo("Wide", (6_000,), "float32", (), 2))
        # 24,000 bytes of observation, 13 of action, reward, discount and first, 8 of a number.
        with mock.patch.object(memory, "available", return_value=24_021 * 4_700):
            check_memory(wide, 2_350, 10**6)
            check_memory(wide, 4_600, 100)  # most of it stays empty and is not copied
            for capacity, filled in ((2_351, 10**6), (4_700, 1)):
                words = (
                    r"\(--replay-size\), \d+ MB.* 113 MB are available; --replay-size=2300 would"
                )
                with self.assertRaisesRegex(UsageError, words):
                    check_memory(wide, capacity, filled)
        with mock.patch.object(memory, "available", return_value=20_000):
            with self.assertRaisesRegex(UsageError, "an environment that shows less"):
                check_memory(wide, 10, 10)


def counted_row(row, begin, end):
    """Steps [S, 1] of stream `row`, told apart by row and time."""
    time = np.arange(begin, end)[:, None]
    return Steps(
        np.stack([np.full_like(time, row), time], axis=-1).astype(np.int32),
        (time % 5).astype(np.int32),
        (100 * row + time).astype(np.float32),
        np.ones(time.shape, np.float32),
        time % 4 == 0,
    )


class TestUnevenReplay(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.replay = make_uneven_replay(steps_spec(INFO), 4, 40)
        add = make_add_to(cls.replay)
        for row, begin, end in (
            (2, 0, 5),
            (0, 0, 7),
            (0, 7, 14),
            (0, 14, 23),
            (3, 0, 3),
        ):  # row 1 has nothing, row 3 less than a window
            add(counted_row(row, begin, end), tf.constant([row], tf.int64))
        cls.sample = staticmethod(make_sampler(cls.replay, 4))

    def test_every_whole_window_is_as_likely(self):
        draw = tf.function(lambda: self.sample(9_000, tf.constant([3, 4], tf.int64)))
        windows = tf.nest.map_structure(lambda field: field.numpy(), draw())
        row, time = windows.obs[..., 0], windows.obs[..., 1]
        self.assertAllEqual(np.diff(row), np.zeros((9_000, 3)))
        self.assertAllEqual(np.diff(time), np.ones((9_000, 3)))
        self.assertAllEqual(windows.reward, 100 * row + time)
        starts, counts = np.unique(windows.obs[:, 0], axis=0, return_counts=True)
        # Of row 0, steps 13 to 22 are left.
        expected = [[0, begin] for begin in range(13, 20)] + [[2, 0], [2, 1]]
        self.assertAllEqual(starts, expected)
        self.assertAllInRange(counts, 850, 1150)  # 1,000 expected, standard deviation 30

    def test_it_comes_back_from_its_arrays(self):
        other = make_uneven_replay(steps_spec(INFO), 4, 40)
        restore_replay(other, replay_arrays(self.replay))
        again = make_sampler(other, 4)
        for mine, theirs in zip(
            self.sample(50, tf.constant([0, 1], tf.int64)), again(50, tf.constant([0, 1], tf.int64))
        ):
            self.assertAllEqual(mine, theirs)
        self.assertEqual(len(stored_obs(other)[0]), 5 + 10 + 3)


if __name__ == "__main__":
    unittest.main()
