"""Many environments stepped in lockstep, in worker processes.

A vector step gives, for every environment, the plain stream that the replay buffer keeps. When an
episode has ended, the next step only resets: the true last observation stays in the stream, with a
step after it that means nothing and that the learner recognises, because the observation behind it
is the first of an episode.

Why not gymnasium's AsyncVectorEnv: it has a process for each environment, where one process steps
many small ones faster; it can't save and restore states; and it can't leave an environment as it is
while others play on (REST).
"""

import contextlib
import functools
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import NamedTuple

import numpy as np

from tfdqt.errors import EnvFailure, UsageError, sentence_of
from tfdqt.games.spaces import (
    GREATEST,
    MASK_KEY,
    describe,
    make_action,
    make_reader,
    out_of_range,
    read_mask,
)
from tfdqt.games.state import NoState, env_state, restore_env
from tfdqt.policy import split_outputs
from tfdqt.runs.checkpoint import packable
from tfdqt.runs.processes import (
    CLOSE_SECONDS,
    close_all,
    end_group,
    end_own_group_in,
    take_signals,
    tell_of_close,
)

WATCHED = 64  # steps in which a Box's bounds are looked at, and between two looks after that
REST = -1  # an action that leaves an environment as it is
CLOSED = "closed"  # a worker's last word, with what went wrong in it


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
        if (own.obs_shape, own.nvec, own.num_actions) != (
            info.obs_shape,
            info.nvec,
            info.num_actions,
        ):
            raise EnvFailure(
                f"it has the spaces {env.observation_space} and {env.action_space}, not "
                f"{info.observation_space} and {info.action_space} like the others"
            )
        self.read = make_reader(own).read
        self.action_of = make_action(env.action_space)
        self.ended = False
        self._reset(seed=seed)

    def _reset(self, **seed):
        self.lives = 0
        self.ret = 0.0
        self.length = 0
        answer = self.env.reset(**seed)
        if type(answer) is not tuple or len(answer) != 2:
            raise EnvFailure(
                "its reset returned no pair of an observation and an info dict, as gymnasium's do; "
                "an environment of the old Gym needs a wrapper (--wrappers MODULE:FUNCTION)"
            )
        self._show(*answer, first=True)

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
            if type(info) is dict and MASK_KEY in info:
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
        if not all(part.any() for part in split_outputs(legal, self.info.parts)):
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
        answer = self.env.step(self.action_of(action))
        if type(answer) is not tuple or len(answer) != 5:
            raise EnvFailure(
                "its step returned no (observation, reward, terminated, truncated, info), as "
                "gymnasium's do; an environment of the old Gym needs a wrapper "
                "(--wrappers MODULE:FUNCTION)"
            )
        obs, reward, terminated, truncated, info = answer
        if type(reward) is not float:
            reward = _number(reward)
        if not -GREATEST <= reward <= GREATEST:
            raise EnvFailure(f"it returned a reward that is no number in float32: {reward}")
        terminated = terminated if type(terminated) is bool else _truth(terminated, "terminated")
        truncated = truncated if type(truncated) is bool else _truth(truncated, "truncated")
        lives = info.get("lives", 0) if type(info) is dict else 0
        lives = lives if isinstance(lives, (int, float, np.number)) else 0
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


def _number(reward):
    """A reward as a float. Raises EnvFailure if it is none, or several."""
    try:
        array = np.asarray(reward)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or array.size != 1:
        raise EnvFailure(f"it returned a reward that is no number: {reward!r:.60}")
    return float(array.reshape(-1)[0])


def _truth(value, name):
    """A flag as a bool. Raises EnvFailure if it is none, or several."""
    array = np.asarray(value)
    known = array.dtype.kind in "biuf" and array.size == 1
    if not known or array.reshape(-1)[0] not in (0, 1):
        raise EnvFailure(f"it returned {value!r:.60} as {name}, which is neither true nor false")
    return bool(array.reshape(-1)[0])


class VecEnv(NamedTuple):
    """Environments in lockstep, as functions; `step` fills the arrays of `out`, a row each."""

    out: dict  # obs [N, ...], first [N], reward [N], discount [N], ended [N], ret [N], length [N]
    step: Callable  # (actions [N]) -> None
    states: Callable  # () -> list of N states, None where an environment offers none
    restore: Callable  # (list of N states) -> list of bool, False where a fresh episode began
    close: Callable  # (seconds=CLOSE_SECONDS) -> None, whatever the environments do


def _layout(info, num_envs):
    fields = dict(
        obs=(info.obs_dtype, info.obs_shape),
        first=("bool", ()),
        reward=("float32", ()),
        discount=("float32", ()),
        ended=("bool", ()),
        ret=("float64", ()),
        length=("int64", ()),
        action=("int64", ()),
    )
    offset = 0
    fields_at = {}
    for key, (dtype, shape) in fields.items():
        fields_at[key] = (np.dtype(dtype), (num_envs, *shape), offset)
        offset += (
            -(-int(np.dtype(dtype).itemsize * num_envs * np.prod(shape, dtype=int)) // 64) * 64
        )
    return fields_at, offset


def _arrays(layout, buffer):
    return {
        key: np.ndarray(shape, dtype, buffer, offset)
        for key, (dtype, shape, offset) in layout.items()
    }


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
            self.slots.append(Slot(env_fn(), info, seed, life_loss_ends, out))
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
            entry, sentence = out_of_range(self.reader, self.obs)
            self.notices[entry] = sentence
            low[entry] = -GREATEST
            high[entry] = GREATEST

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
            self.notices["state"] = f"its state can't be saved: {type(error).__name__}: {error}."
        return None


def _tell(info, told, notices):
    """Print what was not told yet."""
    for about, sentence in notices.items():
        if about not in told:
            told.add(about)
            print(f"\nnote: {info.name}: {sentence}", file=sys.stderr, flush=True)


def _words(error):
    """What an environment's failure is called: a sentence, and the traceback of one not ours."""
    if isinstance(error, EnvFailure):
        return str(error)
    return f"{sentence_of(error)}\n{traceback.format_exc()}"


def _worker(connection, pickled_env_fn, info, seeds, life_loss_ends, layout, memory_name, rows):
    import cloudpickle

    with contextlib.suppress(OSError):
        # Ctrl-C in a terminal then reaches no environment, and what they start ends with this.
        os.setsid()
    take_signals(lambda number, frame: None)  # the learner decides when to stop
    multiprocessing.current_process().daemon = False  # a daemon could have no children
    # Or the learner would not see the end of this process while a child of it lives.
    os.register_at_fork(after_in_child=connection.close)
    memory = shared_memory.SharedMemory(memory_name)
    arrays = _arrays(layout, memory.buf)
    envs = []
    slots = None
    seconds = CLOSE_SECONDS
    deserted = False
    try:
        env_fn = _noting(cloudpickle.loads(pickled_env_fn), envs)
        slots = Slots(env_fn, info, seeds, life_loss_ends, arrays, rows)
        connection.send((True, slots.serve("begin")))
        while True:
            try:
                message, payload = connection.recv()
            except EOFError:  # the learner is gone
                deserted = True
                break
            if message == "close":
                seconds = payload
                break
            connection.send((True, slots.serve(message, payload)))
    except BaseException as error:  # sys.exit() among them
        with contextlib.suppress(OSError):
            connection.send((False, _words(error)))
    finally:
        end_own_group_in(seconds + 1)  # if the learner, which would do that, is gone
        faults = close_all([env.close for env in envs], 0.75 * seconds)
        with contextlib.suppress(OSError):
            connection.send((CLOSED, faults))
        arrays.clear()
        del slots
        with contextlib.suppress(BufferError):
            memory.close()
        if deserted:
            end_own_group_in(0)  # with what environments left running


def _noting(env_fn, envs):
    """`env_fn`, which notes in `envs` what it made: to be closed even if its first reset fails."""

    def make():
        envs.append(env_fn())
        return envs[-1]

    return make


def _parted(link, process, deadline):
    """Wait for the end of a worker that was told to close: -> what went wrong."""
    faults = None
    alive = True
    while alive and time.monotonic() < deadline:
        alive = process.is_alive()  # before it is asked for its last words
        try:
            if faults is None and link.poll(0.02):
                message, payload = link.recv()
                alive = True  # there may be more
                if message == CLOSED:
                    faults = payload
                    deadline = min(deadline, time.monotonic() + 1)
        except (EOFError, OSError):
            faults = []
        if faults is not None:
            process.join(0.02)
    if faults is None and alive:
        return ["it did not end in time"]
    return faults or []


def make_vec_env(env_fn, info, num_envs, seed, *, workers=1, life_loss_ends=False, first=0):
    """Step `num_envs` environments in lockstep in `workers` processes (0: in this one).

    Results don't depend on `workers`.

    `env_fn()` makes one environment and reaches the workers by cloudpickle. Environment i is
    seeded with the child `first` + i of `seed`. Any call raises EnvFailure when an environment
    raised or gave something that is not a number.
    """
    children = np.random.SeedSequence(seed).spawn(first + num_envs)[first:]
    seeds = [int(child.generate_state(1)[0]) for child in children]
    layout, size = _layout(info, num_envs)
    if workers == 0:
        arrays = _arrays(layout, bytearray(size))
        return _in_process(env_fn, info, seeds, life_loss_ends, arrays)

    import cloudpickle

    context = multiprocessing.get_context("spawn")
    memory = shared_memory.SharedMemory(create=True, size=size)
    arrays = _arrays(layout, memory.buf)
    links = []
    told = set()

    def start():
        for rows in np.array_split(np.arange(num_envs), min(workers, num_envs)):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_worker,
                daemon=True,
                args=(
                    theirs,
                    cloudpickle.dumps(env_fn),
                    info,
                    [seeds[row] for row in rows],
                    life_loss_ends,
                    layout,
                    memory.name,
                    rows,
                ),
            )
            process.start()
            theirs.close()
            links.append((ours, process, rows))

    def gather():
        answers = []
        for link, process, rows in links:
            try:
                good, answer = link.recv()
            except (EOFError, OSError):
                process.join(1)
                good = False
                answer = f"its process ended with exit code {process.exitcode}"
            if not good:
                raise EnvFailure(
                    f"An environment of {info.name} failed (one of numbers {rows[0]} to "
                    f"{rows[-1]}): {answer}"
                )
            answers.append(answer[0])
            _tell(info, told, answer[1])
        return answers

    def send(message, payloads=None):
        for index, (link, _, _) in enumerate(links):
            with contextlib.suppress(OSError):  # a dead worker shows when its answer is read
                link.send((message, payloads[index] if payloads else None))
        return gather()

    def step(actions):
        arrays["action"][:] = actions
        send("step")

    def states():
        return [state for answer in send("states") for state in answer]

    def restore(states):
        answers = send("restore", [[states[row] for row in rows] for _, _, rows in links])
        return [went_on for answer in answers for went_on in answer]

    def close(seconds=CLOSE_SECONDS):
        deadline = time.monotonic() + seconds
        faults = []
        try:
            for link, _, _ in links:
                with contextlib.suppress(OSError):
                    link.send(("close", seconds))
            for link, process, _ in links:
                faults += _parted(link, process, deadline)
        finally:
            for link, process, _ in links:
                end_group(process)
                link.close()
            links.clear()
            if arrays:
                arrays.clear()
                with contextlib.suppress(BufferError):
                    memory.close()
                memory.unlink()
        tell_of_close(info.name, faults)

    try:
        start()
        gather()
    except BaseException:  # Ctrl-C among them
        close()
        raise
    return VecEnv(arrays, step, states, restore, close)


def _in_process(env_fn, info, seeds, life_loss_ends, arrays):
    rows = np.arange(len(seeds))
    envs = []
    told = set()

    @contextlib.contextmanager
    def failures():
        try:
            yield
        except (UsageError, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit() among them
            raise EnvFailure(f"An environment of {info.name} failed: {_words(error)}") from error

    def close(seconds=CLOSE_SECONDS):
        closers = [env.close for env in envs]
        envs.clear()
        tell_of_close(info.name, close_all(closers, seconds))

    def serve(message, payload=None):
        with failures():
            answer, notices = slots.serve(message, payload)
        _tell(info, told, notices)
        return answer

    try:
        with failures():
            slots = Slots(_noting(env_fn, envs), info, seeds, life_loss_ends, arrays, rows)
        serve("begin")
    except BaseException:
        close()
        raise

    def step(actions):
        arrays["action"][:] = actions
        serve("step")

    return VecEnv(
        arrays,
        step,
        functools.partial(serve, "states"),
        functools.partial(serve, "restore"),
        close,
    )
