"""Several devices or processes that learn as one: each has its share of every batch.

Through tf.distribute.

In one process the devices share everything but the batch. Several processes
(`--strategy=multiworker`) each have checkpoints and a replay buffer of their own, and
environments of their own or all the same texts; their gradients are added up, so their weights
stay equal bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt.backend import quiet, tf, traced
from tfdqt.errors import UsageError
from tfdqt.scale.config import cluster_member

START_SECONDS = 600  # that a learner waits for the others to start


class ProcessGroup(NamedTuple):
    """The processes that learn as one."""

    size: int
    rank: int  # of this one, from 0
    all_sum: (
        Callable  # numbers -> their sums over all processes, float64; all must call it as often
    )


SINGLE = ProcessGroup(1, 0, lambda numbers: np.asarray(numbers, np.float64))


def make_strategy(name):
    """The tf.distribute.Strategy called mirrored or multiworker, None for none.

    Before TensorFlow's first operation. Raises UsageError if the environment variable TF_CONFIG
    names no cluster, or a member of it can't be reached.
    """
    if name == "none":
        return None
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    wait_for_learners(*cluster_member())
    try:
        with quiet():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"The learners that TF_CONFIG names did not connect ({_first_line(error)}); start "
            "every one of them with the same list of addresses."
        ) from None


def wait_for_learners(rank, addresses, seconds=START_SECONDS):
    """Wait until every learner has started: TensorFlow would wait for ever, deaf to signals.

    Each listens at its address until it has reached all others and heard from them; then TensorFlow
    takes the port. Raises UsageError if one does not come within `seconds`.
    """
    hosts = [address.rpartition(":")[::2] for address in addresses]
    try:
        own = socket.create_server(("", int(hosts[rank][1])), backlog=len(hosts))
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"Learner {rank} can't listen at {addresses[rank]}, its address in TF_CONFIG "
            f"({error}); choose a free port."
        ) from None
    print(
        f"Learner {rank} waits for the others at "
        f"{', '.join(addresses[:rank] + addresses[rank + 1 :])}. TensorFlow will listen on port "
        f"{hosts[rank][1]} of every network interface: let a firewall keep it to the learners.",
        flush=True,
    )
    deadline = time.monotonic() + seconds
    others = set(range(len(hosts))) - {rank}
    reached = set()
    heard = set()
    fault = None
    own.settimeout(0.2)
    with own:
        # Whoever has not been heard still needs this port to answer.
        while reached < others or heard < others:
            for other in others - reached:
                host, port = hosts[other]
                try:
                    with socket.create_connection((host, int(port)), timeout=5) as link:
                        link.sendall(bytes([rank]))
                    reached.add(other)
                except (OSError, ValueError, OverflowError) as error:
                    fault = error
            with contextlib.suppress(OSError):
                link, _ = own.accept()
                with link:
                    link.settimeout(5)
                    heard.update(set(link.recv(1)) & others)
            if time.monotonic() > deadline:
                missing = min(others - (reached & heard))
                raise UsageError(
                    f"Learner {missing} at {addresses[missing]} did not come within {seconds} "
                    f"seconds{f' ({fault})' if fault else ''}; start every learner with the same "
                    "list of addresses."
                )


def make_group(strategy):
    """The ProcessGroup that a strategy, or None, makes."""
    if strategy is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return SINGLE
    size = _processes(strategy)
    add_up = traced(make_sum(strategy, lambda numbers, part, parts: numbers / parts))

    def all_sum(numbers):
        with lost_learner_ends_run(size):
            return add_up(tf.constant(numbers, tf.float64)).numpy()

    return ProcessGroup(size, strategy.cluster_resolver.task_id, all_sum)


def check_same(group, *things):
    """Raise UsageError if a string or array here differs from another learner's."""
    checksum = 0
    for thing in things:
        content = (
            thing.encode() if isinstance(thing, str) else np.ascontiguousarray(thing).tobytes()
        )
        checksum = zlib.crc32(content, checksum)
    if len(set(group.all_sum(checksum * np.eye(group.size)[group.rank]))) > 1:
        raise UsageError(
            "The learners were started with different settings; give each the same flags."
        )


@contextlib.contextmanager
def lost_learner_ends_run(size):
    """Turn what TensorFlow raises when one of `size` processes has gone into a UsageError."""
    try:
        yield
    except tf.errors.OpError as error:
        if size == 1:
            raise
        raise UsageError(
            f"This learner lost another one ({type(error).__name__}); start all of them again with "
            "--resume."
        ) from None


def share_settings(cfg, group, even, uneven=()):
    """The settings of which this process has its part: fields `even` must be shared without a rest.

    `uneven` are rounded up. Raises UsageError for what can't be shared.
    """
    if group.size == 1:
        return cfg
    shares = {field: -(-getattr(cfg, field) // group.size) for field in (*even, *uneven)}
    for field in even:
        if getattr(cfg, field) % group.size:
            raise UsageError(
                f"--{field.replace('_', '-')}={getattr(cfg, field)} can't be shared evenly by "
                f"{group.size} learners; choose a multiple."
            )
    return dataclasses.replace(cfg, **shares)


def share_seed(seed, group):
    """A seed for this process: `seed` itself for the first."""
    if group.rank == 0:
        return seed
    return int(np.random.SeedSequence([seed, 7, group.rank]).generate_state(1)[0])


def check_even(cfg, strategy):
    """Raise UsageError unless the batch can be shared evenly by a strategy's devices."""
    replicas = strategy.num_replicas_in_sync
    if cfg.batch_size % replicas:
        raise UsageError(
            f"--batch-size={cfg.batch_size} can't be shared evenly by {replicas} devices; choose a "
            f"multiple of {replicas}."
        )


def slice_batch(batch, part, parts):
    """One of `parts` equal slices of nested tensors [B, ...]; its number `part` may be a tensor."""

    def cut(field):
        size = field.shape[0] // parts
        return tf.ensure_shape(field[part * size : (part + 1) * size], [size, *field.shape[1:]])

    return tf.nest.map_structure(cut, batch)


def make_sum(strategy, share) -> Callable:
    """`sums(*args)`, for use in a tf.function: what `share` gives on every device, added up.

    share: (*args, part, parts) -> tensor; `part` is the device's number among the `parts` of this
    process.
    """
    parts = strategy.num_replicas_in_sync // _processes(strategy)

    def one(*args):
        part = tf.distribute.get_replica_context().replica_id_in_sync_group % parts
        return share(*args, part, parts)

    return lambda *args: strategy.reduce("sum", strategy.run(one, args), None)


def make_means(strategy, share, least) -> Callable:
    """`means(*args) -> list of vectors`, for use in a tf.function: weighted means over all devices.

    One update that is shared by devices, as DQN and text learning both make it: each device has
    the mean of its slice, of loss, diagnostics and gradient in one vector, weighed by how many
    decisions it is the mean of; together they are the mean of the whole batch.

    Args:
      share: (*args, part, parts) -> list of (weight [], vector [V]), as many on every device.
      least: what a sum of weights counts at the least, so that an empty batch gives zeros.
    """
    sizes = []

    def weighed(*args):
        vectors = [weight * tf.concat([tf.ones([1]), vector], 0) for weight, vector in share(*args)]
        sizes[:] = [vector.shape[0] for vector in vectors]
        return tf.concat(vectors, 0)

    add_up = make_sum(strategy, weighed)

    def means(*args):
        total = add_up(*args)
        return [part[1:] / tf.maximum(part[0], least) for part in tf.split(total, sizes)]

    return means


def _processes(strategy):
    resolver = strategy.cluster_resolver
    return resolver.cluster_spec().num_tasks("worker") if resolver else 1


def _first_line(error):
    message = getattr(error, "message", "") or str(error)
    return message.strip().splitlines()[0][:200].rstrip(".")
