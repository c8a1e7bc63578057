"""The replay buffer, and the only module that imports TF-Agents.

It keeps, for each environment, the plain stream of its steps. Windows of it are drawn from a seed
and a counter instead of from TensorFlow's hidden generator, so that a resumed run draws the same
ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfdqt import memory
from tfdqt.backend import quiet, tf, traced
from tfdqt.errors import MissingPackage


class Steps(NamedTuple):
    """Steps of one or many streams; every field has the same leading axes."""

    obs: tf.Tensor  # what was seen
    action: tf.Tensor  # int32, what was done
    reward: tf.Tensor  # float32, what came of it
    discount: tf.Tensor  # float32, 0 where that ended the return, else 1
    first: tf.Tensor  # bool, whether obs starts an episode


class Replay(NamedTuple):
    """A TF-Agents buffer with the table it keeps its rows in."""

    buffer: Any  # TFUniformReplayBuffer
    table: Any  # of the rows of all streams, one behind another
    rows: int  # number of streams
    length: int  # steps kept of each stream
    seen: tf.Variable | None = (
        None  # int64 [rows], steps each stream has had, if they don't grow side by side
    )


def steps_spec(info):
    """The spec of one step of environment `info`."""
    return Steps(
        tf.TensorSpec(info.obs_shape, info.obs_dtype, "obs"),
        tf.TensorSpec((), tf.int32, "action"),
        tf.TensorSpec((), tf.float32, "reward"),
        tf.TensorSpec((), tf.float32, "discount"),
        tf.TensorSpec((), tf.bool, "first"),
    )


def _tf_agents():
    """The two modules of TF-Agents that are used. Raises MissingPackage if it is not installed."""
    with quiet():
        try:
            from tf_agents.replay_buffers import table, tf_uniform_replay_buffer
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in ("tf_agents", "gym"):
                raise
            # Its pins keep it out of the declared dependencies, see pyproject.toml.
            raise MissingPackage(
                f"The replay buffer needs {package}, which is installed apart, without its pins: "
                "pip install --no-deps tf-agents==0.19.0 gym==0.23.0"
            ) from None
    return table, tf_uniform_replay_buffer


def check_memory(spec, capacity, filled):
    """Raise UsageError if a buffer for `capacity` steps does not fit memory.

    filled: steps that will lie in it at most. As many are copied for a checkpoint.
    """
    bytes_of = [int(np.prod(field.shape, dtype=int)) * field.dtype.size for field in spec]
    a_step = sum(bytes_of) + 8  # and its number
    filled = min(filled, capacity)

    def advice(room):
        fits = memory.round_down(room // (2 * a_step))
        if fits < 1:
            return "choose an environment that shows less."
        return f"--replay-size={fits} would fit."

    memory.check_fits(
        (capacity + filled) * a_step,
        f"A replay buffer of {capacity} steps (--replay-size), {memory.in_words(capacity * a_step)}"
        f", with the copy that a checkpoint makes of it, takes",
        advice,
    )


def make_replay(spec, rows, capacity):
    """A buffer for `capacity` steps in all, split over `rows` streams; the oldest goes first."""
    table, tf_uniform_replay_buffer = _tf_agents()
    tables = []

    def table_fn(spec, size):
        tables.append(table.Table(spec, size))
        return tables[-1]

    length = max(1, capacity // rows)
    buffer = tf_uniform_replay_buffer.TFUniformReplayBuffer(
        spec, batch_size=rows, max_length=length, table_fn=table_fn
    )
    return Replay(buffer, tables[0], rows, length)


def make_uneven_replay(spec, rows, capacity):
    """The same for streams that grow at their own pace, as actors deliver them; see `make_add_to`.

    The buffer's table is used as it is, but the buffer's count of steps, one for all rows, is
    replaced by one for each.
    """
    return make_replay(spec, rows, capacity)._replace(
        seen=tf.Variable(tf.zeros([rows], tf.int64), name="seen")
    )


def make_add_to(replay) -> Callable:
    """Compile `add(steps, rows)`: append steps [S, n, ...] to the n streams `rows`.

    Of an uneven buffer; S is at most the length of its streams.
    """

    @traced(reduce_retracing=True)
    def add(steps, rows):
        count = tf.shape(steps[0], tf.int64)[0]
        positions = (tf.gather(replay.seen, rows) + tf.range(count)[:, None]) % replay.length
        replay.table.write(rows * replay.length + positions, steps)
        replay.seen.scatter_nd_add(rows[:, None], tf.fill(tf.shape(rows), count))

    return add


def make_add(replay) -> Callable:
    """Compile `add(steps)`, which appends steps [S, N, ...] to the N streams."""

    @traced(reduce_retracing=True)
    def add(steps):
        count = tf.shape(steps[0])[0]

        def add_one(i):
            replay.buffer.add_batch(tf.nest.map_structure(lambda field: field[i], steps))
            return (i + 1,)

        tf.while_loop(lambda i: i < count, add_one, (0,), parallel_iterations=1)

    return add


def make_sampler(replay, window) -> Callable:
    """`sample(size, seed) -> steps [size, window, ...]`, uniform over all whole windows.

    For use inside a tf.function.

    `seed` is a tensor of two integers; the same seed and contents give the same windows.
    """
    offsets = tf.range(window, dtype=tf.int64)
    if replay.seen is not None:
        return _make_uneven_sampler(replay, window, offsets)
    newest = _newest(replay)

    def sample(size, seed):
        seen = newest + 1
        oldest = tf.maximum(seen - replay.length, 0)
        seeds = tf.random.split(seed, 2)
        row = tf.random.stateless_uniform([size, 1], seeds[0], 0, replay.rows, tf.int64)
        start = tf.random.stateless_uniform(
            [size, 1], seeds[1], oldest, seen - window + 1, tf.int64
        )
        return replay.table.read(row * replay.length + (start + offsets) % replay.length)

    return sample


def _make_uneven_sampler(replay, window, offsets):
    def sample(size, seed):
        windows = tf.maximum(tf.minimum(replay.seen, replay.length) - window + 1, 0)  # [rows]
        ends = tf.cumsum(windows)
        index = tf.random.stateless_uniform([size], seed, 0, ends[-1], tf.int64)
        row = tf.searchsorted(ends, index, side="right", out_type=tf.int64)
        oldest = tf.maximum(replay.seen - replay.length, 0)
        start = tf.gather(oldest - ends + windows, row) + index
        return replay.table.read(
            (row * replay.length)[:, None] + (start[:, None] + offsets) % replay.length
        )

    return sample


def _seen(replay):
    """Steps that each stream was ever given: numpy [rows]."""
    if replay.seen is not None:
        return replay.seen.numpy()
    return np.full(replay.rows, int(_newest(replay)) + 1)


def _newest(replay):
    """The number of the latest step, the same for all streams of an even buffer; -1 at first."""
    return replay.buffer.variables()[-1]


def _filled(replay):
    """Steps now in each stream: numpy [rows]."""
    return np.minimum(_seen(replay), replay.length)


def steps_stored(replay):
    """Steps now in the buffer, over all streams."""
    return int(_filled(replay).sum())


def stored_obs(replay):
    """All observations in the buffer, stream by stream: (obs [M, ...], first [M]) of numpy.

    `first` is True where an episode, or a stream, starts.
    """
    kept = Steps(*replay.table.variables())
    filled = _filled(replay)
    obs = _written(replay, kept.obs, filled.max())
    first = _written(replay, kept.first, filled.max()).copy()
    first[:, :1] = True
    return tuple(
        np.concatenate([row[:count] for row, count in zip(field, filled)]) for field in (obs, first)
    )


def stored_rewards(replay):
    """The rewards of all actions in the buffer, stream by stream: [M] of numpy.

    A step behind an episode's last observation takes no action, and whether the newest of a stream
    is one is not known yet: both are left out.
    """
    kept = Steps(*replay.table.variables())
    filled = _filled(replay)
    rewards, first = (_written(replay, field, filled.max()) for field in (kept.reward, kept.first))
    found = []
    for row, count, seen in zip(range(replay.rows), filled, _seen(replay)):
        order = (np.arange(count) + max(0, seen - count)) % replay.length  # the oldest first
        resets = first[row, order[1:]]
        found.append(rewards[row, order[:-1]][~resets])
    return np.concatenate(found)


def replay_arrays(replay):
    """Everything in the buffer as numpy arrays by name; the rows not yet written are left out."""
    filled = _filled(replay).max()
    arrays = {
        _name(variable): _written(replay, variable, filled)
        if variable.shape.rank
        else variable.numpy()
        for variable in replay.buffer.variables()
    }
    return arrays if replay.seen is None else dict(arrays, seen=replay.seen.numpy())


def restore_replay(replay, arrays):
    """Put back what `replay_arrays` gave.

    Raises ValueError if it came from a buffer of another shape, KeyError if of another kind.
    """
    if replay.seen is not None:
        replay.seen.assign(arrays["seen"])
        had = arrays["seen"].max()
    elif "seen" in arrays:
        raise KeyError("streams of their own pace")
    else:
        had = arrays["TFUniformReplayBuffer/last_id"] + 1
    for variable in replay.buffer.variables():
        saved = arrays[_name(variable)]
        if variable.shape.rank:
            if (
                saved.shape[2:] != tuple(variable.shape[1:])
                or saved.shape[0] != replay.rows
                or saved.shape[1] > replay.length
                or saved.shape[1] < min(had, replay.length)
            ):
                raise ValueError(
                    f"the saved replay buffer holds {saved.shape}, not {replay.rows} rows of "
                    f"{replay.length}"
                )
            for row, ids in zip(saved, _places(replay, saved.shape[1])):
                variable.scatter_update(tf.IndexedSlices(tf.constant(row), ids))
        else:
            variable.assign(saved)


def _written(replay, variable, filled):
    """The first `filled` steps of every stream: numpy [rows, filled, ...], which is not to change.

    Nothing else is read: a buffer may be most of the memory that there is, and empty. It is copied
    once, for `numpy()` would copy what reading has copied already.
    """
    return np.asarray(memoryview(variable.sparse_read(_places(replay, filled))))


def _places(replay, filled):
    """Where the first `filled` steps of every stream lie: [rows, filled] int64."""
    return tf.range(replay.rows, dtype=tf.int64)[:, None] * replay.length + tf.range(
        filled, dtype=tf.int64
    )


def _name(variable):
    """A name without the number that TensorFlow gives a second buffer in one process."""
    return re.sub(r"(_\d+)?:\d+$", "", variable.name)
