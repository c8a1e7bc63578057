"""Actors that collect experience in processes of Ray, here or on a cluster. Alone imports Ray.

What an actor does is a function that it makes for itself, of games or of texts. An actor that dies
is replaced by one that starts afresh; the learner only notices that its chunks come later. Each
works on at most AHEAD chunks at a time, so that neither side can run away from the other.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tfdqt.backend import quiet, set_threads
from tfdqt.errors import EnvFailure, MissingPackage, UsageError

AHEAD = 2  # chunks that an actor has in work or delivered but not yet taken
MAX_DEATHS = 5  # of one actor in a row, without a chunk between them, that end the run
SILENT_SECONDS = 300  # without a chunk from any actor that end the run
STORE_BYTES = 512 << 20  # of the object store of a Ray started here
LOCAL_RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds to the loopback address, on Linux too
    "RAY_worker_niceness": "0",  # by default actors would yield to everything else on this machine
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Chunk(NamedTuple):
    """What an actor delivers."""

    experience: Any  # what its `collect` function returned
    version: int  # updates done when the weights it acted with were broadcast


class Pool(NamedTuple):
    """Actors, as functions."""

    broadcast: Callable  # (weights, updates done): act with these from now on
    take: Callable  # (steps so far) -> Chunk, or None if none came within a second
    counts: Callable  # () -> (actors alive, actors replaced so far)
    close: Callable


def connect(actors, address=None):
    """Start Ray on this machine, reachable from nowhere else, or join the cluster at `address`.

    Returns the module. Raises UsageError if Ray is not installed or there is no such cluster.
    """
    if address is None:
        os.environ.update(LOCAL_RAY)  # Ray reads them when it is imported
    try:
        with quiet():
            import ray
    except ImportError:
        raise MissingPackage(
            "--actors needs Ray; install it with: pip install --no-deps -r requirements-ray.txt, "
            'or outside of a checkout: pip install "ray>=2.60,<3"'
        ) from None
    if ray.is_initialized():
        return ray
    if address and address != "auto":
        _check_answers(address)
    if address:
        settings = dict(address=address)
    else:
        settings = dict(
            address="local",  # whatever Ray is or was on this machine
            num_cpus=max(actors, os.cpu_count() or 1),
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
        )
    try:
        with quiet():
            ray.init(**settings, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"Ray can't be reached at --ray-address={address} "
            f"({str(error).splitlines()[0].rstrip('.')}); start it with `ray start --head`, or "
            "leave the flag out."
        ) from None
    return ray


def _check_answers(address):
    """Raise UsageError unless something listens at HOST:PORT: Ray would ask for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Nothing answers at --ray-address={address} ({error}); give auto or the HOST:PORT "
            "that `ray start --head` printed."
        ) from None


class Actor:
    """Acts in a process of its own, by the function that `make_collect(share, seed)` gives.

    That function is called as collect(weights, step) -> experience.
    """

    def __init__(self, make_collect, share, seed):
        set_threads(1, 1)
        self._collect = make_collect(share, seed)

    def collect(self, weights, version, step):
        """One chunk, as the fields of a Chunk. An EnvFailure comes back as its message.

        It is no failure of Ray's, which would replace the actor.
        """
        try:
            return self._collect(weights, step), version
        except EnvFailure as error:
            return str(error)


def make_pool(make_collect, shares, seed, *, address=None):
    """A Pool of an actor for each of `shares`, which start when a chunk is first taken.

    Args:
      make_collect: see Actor; it reaches the actors by cloudpickle.
      shares: what each actor is given.
      seed: list of integers that no earlier start of the run had; every actor gets a SeedSequence
        that grows from it.
      address: of a cluster, see `connect`.
    """
    actors = len(shares)
    ray = connect(actors, address)
    remote_actor = ray.remote(num_cpus=1, max_restarts=0)(Actor)
    waiting = [deque() for _ in shares]  # of each actor: chunks asked for, the oldest first
    handles = [None] * actors
    deaths = [0] * actors
    turn = list(range(actors))  # who is served first
    delivered = set()
    state = dict(replaced=0, step=0)

    def start(i):
        sequence = np.random.SeedSequence([*seed, i, state["replaced"]])
        handles[i] = remote_actor.remote(make_collect, shares[i], sequence)
        waiting[i].clear()
        delivered.discard(i)
        state["heard"] = time.monotonic()
        ask(i)

    def ask(i):
        while len(waiting[i]) < AHEAD:
            chunk = handles[i].collect.remote(state["weights"], state["version"], state["step"])
            waiting[i].append(chunk)

    def broadcast(weights, version):
        try:
            state.update(weights=ray.put(weights), version=version)
        except ray.exceptions.RayError as error:
            raise EnvFailure(f"Ray could not take the weights: {error}") from error

    def replace(i, error):
        state["replaced"] += 1
        deaths[i] += 1
        if deaths[i] >= MAX_DEATHS:
            raise EnvFailure(
                f"Actor {i} died {MAX_DEATHS} times before it delivered anything: {error}"
            ) from error
        ray.kill(handles[i])
        start(i)

    def take(step):
        state["step"] = step
        if handles[0] is None:
            for i in range(actors):
                start(i)
        oldest = {waiting[i][0]: i for i in turn}
        try:
            ready, _ = ray.wait(list(oldest), timeout=1.0)
            if not ready:
                if time.monotonic() - state["heard"] > SILENT_SECONDS:
                    raise EnvFailure(
                        f"No actor has delivered anything for {SILENT_SECONDS} seconds; ask "
                        "`ray status` whether the cluster has a free CPU for each"
                    )
                return None
            i = oldest[ready[0]]
            answer = ray.get(waiting[i].popleft())
        except (
            ray.exceptions.RayActorError,
            ray.exceptions.ObjectLostError,
            ray.exceptions.WorkerCrashedError,
        ) as error:
            replace(i, error)
            return None
        except ray.exceptions.RayError as error:
            raise EnvFailure(f"Ray failed: {error}") from error
        if isinstance(answer, str):
            raise EnvFailure(answer)
        deaths[i] = 0
        state["heard"] = time.monotonic()
        delivered.add(i)
        turn.remove(i)  # whoever delivered waits behind the others
        turn.append(i)
        ask(i)
        return Chunk(*answer)

    def counts():
        return len(delivered), state["replaced"]

    def close():
        for handle in handles:
            if handle is not None:
                ray.kill(handle)
        if address is None:
            with quiet():
                ray.shutdown()

    return Pool(broadcast, take, counts, close)
