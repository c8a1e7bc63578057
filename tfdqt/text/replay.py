"""What is learned from texts, and the buffer that keeps it.

Two ways to learn from a text. A `Transition` holds the text before and behind one decision; the
encoder reads each alone. An `Episode` holds one text and where in it decisions were taken; a causal
encoder reads it once and gives Q at all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.replay import (
    make_add,
    make_replay,
    make_sampler,
    replay_arrays,
    restore_replay,
    steps_stored,
)
from tfdqt.settings import check_whole
from tfdqt.text.reward import Reward
from tfdqt.text.tokenizers import padded


class Transition(NamedTuple):
    """A decision in a text: what stood there, what was written, what came of it."""

    state: tf.Tensor  # [T] int32 token ids
    action: tf.Tensor  # int32
    reward: tf.Tensor  # float32
    next_state: tf.Tensor  # [T] int32
    discount: tf.Tensor  # float32, 0 where the text ended, else 1
    imitated: tf.Tensor | None = None  # float32, 1 (the default) if the action is cloned, else 0


class Episode(NamedTuple):
    """P decisions along one text, for a causal encoder, which reads it once for all of them."""

    text: tf.Tensor  # [T] int32 token ids
    at: tf.Tensor  # [P + 1] int32, the last token seen by each decision and by the one behind it
    action: tf.Tensor  # [P] int32
    reward: tf.Tensor  # [P] float32
    discount: tf.Tensor  # [P] float32, 0 where the text ended, else 1
    mask: tf.Tensor  # [P] float32, 1 where there is a decision, 0 in the padding
    imitated: tf.Tensor | None = None  # float32, 1 (the default) if the actions are cloned, else 0


KINDS = {"Transition": Transition, "Episode": Episode}


class ExperienceReplay:
    """The latest `capacity` transitions, or episodes; the oldest goes first (Lin, 1992).

    Holds them in a TF-Agents buffer.

    >>> replay = ExperienceReplay(capacity=10_000)
    >>> replay.push([2, 3, 0], 1, 0.5, [2, 3, 4], False)
    >>> replay.sample(32).reward  # [32]
    """

    def __init__(self, capacity=10_000):
        check_whole(1, capacity=capacity)
        self.capacity = capacity
        self.kept = None  # the buffer, made when it is known what shapes it holds
        self.calls = 0  # of `sample` without a seed

    def push(self, state, action, reward, next_state, done):
        """Keep one transition: token ids [T], int, float, token ids [T], whether the text ended."""
        fields = (state, action, reward, next_state, 1.0 - bool(done))
        self.extend(Transition(*(np.asarray(field)[None] for field in fields)))

    def extend(self, items):
        """Keep many: a Transition or Episode of arrays with one more leading axis [S, ...].

        Raises UsageError for fields of other shapes than those kept, or that do not fit together.
        """
        items = _checked(items)
        shapes = [list(field.shape[1:]) for field in items]
        if self.kept is None:
            self._make(type(items), shapes)
        if shapes != self.shapes:
            raise UsageError(
                f"The replay buffer holds fields of shapes {self.shapes}, not {shapes}; cut or pad "
                "all texts to one length."
            )
        if len(items[0]):
            self._add(tf.nest.map_structure(lambda field: tf.constant(field[:, None]), items))

    def _make(self, kind, shapes):
        self.kind = kind
        self.shapes = [list(shape) for shape in shapes]
        spec = kind(*map(tf.TensorSpec, shapes, _dtypes(kind), kind._fields))
        self.kept = make_replay(spec, 1, self.capacity)
        self._add = make_add(self.kept)
        self._sample = make_sampler(self.kept, 1)

    def draw(self, size, seed):
        """As `sample`, for use inside a tf.function: `seed` is a tensor of two integers."""
        return tf.nest.map_structure(lambda field: field[:, 0], self._sample(size, seed))

    def arrays(self):
        """All that is kept, as a tree for a checkpoint."""
        return dict(kind=self.kind.__name__, shapes=self.shapes, buffer=replay_arrays(self.kept))

    def restore(self, saved):
        """Put back what `arrays` gave."""
        kind = KINDS[saved["kind"]]
        shapes = saved["shapes"]
        buffer = dict(saved["buffer"])
        if len(shapes) < len(kind._fields):  # of before `imitated`: all was
            shapes = [*shapes, []]
            key = next(name for name in buffer if name.endswith("/reward"))
            ones = np.ones(buffer[key].shape[:2], np.float32)
            buffer[key.removesuffix("reward") + "imitated"] = ones
        self._make(kind, shapes)
        restore_replay(self.kept, buffer)

    def sample(self, batch_size, seed=None):
        """`batch_size` of what is kept, uniformly with replacement, as tensors [batch_size, ...].

        `seed` is two integers; without it every call draws afresh, the same in every process.
        Raises UsageError while nothing is kept.
        """
        if not len(self):
            raise UsageError("The replay buffer is empty; push something before sampling from it.")
        if seed is None:
            seed = (0, self.calls)
            self.calls += 1
        return self.draw(batch_size, tf.constant(seed, tf.int64))

    def __len__(self):
        return steps_stored(self.kept) if self.kept else 0


def _checked(items):
    """Items as arrays of the types that are kept. Raises UsageError for what can't be kept so."""
    kind = type(items)
    if kind not in KINDS.values():
        raise UsageError(f"Transition or Episode can be kept, not a {kind.__name__}.")
    items = with_imitated(items)
    fields = []
    for name, field, dtype in zip(kind._fields, map(np.asarray, items), _dtypes(kind)):
        if field.dtype.kind not in "biuf":
            raise UsageError(f"{name} must hold numbers, not {field.dtype}.")
        if not np.isfinite(field).all():
            raise UsageError(f"{name} must hold finite numbers, also where nothing is learned.")
        if name in ("discount", "mask") and ((field < 0) | (field > 1)).any():
            raise UsageError(f"{name} must lie between 0 and 1.")
        with np.errstate(invalid="ignore"):  # of what is refused below
            kept = field.astype(dtype, copy=False)
        if dtype == np.int32 and (kept != field).any():
            raise UsageError(f"{name} must hold whole numbers of 32 bits.")
        fields.append(kept)
    items = kind(*fields)
    decisions = np.shape(items.action)
    behind = decisions[:1] + tuple(size + 1 for size in decisions[-1:])
    fits = decisions != () and all(field.shape[:1] == decisions[:1] for field in items)
    fits &= items.reward.shape == items.discount.shape == decisions
    fits &= items.imitated.shape == decisions[:1]
    if kind is Episode:
        fits &= len(decisions) == 2 and items.mask.shape == decisions and items.at.shape == behind
    else:
        fits &= len(decisions) == 1 and items.state.shape == items.next_state.shape
    if not fits:
        shapes = ", ".join(f"{name} {field.shape}" for name, field in items._asdict().items())
        raise UsageError(
            f"The fields of this {kind.__name__} do not belong together ({shapes}); see its "
            "annotations, each with one more axis [S, ...]."
        )
    if not np.isin(items.imitated, (0, 1)).all():
        raise UsageError("imitated must be 0 or 1 for each, whether what was done is cloned.")
    return items


def _dtypes(kind):
    """How the fields of Transition and Episode are kept."""
    floats = ("reward", "discount", "mask", "imitated")
    return [np.float32 if name in floats else np.int32 for name in kind._fields]


def concatenate(parts):
    """Several Transition, or several Episode, as one."""
    return type(parts[0])(*map(np.concatenate, zip(*map(with_imitated, parts))))


def take_rows(items, rows):
    """Some of the items, by a slice, numbers or a mask."""
    return type(items)(*(np.asarray(field)[rows] for field in with_imitated(items)))


def take_imitated(items):
    """The items whose actions are cloned."""
    return take_rows(items, np.asarray(with_imitated(items).imitated) > 0)


def with_imitated(items):
    """Items that say whether their actions are cloned: all are, where they did not say."""
    if items.imitated is not None:
        return items
    return items._replace(imitated=np.ones(np.shape(items.action)[:1], np.float32))


def episodes_of(tokenizer, rows, length, reward_fn, *, reward_at="word"):
    """Every token behind the first of each row is a decision: Episode of [N, ...].

    T = length, P = length - 1; rows are lists of ids, such as `token_rows` gives, cut at the end.
    reward_at "word": a word's reward is what it adds to `reward_fn` (text -> float), so that
    rewards sum to the worth of the whole text; "end": all of it comes with the last word, and a
    text is looked at once. Words that the tokenizer does not know are read, but nothing is learned
    about writing them: a text ends with the last word that is known, which gets the rewards of
    those behind it. A text without a known word is worth 0. Raises RewardFailure, a UsageError, for
    a reward that fails or gives no finite number.
    """
    if not isinstance(reward_fn, Reward):
        reward_fn = Reward(reward_fn)
    ids = padded(tokenizer, rows, length)
    tokens = np.array([min(len(row), length) for row in rows], int).reshape(-1, 1)
    written = (np.arange(1, length) < tokens).astype(np.float32)
    known = written * (ids[:, 1:] != tokenizer.unk_token_id)
    place = np.arange(length - 1)
    last = np.max(place * (known > 0), axis=1, initial=0)[:, None]
    reward = _rewards(tokenizer, ids, written, reward_fn, reward_at)
    behind = np.sum(reward, axis=1, keepdims=True, where=place > last)
    reward = np.where(place < last, reward, np.where(place == last, reward + behind, 0))
    return Episode(
        text=ids,
        at=np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape),
        action=ids[:, 1:] * (written > 0),
        reward=reward,
        discount=np.where(place == last, 0.0, 1.0).astype(np.float32),
        mask=known,
    )


def _rewards(tokenizer, ids, written, reward_fn, reward_at):
    """The reward of each word of texts [N, T]: [N, T - 1]."""
    counts = written.sum(axis=1).astype(int)
    beginnings = [
        (row, i)
        for row, count in enumerate(counts)
        for i in (range(1, 1 + count) if reward_at == "word" else range(count, 1 + count))
        if i
    ]
    texts = [tokenizer.decode(ids[row, : i + 1], skip_special_tokens=True) for row, i in beginnings]
    begun = [i for i, text in enumerate(texts) if text]
    worth = np.zeros(ids.shape, np.float32)  # of each text up to each token
    for i, value in zip(begun, reward_fn.many([texts[i] for i in begun])):
        row, token = beginnings[i]
        worth[row, token:] = value
    return np.diff(worth, axis=1)
