"""Environments of one process: their streams, and each held to its word.

A step gives, for every environment, the plain stream that the replay buffer keeps. When an episode
has ended, the next step only resets: the true last observation stays in the stream, with a step
after it that means nothing and that the learner recognises, because the observation behind it is
the first of an episode.
"""

import contextlib

import numpy as np

from tfdqt.errors import EnvFailure, UsageError, sentence_of
from tfdqt.games.reader import make_reader, out_of_range
from tfdqt.games.space_json import told_apart
from tfdqt.games.spaces import (
    GREATEST,
    MASK_KEY,
    OLD_GYM,
    as_array,
    describe,
    make_action,
    read_mask,
)
from tfdqt.games.state import NoState, env_state, restore_env
from tfdqt.policy import can_act
from tfdqt.runs.checkpoint import packable

WATCHED = 64  # steps in which a Box's bounds are looked at, and between two looks after that
REST = -1  # an action that leaves an environment as it is


class Slot:
    """One environment and its stream. `out` holds views into the arrays of the vector.

    It holds the environment to its word: raises EnvFailure for what does not fit its space.
    """

    def __init__(self, env, info, seed, life_loss_ends, out):
        self.env = env
        self.out = out
        self.info = info
        self.life_loss_ends = life_loss_ends
        own = describe(env.observation_space, env.action_space, info.name, info.mask)
        if told_apart(own) != told_apart(info):
            raise EnvFailure(
                f"it has the spaces {env.observation_space} and {env.action_space}, not "
                f"{info.observation_space} and {info.action_space} like the others"
            )
        self.read = make_reader(own).read
        self.action_of = make_action(env.action_space)
        self.ended = False
        self._reset(seed=seed)

    def _reset(self, **seed):
        self.ret = 0.0
        self.length = 0
        obs, info = checked_reset(self.env.reset(**seed))
        self.lives = lives_in(info, 0)
        self._show(obs, info, first=True)

    def _show(
        self,
        obs,
        info,
        *,
        first,
        reward=0.0,
        discount=1.0,
        terminated=False,
        ended=False,
        ret=0.0,
        length=0,
    ):
        self.ended = ended
        out = self.out
        if self.info.mask is None:
            if isinstance(info, dict) and MASK_KEY in info:
                raise EnvFailure(
                    f"its info says which actions are legal ({MASK_KEY}) only now, and not at the "
                    "first reset; say it at every reset and step"
                )
            out["obs"][...] = self.read(obs)
        else:
            features = self.info.features
            out["obs"][:features] = self.read(obs)
            out["obs"][features:] = self._mask(obs, info, terminated)
        out["first"][...] = first
        out["reward"][...] = reward
        out["discount"][...] = discount
        out["ended"][...] = ended
        out["ret"][...] = ret
        out["length"][...] = length

    def _mask(self, obs, info, terminated):
        """Which actions are legal now, [A]; all of them where the episode has terminated."""
        if terminated:
            return 1
        source = self.info.mask
        if source == "observation":
            mask = obs.get(MASK_KEY)
        elif source == "info":
            mask = (info or {}).get(MASK_KEY)
        else:
            mask = self.env.get_wrapper_attr("action_masks")()
        legal = read_mask(mask, self.info, source)
        if not can_act(legal, self.info.parts):
            raise EnvFailure(
                f"its {MASK_KEY} ({source}) allows no action though the episode has not terminated"
            )
        return legal

    def step(self, action):
        """Take `action`, or reset if the episode has ended; what comes next goes to `out`.

        REST changes nothing.
        """
        if action == REST:
            return
        if self.ended:
            self._reset()
            return
        answer = checked_step(self.env.step(self.action_of(action)))
        obs, reward, terminated, truncated, info = answer
        lives = lives_in(info, self.lives)
        lost_life = lives < self.lives
        self.lives = lives
        over = terminated or (self.life_loss_ends and lost_life)
        self.ret += reward
        self.length += 1
        self._show(
            obs,
            info,
            first=False,
            reward=reward,
            discount=0.0 if over else 1.0,
            terminated=terminated,
            ended=terminated or truncated,
            ret=self.ret,
            length=self.length,
        )

    def state(self):
        """Everything that `restore` needs. Raises NoState if the environment's can't be saved."""
        env = env_state(self.env)
        slot = dict(
            lives=float(self.lives) if self.lives % 1 else int(self.lives),
            ret=float(self.ret),
            length=int(self.length),
            ended=bool(self.ended),
        )
        out = {key: np.array(value) for key, value in self.out.items()}
        return dict(env=env, slot=slot, out=out)

    def restore(self, state):
        """Go on from `state`, or from a fresh episode if it is None.

        Raises NoState, and has begun a fresh episode, if it does not fit this environment.
        """
        if state is None:
            self._reset()
            return
        try:
            restore_env(self.env, state["env"])
        except NoState:
            self._reset()
            raise
        for key, value in state["slot"].items():
            setattr(self, key, value)
        for key, value in state["out"].items():
            self.out[key][...] = value


def lives_in(info, before):
    """The lives left by an `info`; `before` where it does not say."""
    lives = info.get("lives") if isinstance(info, dict) else None
    known = isinstance(lives, (int, float, np.number)) and lives == lives  # NaN is none
    return lives if known else before


def checked_reset(answer):
    """What `reset` returned: -> observation, info. Raises EnvFailure if it is no such pair."""
    if type(answer) is not tuple or len(answer) != 2:
        raise EnvFailure(
            "its reset returned no pair of an observation and an info dict, as gymnasium's do; "
            f"{OLD_GYM}"
        )
    return answer


def checked_step(answer):
    """What `step` returned: -> observation, reward float, terminated bool, truncated bool, info.

    Raises EnvFailure if it is none of that.
    """
    if type(answer) is not tuple or len(answer) != 5:
        raise EnvFailure(
            "its step returned no (observation, reward, terminated, truncated, info), as "
            f"gymnasium's do; {OLD_GYM}"
        )
    obs, reward, terminated, truncated, info = answer
    if type(reward) is not float:
        reward = _number(reward)
    if not -GREATEST <= reward <= GREATEST:
        raise EnvFailure(f"it returned a reward that is no number in float32: {reward}")
    terminated = terminated if type(terminated) is bool else _truth(terminated, "terminated")
    truncated = truncated if type(truncated) is bool else _truth(truncated, "truncated")
    return obs, reward, terminated, truncated, info


def _number(reward):
    """A reward as a float. Raises EnvFailure if it is none, or several."""
    if type(reward) is int:  # of any length, for some of which numpy has no type
        with contextlib.suppress(OverflowError):
            reward = float(reward)
    array = as_array(reward)
    if array.dtype.kind not in "biuf" or array.size != 1:
        raise EnvFailure(f"it returned a reward that is no number: {reward!r:.60}")
    return float(array.reshape(-1)[0])


def _truth(value, name):
    """A flag as a bool. Raises EnvFailure if it is none, or several."""
    array = as_array(value)
    known = array.dtype.kind in "biuf" and array.size == 1
    if not known or array.reshape(-1)[0] not in (0, 1):
        raise EnvFailure(f"it returned {value!r:.60} as {name}, which is neither true nor false")
    return bool(array.reshape(-1)[0])


class Slots:
    """The environments of one process, in rows of the vector's arrays."""

    def __init__(self, env_fn, info, seeds, life_loss_ends, arrays, rows):
        self.notices = {}  # what there is to tell once, by what it is about
        self.actions = arrays["action"][rows[0] : rows[-1] + 1]
        self.obs = arrays["obs"][rows[0] : rows[-1] + 1, : info.features]
        self.reader = make_reader(info)
        # Categories are checked as they are read, and a byte that may be any needs no check.
        bytes_ = info.obs_dtype == "uint8" and (self.reader.high - self.reader.low == 255).all()
        self.checked = info.obs_dtype != "int32" and not bytes_
        self.steps = 0
        self.slots = []
        for row, seed in zip(rows, seeds):
            out = {key: array[row : row + 1] for key, array in arrays.items() if key != "action"}
            out = {key: array.reshape(array.shape[1:]) for key, array in out.items()}
            env = env_fn()
            if any(env.unwrapped is slot.env.unwrapped for slot in self.slots):
                raise UsageError(
                    f"env_fn gives the same environment of {info.name} at each call; let it make "
                    "a new one, such as functools.partial(gymnasium.make, name)."
                )
            self.slots.append(Slot(env, info, seed, life_loss_ends, out))
        self.check()

    def check(self):
        """Raise EnvFailure if an observation is not finite; note what leaves its bounds once.

        Bounds are looked at every WATCHED steps but for the first of them: no more than a note
        comes of that, and it takes longer.
        """
        if not self.checked:
            return
        self.steps += 1
        if self.steps > WATCHED and self.steps % WATCHED and np.isfinite(self.obs).all():
            return
        low = self.reader.low
        high = self.reader.high
        while not ((self.obs >= low) & (self.obs <= high)).all():
            entries, sentence = out_of_range(self.reader, self.obs)
            self.notices[str(entries)] = sentence
            low[entries] = -GREATEST
            high[entries] = GREATEST

    def serve(self, message, payload=None):
        """Do what `message` says: -> (answer, notices since the last one)."""
        answer = None
        if message == "step":
            for slot, action in zip(self.slots, self.actions):
                slot.step(action)
            self.check()
        elif message == "states":
            answer = [self.state(slot) for slot in self.slots]
        elif message == "restore":
            answer = [self.restore(slot, state) for slot, state in zip(self.slots, payload)]
            self.check()
        notices = self.notices
        self.notices = {}
        return answer, notices

    def restore(self, slot, state):
        """Whether a slot goes on from a state; if not, it has begun a fresh episode."""
        try:
            slot.restore(state)
        except NoState as error:
            self.notices["restore"] = f"a fresh episode begins, for the saved state: {error}."
            return False
        return state is not None

    def state(self, slot):
        """The state of a slot, or None and a notice: what can't be saved must not end a run."""
        try:
            state = slot.state()
            if packable(state):
                return state
            self.notices["state"] = "its state can't be saved: a checkpoint can't hold it."
        except NoState as error:
            self.notices["state"] = f"its state can't be saved: {error}."
        except Exception as error:
            self.notices["state"] = f"its state can't be saved: {sentence_of(error)}."
        return None
