"""The replay buffer, and the only module that imports TF-Agents.

It keeps, for each environment, the plain stream of its steps. Windows of it are drawn from a seed and a counter instead
of from TensorFlow's hidden generator, so that a resumed run draws the same ones.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt.backend import quiet, tf
from tfdqt.config import UsageError

with quiet():
    from tf_agents.replay_buffers import table, tf_uniform_replay_buffer


class Steps(NamedTuple):
    """Steps of one or many streams; every field has the same leading axes."""

    obs: tf.Tensor  # what was seen
    action: tf.Tensor  # int32, what was done
    reward: tf.Tensor  # float32, what came of it
    discount: tf.Tensor  # float32, 0 where that ended the return, else 1
    first: tf.Tensor  # bool, whether obs starts an episode


class Replay(NamedTuple):
    """A TF-Agents buffer with the table it keeps its rows in."""

    buffer: tf_uniform_replay_buffer.TFUniformReplayBuffer
    table: table.Table
    rows: int  # number of streams
    length: int  # steps kept of each stream
    seen: tf.Variable | None = None  # int64 [rows], steps each stream has had, if they don't grow side by side


def steps_spec(info):
    """The spec of one step of environment `info`."""
    return Steps(tf.TensorSpec(info.obs_shape, info.obs_dtype, "obs"), tf.TensorSpec((), tf.int32, "action"),
                 tf.TensorSpec((), tf.float32, "reward"), tf.TensorSpec((), tf.float32, "discount"),
                 tf.TensorSpec((), tf.bool, "first"))


def make_replay(spec, rows, capacity):
    """A buffer for `capacity` steps in all, split over `rows` streams; the oldest goes first when it is full."""
    tables = []

    def table_fn(spec, size):
        tables.append(table.Table(spec, size))
        return tables[-1]

    length = max(1, capacity // rows)
    buffer = tf_uniform_replay_buffer.TFUniformReplayBuffer(spec, batch_size=rows, max_length=length, table_fn=table_fn)
    return Replay(buffer, tables[0], rows, length)


def make_uneven_replay(spec, rows, capacity):
    """The same for streams that grow at their own pace, as actors deliver them; add to it by `make_add_to`.

    The buffer's table is used as it is, but the buffer's count of steps, one for all rows, is replaced by one for each.
    """
    return make_replay(spec, rows, capacity)._replace(seen=tf.Variable(tf.zeros([rows], tf.int64), name="seen"))


def make_add_to(replay) -> Callable:
    """Compile `add(steps, rows)`, which appends steps [S, n, ...] to the n streams `rows` of an uneven buffer, S at most their length."""

    @tf.function(reduce_retracing=True)
    def add(steps, rows):
        count = tf.shape(steps[0], tf.int64)[0]
        places = (tf.gather(replay.seen, rows) + tf.range(count)[:, None]) % replay.length
        replay.table.write(rows * replay.length + places, steps)
        replay.seen.scatter_nd_add(rows[:, None], tf.fill(tf.shape(rows), count))

    return add


def make_add(replay) -> Callable:
    """Compile `add(steps)`, which appends steps [S, N, ...] to the N streams."""

    @tf.function(reduce_retracing=True)
    def add(steps):
        for i in tf.range(tf.shape(steps[0])[0]):
            replay.buffer.add_batch(tf.nest.map_structure(lambda field: field[i], steps))

    return add


def make_sampler(replay, window) -> Callable:
    """`sample(size, seed) -> steps [size, window, ...]`, uniform over all whole windows; call it inside a tf.function.

    `seed` is a tensor of two integers; the same seed and contents give the same windows.
    """
    offsets = tf.range(window, dtype=tf.int64)
    if replay.seen is not None:
        return _make_uneven_sampler(replay, window, offsets)
    newest = replay.buffer.variables()[-1]  # the id of the latest step, -1 at first; the same for all rows

    def sample(size, seed):
        seen = newest + 1
        oldest = tf.maximum(seen - replay.length, 0)
        seeds = tf.random.split(seed, 2)
        row = tf.random.stateless_uniform([size, 1], seeds[0], 0, replay.rows, tf.int64)
        start = tf.random.stateless_uniform([size, 1], seeds[1], oldest, seen - window + 1, tf.int64)
        return replay.table.read(row * replay.length + (start + offsets) % replay.length)

    return sample


def _make_uneven_sampler(replay, window, offsets):
    def sample(size, seed):
        windows = tf.maximum(tf.minimum(replay.seen, replay.length) - window + 1, 0)  # [rows]
        ends = tf.cumsum(windows)
        place = tf.random.stateless_uniform([size], seed, 0, ends[-1], tf.int64)
        row = tf.searchsorted(ends, place, side="right", out_type=tf.int64)
        oldest = tf.maximum(replay.seen - replay.length, 0)
        start = tf.gather(oldest - ends + windows, row) + place
        return replay.table.read((row * replay.length)[:, None] + (start[:, None] + offsets) % replay.length)

    return sample


def _filled(replay):
    """Steps now in each stream: numpy [rows]."""
    if replay.seen is not None:
        return np.minimum(replay.seen.numpy(), replay.length)
    return np.full(replay.rows, int(replay.buffer.num_frames()) // replay.rows)


def steps_stored(replay):
    """Steps now in the buffer, over all streams."""
    return int(_filled(replay).sum())


def stored_obs(replay):
    """All observations now in the buffer, stream by stream, and whether each starts an episode or a stream: numpy [M, ...], [M]."""
    kept = Steps(*replay.table.variables())
    obs, first = _by_row(replay, kept.obs.numpy()), _by_row(replay, kept.first.numpy())
    first[:, 0] = True
    return tuple(np.concatenate([row[:filled] for row, filled in zip(field, _filled(replay))]) for field in (obs, first))


def replay_arrays(replay):
    """Everything in the buffer as numpy arrays by name; the rows not yet written are left out."""
    filled = _filled(replay).max()
    arrays = {_name(variable): variable.numpy() for variable in replay.buffer.variables()}
    arrays = {name: _by_row(replay, value)[:, :filled] if value.ndim else value for name, value in arrays.items()}
    return arrays if replay.seen is None else dict(arrays, seen=replay.seen.numpy())


def restore_replay(replay, arrays):
    """Put back what `replay_arrays` gave. Raises ValueError if it came from a buffer of another shape, KeyError if of another kind."""
    if replay.seen is not None:
        replay.seen.assign(arrays["seen"])
        had = arrays["seen"].max()
    elif "seen" in arrays:
        raise KeyError("streams of their own pace")
    else:
        had = arrays["TFUniformReplayBuffer/last_id"] + 1
    for variable in replay.buffer.variables():
        saved, value = arrays[_name(variable)], variable.numpy()
        if value.ndim:
            if saved.shape[2:] != value.shape[1:] or saved.shape[0] != replay.rows or saved.shape[1] > replay.length \
                    or saved.shape[1] < min(had, replay.length):
                raise ValueError(f"the saved replay buffer holds {saved.shape}, not {replay.rows} rows of {replay.length}")
            _by_row(replay, value)[:, :saved.shape[1]] = saved
        else:
            value = saved
        variable.assign(value)


class Transition(NamedTuple):
    """A decision in a text: what stood there, what was written, what came of it."""

    state: tf.Tensor  # [T] int32 token ids
    action: tf.Tensor  # int32
    reward: tf.Tensor  # float32
    next_state: tf.Tensor  # [T] int32
    discount: tf.Tensor  # float32, 0 where the text ended, else 1


class Episode(NamedTuple):
    """P decisions along one text, for an encoder that reads it once and sees at each place only what stands before it."""

    text: tf.Tensor  # [T] int32 token ids
    at: tf.Tensor  # [P + 1] int32, the last token seen by each decision and by the one behind it
    action: tf.Tensor  # [P] int32
    reward: tf.Tensor  # [P] float32
    discount: tf.Tensor  # [P] float32, 0 where the text ended, else 1
    mask: tf.Tensor  # [P] float32, 1 where there is a decision, 0 in the padding


class ExperienceReplay:
    """The latest `capacity` transitions, or episodes; the oldest goes first (Lin, 1992). Holds them in a TF-Agents buffer."""

    def __init__(self, capacity=10_000):
        if capacity < 1:
            raise UsageError(f"The capacity of ExperienceReplay must be at least 1, not {capacity}.")
        self.capacity, self.kept, self.calls = capacity, None, 0

    def push(self, state, action, reward, next_state, done):
        """Keep one transition: token ids [T], int, float, token ids [T], whether the text ended there."""
        self.extend(Transition(*(np.asarray(field)[None] for field in (state, action, reward, next_state, 1.0 - float(done)))))

    def extend(self, items):
        """Keep many: a Transition or Episode of arrays with one more leading axis [S, ...]."""
        items = type(items)(*map(np.asarray, items, _dtypes(type(items))))
        shapes = [list(field.shape[1:]) for field in items]
        if self.kept is None:
            self._make(type(items), shapes)
        if shapes != self.shapes:
            raise UsageError(f"The replay buffer holds fields of shapes {self.shapes}, not {shapes}; cut or pad all texts to one length.")
        if len(items[0]):
            self._add(tf.nest.map_structure(lambda field: tf.constant(field[:, None]), items))

    def _make(self, kind, shapes):
        self.kind, self.shapes = kind, [list(shape) for shape in shapes]
        self.kept = make_replay(kind(*map(tf.TensorSpec, shapes, _dtypes(kind), kind._fields)), 1, self.capacity)
        self._add, self._sample = make_add(self.kept), make_sampler(self.kept, 1)

    def draw(self, size, seed):
        """As `sample`, for use inside a tf.function: `seed` is a tensor of two integers."""
        return tf.nest.map_structure(lambda field: field[:, 0], self._sample(size, seed))

    def arrays(self):
        """All that is kept, as a tree for a checkpoint."""
        return dict(kind=self.kind.__name__, shapes=self.shapes, buffer=replay_arrays(self.kept))

    def restore(self, saved):
        """Put back what `arrays` gave."""
        self._make(dict(Transition=Transition, Episode=Episode)[saved["kind"]], saved["shapes"])
        restore_replay(self.kept, saved["buffer"])

    def sample(self, batch_size, seed=None):
        """`batch_size` of what is kept, uniformly with replacement, as tensors [batch_size, ...].

        `seed` is two integers; without it every call draws afresh, the same in every process. Raises UsageError while nothing is kept.
        """
        if not len(self):
            raise UsageError("The replay buffer is empty; push something before sampling from it.")
        if seed is None:
            seed, self.calls = (0, self.calls), self.calls + 1
        return self.draw(batch_size, tf.constant(seed, tf.int64))

    def __len__(self):
        return steps_stored(self.kept) if self.kept else 0


def _dtypes(kind):
    """How the fields of Transition and Episode are kept."""
    return [np.float32 if name in ("reward", "discount", "mask") else np.int32 for name in kind._fields]


def _name(variable):
    """TensorFlow numbers the names of a second buffer in one process; a checkpoint must not show it."""
    return re.sub(r"(_\d+)?:\d+$", "", variable.name)


def _by_row(replay, value):
    return value.reshape(replay.rows, replay.length, *value.shape[1:])
