"""Several devices or processes that learn as one, through tf.distribute: each takes its share of every batch.

In one process the devices share everything but the batch. Several processes (`--strategy=multiworker`) each have checkpoints and a replay
buffer of their own, and environments of their own or all the same texts; their gradients are added up, so their weights stay equal bit for
bit.
"""

import contextlib
import dataclasses
import socket
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt.backend import quiet, tf
from tfdqt.checks import cluster_place
from tfdqt.config import UsageError
from tfdqt.runs import checkpoints

PATIENCE = 600  # seconds that a learner waits for the others to start


class Team(NamedTuple):
    """The processes that learn together."""

    size: int
    index: int  # of this one
    total: Callable  # numbers -> their sums over all of them, float64; each must call it as often as the others


ALONE = Team(1, 0, lambda numbers: np.asarray(numbers, np.float64))


def make_strategy(name):
    """The tf.distribute.Strategy called mirrored or multiworker, None for none. Before TensorFlow's first operation.

    Raises UsageError if the environment variable TF_CONFIG names no cluster, or a member of it can't be reached.
    """
    if name == "none":
        return None
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    meet(*cluster_place())
    try:
        with quiet():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise UsageError(f"The learners that TF_CONFIG names did not meet ({_first_line(error)}); start every one of them with the same "
                         "list of addresses.") from None


def meet(index, addresses, patience=PATIENCE):
    """Wait until every learner has started: TensorFlow itself would wait for ever, deaf to signals. Raises UsageError if one does not come.

    Each listens at its address until it has reached all others and heard from them; then TensorFlow takes the port.
    """
    places = [address.rpartition(":")[::2] for address in addresses]
    try:
        own = socket.create_server(("", int(places[index][1])), backlog=len(places))
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"Learner {index} can't listen at {addresses[index]}, its address in TF_CONFIG ({error}); choose a free "
                         "port.") from None
    print(f"Learner {index} waits for the others at {', '.join(addresses[:index] + addresses[index + 1:])}. TensorFlow will listen on port "
          f"{places[index][1]} of every network interface: let a firewall keep it to the learners.", flush=True)
    deadline, others = time.monotonic() + patience, set(range(len(places))) - {index}
    reached, heard, fault = set(), set(), None
    own.settimeout(0.2)
    with own:
        while reached < others or heard < others:  # whoever has not been heard still needs this port to answer
            for other in others - reached:
                try:
                    with socket.create_connection((places[other][0], int(places[other][1])), timeout=5) as link:
                        link.sendall(bytes([index]))
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
                raise UsageError(f"Learner {missing} at {addresses[missing]} did not come within {patience} seconds"
                                 f"{f' ({fault})' if fault else ''}; start every learner with the same list of addresses.")


def make_team(strategy):
    """The Team that a strategy makes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return ALONE
    size = _processes(strategy)
    add_up = tf.function(make_add_up(strategy, lambda numbers, part, parts: numbers / parts))

    def total(numbers):
        with together(size):
            return add_up(tf.constant(numbers, tf.float64)).numpy()

    return Team(size, strategy.cluster_resolver.task_id, total)


def check_same(team, *things):
    """Raise UsageError if a string or array here differs from another learner's."""
    own = 0
    for thing in things:
        own = zlib.crc32(thing.encode() if isinstance(thing, str) else np.ascontiguousarray(thing).tobytes(), own)
    if len(set(team.total(own * np.eye(team.size)[team.index]))) > 1:
        raise UsageError("The learners were started with different settings; give each the same flags.")


@contextlib.contextmanager
def together(size):
    """Turn what TensorFlow raises when one of `size` processes has gone into a UsageError."""
    try:
        yield
    except tf.errors.OpError as error:
        if size == 1:
            raise
        raise UsageError(f"This learner lost another one ({type(error).__name__}); start all of them again with --resume.") from None


def own_share(cfg, team):
    """The part of a DQNConfig's environments, batch and replay buffer that is this process's."""
    for field in ("num_envs", "batch_size"):
        if getattr(cfg, field) % team.size:
            raise UsageError(f"--{field.replace('_', '-')}={getattr(cfg, field)} can't be shared evenly by {team.size} learners; choose a "
                             "multiple.")
    return dataclasses.replace(cfg, num_envs=cfg.num_envs // team.size, batch_size=cfg.batch_size // team.size,
                               replay_size=cfg.replay_size // team.size, learning_starts=-(-cfg.learning_starts // team.size))


def own_seed(seed, team):
    """A seed for this process: `seed` itself for the first."""
    return seed if team.index == 0 else int(np.random.SeedSequence([seed, 7, team.index]).generate_state(1)[0])


def share_of(batch, part, parts):
    """One of `parts` equal shares of nested tensors [B, ...]; `part`, its number, may be a tensor."""
    def cut(field):
        size = field.shape[0] // parts
        return tf.ensure_shape(field[part * size:(part + 1) * size], [size, *field.shape[1:]])

    return tf.nest.map_structure(cut, batch)


def make_add_up(strategy, share) -> Callable:
    """`add_up(*args) -> sums`, for use in a tf.function: share(*args, part, parts) -> tensor on every device, added up over all.

    `part` is the device's number among the `parts` of this process.
    """
    parts = strategy.num_replicas_in_sync // _processes(strategy)

    def one(*args):
        return share(*args, tf.distribute.get_replica_context().replica_id_in_sync_group % parts, parts)

    return lambda *args: strategy.reduce("sum", strategy.run(one, args), None)


def newest_common(run_dir, team):
    """The newest checkpoint of which every process has one of the same step."""
    steps = np.zeros([team.size, 2])
    own = [int(path.name.partition("-")[2]) for path in checkpoints(run_dir)[-2:]]
    steps[team.index, :len(own)] = own
    steps = team.total(steps)
    common = set(own).intersection(*map(set, steps.astype(int).tolist())) - {0}
    if not common:
        raise UsageError(f"No step has a checkpoint of every learner (this one's: {', '.join(map(str, own)) or 'none'}); start a new run.")
    return run_dir / "checkpoints" / f"step-{max(common):012d}"


def _processes(strategy):
    resolver = strategy.cluster_resolver
    return resolver.cluster_spec().num_tasks("worker") if resolver else 1


def _first_line(error):
    return (getattr(error, "message", "") or str(error)).strip().splitlines()[0][:200].rstrip(".")
