"""Many environments stepped in lockstep, in worker processes; `slots` has what a process does.

Why not gymnasium's AsyncVectorEnv: it has a process for each environment, where one process steps
many small ones faster; it can't save and restore states; and it can't leave an environment as it is
while others play on (REST).
"""

import contextlib
import functools
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import NamedTuple

import numpy as np

from tfdqt.errors import EnvFailure, UsageError, sentence_of
from tfdqt.games.slots import Slots
from tfdqt.runs.processes import (
    CLOSE_SECONDS,
    close_all,
    end_group,
    end_own_group,
    end_own_group_with_parent,
    is_ctrl_c,
    take_signals,
    tell_of_close,
)

CLOSED = "closed"  # a worker's last word, with what went wrong in it


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


def _tell(info, told, notices):
    """Print what was not told yet."""
    for about, sentence in notices.items():
        if about not in told:
            told.add(about)
            print(f"\nnote: {info.name}: {sentence}", file=sys.stderr, flush=True)


def _words(error):
    """What an environment's failure is called: a sentence, and the traceback of one not ours."""
    if isinstance(error, (EnvFailure, UsageError)):
        return str(error)
    return f"{sentence_of(error)}\n{traceback.format_exc()}"


def _worker(connection, pickled_env_fn, info, seeds, life_loss_ends, layout, memory_name, rows):
    import cloudpickle

    with contextlib.suppress(OSError):
        # Ctrl-C in a terminal then reaches no environment, and what they start ends with this.
        os.setsid()
    take_signals(lambda number, frame: None)  # the learner decides when to stop
    end_own_group_with_parent(CLOSE_SECONDS + 1)  # an environment may hang, or its close()
    multiprocessing.current_process().daemon = False  # a daemon could have no children
    # Or the learner would not see the end of this process while a child of it lives.
    os.register_at_fork(after_in_child=connection.close)
    memory = shared_memory.SharedMemory(memory_name)
    arrays = _arrays(layout, memory.buf)
    envs = []
    slots = None
    seconds = CLOSE_SECONDS
    deserted = False
    random.seed(seeds[0])  # for environments that draw from these, which are another process's
    np.random.seed(seeds[0])
    try:
        env_fn = noting(cloudpickle.loads(pickled_env_fn), envs)
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
        faults = close_all([env.close for env in envs], 0.75 * seconds)
        with contextlib.suppress(OSError):
            connection.send((CLOSED, faults))
        arrays.clear()
        del slots
        with contextlib.suppress(BufferError):
            memory.close()
        if deserted:
            end_own_group()  # with what environments left running


def noting(env_fn, envs):
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


def env_seeds(seed, num_envs, first=0):
    """The seeds of environments `first` and on: a list of num_envs."""
    children = np.random.SeedSequence(seed).spawn(first + num_envs)[first:]
    return [int(child.generate_state(1)[0]) for child in children]


def game_seed(seed):
    """The seed of the environments of whole games that are numbered from 0."""
    return np.random.SeedSequence([seed, 3]).generate_state(1)[0]


def make_slots(env_fn, info, seeds, *, life_loss_ends=False):
    """Environments of this process, each at hand in `slots`: -> (Slots, its arrays)."""
    layout, size = _layout(info, len(seeds))
    arrays = _arrays(layout, bytearray(size))
    return Slots(env_fn, info, seeds, life_loss_ends, arrays, np.arange(len(seeds))), arrays


def make_vec_env(
    env_fn, info, num_envs, seed, *, workers=1, life_loss_ends=False, first=0, tell=True
):
    """Step `num_envs` environments in lockstep in `workers` processes (0: in this one).

    Results don't depend on `workers`.

    `env_fn()` makes one environment and reaches the workers by cloudpickle. Environment i is
    seeded with the child `first` + i of `seed`. Any call raises EnvFailure when an environment
    raised or gave something that is not a number. tell: whether to print what there is to tell of
    them, such as that one oversteps its space.
    """
    seeds = env_seeds(seed, num_envs, first)
    layout, size = _layout(info, num_envs)
    if workers == 0:
        arrays = _arrays(layout, bytearray(size))
        return _in_process(env_fn, info, seeds, life_loss_ends, arrays, tell)

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

    def gather(hint=""):
        answers = []
        for link, process, rows in links:
            try:
                good, answer = link.recv()
            except (EOFError, OSError):
                process.join(1)
                good = False
                answer = f"its process ended with exit code {process.exitcode}{hint}"
            if not good:
                raise EnvFailure(
                    f"An environment of {info.name} failed (one of numbers {rows[0]} to "
                    f"{rows[-1]}): {answer}"
                )
            answers.append(answer[0])
            if tell:
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
        # A script that a new process imports, as it does, must not train by being imported.
        gather(
            "; in a script of your own call it under `if __name__ == '__main__':`, or give "
            "workers=0"
        )
    except BaseException:  # Ctrl-C among them
        close()
        raise
    return VecEnv(arrays, step, states, restore, close)


def _in_process(env_fn, info, seeds, life_loss_ends, arrays, tell):
    rows = np.arange(len(seeds))
    envs = []
    told = set()

    @contextlib.contextmanager
    def failures(*others):
        try:
            yield
        except others:
            raise
        except BaseException as error:  # sys.exit() among them
            if is_ctrl_c(error):
                raise
            raise EnvFailure(f"An environment of {info.name} failed: {_words(error)}") from error

    def close(seconds=CLOSE_SECONDS):
        closers = [env.close for env in envs]
        envs.clear()
        tell_of_close(info.name, close_all(closers, seconds))

    def serve(message, payload=None):
        with failures():
            answer, notices = slots.serve(message, payload)
        if tell:
            _tell(info, told, notices)
        return answer

    try:
        with failures(UsageError):  # of what they are made with; later one is a failure like others
            slots = Slots(noting(env_fn, envs), info, seeds, life_loss_ends, arrays, rows)
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
