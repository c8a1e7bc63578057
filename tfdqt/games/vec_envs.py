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
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import NamedTuple

import numpy as np

from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.envs import env_state, restore_env

REST = -1  # an action that leaves an environment as it is


class Slot:
    """One environment and its stream. `out` holds views into the arrays of the vector."""

    def __init__(self, env, seed, life_loss_ends, out):
        self.env = env
        self.out = out
        self.life_loss_ends = life_loss_ends
        self.start = getattr(env.action_space, "start", 0)
        self.obs_start = getattr(env.observation_space, "start", 0)
        self.ended = False
        self._begin_episode()
        self._show(env.reset(seed=seed)[0], first=True)

    def _begin_episode(self):
        self.lives = 0
        self.ret = 0.0
        self.length = 0

    def _show(self, obs, *, first, reward=0.0, discount=1.0, ended=False, ret=0.0, length=0):
        obs = np.asarray(obs) - self.obs_start
        if obs.dtype.kind == "f" and not np.isfinite(obs).all():
            raise EnvFailure(f"it returned an observation that is not a number: {obs}")
        if not np.isfinite(reward):
            raise EnvFailure(f"it returned a reward that is not a number: {reward}")
        self.ended = ended
        out = self.out
        out["obs"][...] = obs
        out["first"][...] = first
        out["reward"][...] = reward
        out["discount"][...] = discount
        out["ended"][...] = ended
        out["ret"][...] = ret
        out["length"][...] = length

    def step(self, action):
        """Take `action`, or reset if the episode has ended; what comes next goes to `out`.

        REST changes nothing.
        """
        if action == REST:
            return
        if self.ended:
            self._begin_episode()
            self._show(self.env.reset()[0], first=True)
            return
        obs, reward, terminated, truncated, info = self.env.step(int(action + self.start))
        lives = info.get("lives", 0)
        lost_life = lives < self.lives
        self.lives = lives
        over = terminated or (self.life_loss_ends and lost_life)
        self.ret += float(reward)
        self.length += 1
        self._show(
            obs,
            first=False,
            reward=reward,
            discount=0.0 if over else 1.0,
            ended=bool(terminated or truncated),
            ret=self.ret,
            length=self.length,
        )

    def state(self):
        """Everything that `restore` needs; None if the environment offers no state."""
        env = env_state(self.env)
        if env is None:
            return None
        slot = dict(
            lives=int(self.lives),
            ret=float(self.ret),
            length=int(self.length),
            ended=bool(self.ended),
        )
        out = {key: np.array(value) for key, value in self.out.items()}
        return dict(env=env, slot=slot, out=out)

    def restore(self, state):
        """Go on from `state`, or from a fresh episode if it is None."""
        if state is None:
            self._begin_episode()
            self._show(self.env.reset()[0], first=True)
            return
        restore_env(self.env, state["env"])
        for key, value in state["slot"].items():
            setattr(self, key, value)
        for key, value in state["out"].items():
            self.out[key][...] = value


class VecEnv(NamedTuple):
    """Environments in lockstep, as functions; `step` fills the arrays of `out`, a row each."""

    out: dict  # obs [N, ...], first [N], reward [N], discount [N], ended [N], ret [N], length [N]
    step: Callable  # (actions [N]) -> None
    states: Callable  # () -> list of N states, None where an environment offers none
    restore: Callable  # (list of N states) -> None
    close: Callable  # () -> None


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


def _slots(env_fn, seeds, life_loss_ends, arrays, rows):
    views = [
        {
            key: array[row : row + 1].reshape(array.shape[1:])
            for key, array in arrays.items()
            if key != "action"
        }
        for row in rows
    ]
    return [Slot(env_fn(), seed, life_loss_ends, view) for seed, view in zip(seeds, views)]


def _serve(slots, arrays, rows, message, payload=None):
    if message == "step":
        for slot, action in zip(slots, arrays["action"][rows]):
            slot.step(action)
    elif message == "states":
        return [slot.state() for slot in slots]
    elif message == "restore":
        for slot, state in zip(slots, payload):
            slot.restore(state)


def _worker(connection, pickled_env_fn, seeds, life_loss_ends, layout, memory_name, rows):
    import signal

    import cloudpickle

    for number in (signal.SIGINT, signal.SIGTERM):  # the learner decides when to stop
        signal.signal(number, signal.SIG_IGN)
    memory = shared_memory.SharedMemory(memory_name)
    arrays = _arrays(layout, memory.buf)
    slots = []
    try:
        slots += _slots(cloudpickle.loads(pickled_env_fn), seeds, life_loss_ends, arrays, rows)
        connection.send((True, None))
        while True:
            message, payload = connection.recv()
            if message == "close":
                break
            connection.send((True, _serve(slots, arrays, rows, message, payload)))
    except EOFError:
        pass  # the learner is gone
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    finally:
        for slot in slots:
            slot.env.close()
        arrays.clear()
        slots.clear()
        with contextlib.suppress(BufferError):
            memory.close()


def make_vec_env(env_fn, info, num_envs, seed, *, workers=1, life_loss_ends=False):
    """Step `num_envs` environments in lockstep in `workers` processes (0: in this one).

    Results don't depend on `workers`.

    `env_fn()` makes one environment and reaches the workers by cloudpickle. Environment i is
    seeded with the i-th child of `seed`. Any call raises EnvFailure when an environment raised or
    gave something that is not a number.
    """
    seeds = [
        int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(num_envs)
    ]
    layout, size = _layout(info, num_envs)
    if workers == 0:
        arrays = _arrays(layout, bytearray(size))
        return _in_process(env_fn, seeds, life_loss_ends, arrays)

    import cloudpickle

    context = multiprocessing.get_context("spawn")
    memory = shared_memory.SharedMemory(create=True, size=size)
    arrays = _arrays(layout, memory.buf)
    links = []
    for rows in np.array_split(np.arange(num_envs), min(workers, num_envs)):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_worker,
            daemon=True,
            args=(
                theirs,
                cloudpickle.dumps(env_fn),
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
            answers.append(answer)
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
        send("restore", [[states[row] for row in rows] for _, _, rows in links])

    def close():
        for link, process, _ in links:
            with contextlib.suppress(OSError):
                link.send(("close", None))
            process.join(5)
            if process.is_alive():
                process.kill()
            link.close()
        links.clear()
        if arrays:
            arrays.clear()
            with contextlib.suppress(BufferError):
                memory.close()
            memory.unlink()

    try:
        gather()
    except EnvFailure:
        close()
        raise
    return VecEnv(arrays, step, states, restore, close)


def _in_process(env_fn, seeds, life_loss_ends, arrays):
    rows = np.arange(len(seeds))

    @contextlib.contextmanager
    def failures():
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            raise EnvFailure(
                f"An environment failed: {type(error).__name__}: {error}\n{traceback.format_exc()}"
            ) from error

    with failures():
        slots = _slots(env_fn, seeds, life_loss_ends, arrays, rows)

    def step(actions):
        arrays["action"][:] = actions
        with failures():
            _serve(slots, arrays, rows, "step")

    def restore(states):
        with failures():
            _serve(slots, arrays, rows, "restore", states)

    def states():
        with failures():
            return _serve(slots, arrays, rows, "states")

    def close():
        for slot in slots:
            slot.env.close()

    return VecEnv(arrays, step, states, restore, close)
