"""Actors that collect experience in processes of Ray, on this machine or on a cluster. The only module that imports Ray.

What an actor does is a function that it makes for itself, of games here, of texts in `text_runs`. An actor that dies is replaced by one
that starts afresh; the learner only notices that its chunks come later. Each works on at most AHEAD chunks at a time, so that neither
side can run away from the other.
"""

import dataclasses
import functools
import os
import socket
import time
from collections import deque

import numpy as np

from tfdqt.acting import make_window, push
from tfdqt.apex import Part, Pool, steps_in_chunk
from tfdqt.backend import quiet, set_threads, tf
from tfdqt.config import UsageError
from tfdqt.dqn import make_collect
from tfdqt.envs import EnvFailure
from tfdqt.networks import flatten_model, make_act
from tfdqt.policy import epsilon_ladder
from tfdqt.vec_envs import make_vec_env

AHEAD = 2  # chunks that an actor has in work or delivered but not yet taken
LIVES = 5  # deaths of one actor in a row, without a chunk between them, that end the run
PATIENCE = 300  # seconds without a chunk from any actor that end the run
STORE = 512 << 20  # bytes of the object store of a Ray started here
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes Ray bind to the loopback address, on Linux too
         "RAY_worker_niceness": "0",  # by default actors would stand back behind everything else on this machine
         "RAY_USAGE_STATS_ENABLED": "0"}


def connect(actors, address=None):
    """Start Ray on this machine, reachable from nowhere else, or join the cluster at `address`. Returns the module.

    Raises UsageError if Ray is not installed or there is no such cluster.
    """
    if address is None:
        os.environ.update(ALONE)  # Ray reads them when it is imported
    try:
        with quiet():
            import ray
    except ImportError:
        raise UsageError("--actors needs Ray; install it with: pip install --no-deps -r requirements-ray.txt") from None
    if ray.is_initialized():
        return ray
    if address and address != "auto":
        _check_answers(address)
    settings = dict(address=address) if address else dict(num_cpus=max(actors, os.cpu_count() or 1), object_store_memory=STORE,
                                                          include_dashboard=False)
    try:
        with quiet():
            ray.init(**settings, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"Ray can't be reached at --ray-address={address} ({str(error).splitlines()[0].rstrip('.')}); start it with "
                         "`ray start --head`, or leave the flag out.") from None
    return ray


def _check_answers(address):
    """Raise UsageError unless something listens at HOST:PORT: Ray itself would go on asking for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"Nothing answers at --ray-address={address} ({error}); give auto or the HOST:PORT that `ray start --head` "
                         "printed.") from None


class Actor:
    """Plays in a process of its own, as `make_player(rows, seed) -> play(weights, step) -> what it found` has it."""

    def __init__(self, make_player, rows, seed):
        set_threads(1, 1)
        self.play = make_player(rows, seed)

    def collect(self, weights, version, step):
        """One chunk, as the fields of a Part. An environment's failure comes back as its message: it is no failure of Ray's."""
        try:
            return self.play(weights, step), version
        except EnvFailure as error:
            return str(error)


def make_game_player(env_fn, q_fn, info, cfg, rows, seed):
    """`play(weights, step) -> (rows, Steps, games)`: a chunk of the environments `rows` of a run by epsilon-greedy."""
    networks = flatten_model(q_fn(info))
    ends = epsilon_ladder(cfg.num_envs)[rows] if cfg.num_envs > 1 else None
    vec = make_vec_env(env_fn, info, len(rows), int(seed.generate_state(1)[0]), workers=0, life_loss_ends=cfg.life_loss_ends)
    rng, window = np.random.default_rng(seed.spawn(1)[0]), make_window(info, len(rows), networks.context)
    push(window, vec.out["obs"], vec.out["first"], -1)
    collect = make_collect(make_act(networks), vec, info, cfg, ends)
    return lambda weights, step: (rows, *collect(tf.constant(weights), step, window, rng))


def make_game_pool(env_fn, q_fn, cfg, info, life, *, actors, seed=0, address=None):
    """The Pool of a run of `apex`, whose arguments these are."""
    cfg = dataclasses.replace(cfg, chunk=steps_in_chunk(cfg, actors))
    return make_pool(functools.partial(make_game_player, env_fn, q_fn, info, cfg), np.array_split(np.arange(cfg.num_envs), actors),
                     [seed, 4, life], address=address)


def make_pool(make_player, shares, seed, *, address=None):
    """A Pool of an actor for each of `shares`, which start with the first broadcast.

    Args:
      make_player: see Actor; it reaches the actors by cloudpickle.
      shares: what each actor is given as `rows`.
      seed: list of integers that no earlier start of the run had; every actor gets a SeedSequence that grows from it.
      address: of a cluster, see `connect`.
    """
    actors = len(shares)
    ray = connect(actors, address)
    kind = ray.remote(num_cpus=1, max_restarts=0)(Actor)
    waiting = [deque() for _ in shares]  # of each actor: chunks asked for, the oldest first
    handles, deaths = [None] * actors, [0] * actors
    turn, delivered = list(range(actors)), set()
    place = dict(replaced=0, heard=time.monotonic())

    def start(i):
        handles[i] = kind.remote(make_player, shares[i], np.random.SeedSequence([*seed, i, place["replaced"]]))
        waiting[i].clear()
        delivered.discard(i)
        ask(i)

    def ask(i):
        while len(waiting[i]) < AHEAD:
            waiting[i].append(handles[i].collect.remote(place["weights"], place["version"], place["step"]))

    def broadcast(weights, version, step):
        try:
            place.update(weights=ray.put(weights), version=version, step=step)
        except ray.exceptions.RayError as error:
            raise EnvFailure(f"Ray could not take the weights: {error}") from error
        if handles[0] is None:
            for i in range(actors):
                start(i)

    def take():
        heads = {waiting[i][0]: i for i in turn}
        try:
            ready, _ = ray.wait(list(heads), timeout=1.0)
            if not ready:
                if time.monotonic() - place["heard"] > PATIENCE:
                    raise EnvFailure(f"No actor has delivered anything for {PATIENCE} seconds; ask `ray status` whether the cluster has "
                                     "a free CPU for each")
                return None
            i = heads[ready[0]]
            found = ray.get(waiting[i].popleft())
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.WorkerCrashedError) as error:
            place["replaced"] += 1
            deaths[i] += 1
            if deaths[i] >= LIVES:
                raise EnvFailure(f"Actor {i} died {LIVES} times before it delivered anything: {error}") from error
            ray.kill(handles[i])
            start(i)
            return None
        except ray.exceptions.RayError as error:
            raise EnvFailure(f"Ray failed: {error}") from error
        if isinstance(found, str):
            raise EnvFailure(found)
        deaths[i], place["heard"] = 0, time.monotonic()
        delivered.add(i)
        turn.remove(i)  # whoever delivered waits behind the others
        turn.append(i)
        ask(i)
        return Part(*found)

    def census():
        return len(delivered), place["replaced"]

    def close():
        for handle in handles:
            if handle is not None:
                ray.kill(handle)
        if address is None:
            with quiet():
                ray.shutdown()

    return Pool(broadcast, take, census, close)
