"""What takes a run past one process and one device, and what can't be. Imports no TensorFlow."""

import dataclasses
import json
import os
from typing import Literal

from tfdqt.errors import UsageError


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """What takes a run past one process and one device."""

    actors: int = 0
    """Actors, which share the environments evenly, each in a process of Ray (0: none; the run's own
    worker processes step them)."""
    ray_address: str | None = None
    """Ray cluster to join, auto or HOST:PORT; by default Ray is started on this machine, reachable
    from nowhere else."""
    broadcast_every: int = 64
    """With actors: updates between two broadcasts of the weights to them."""
    strategy: Literal["none", "mirrored", "multiworker"] = "none"
    """mirrored: every batch is shared by all GPUs of this machine (tf.distribute.MirroredStrategy),
    and their gradients added up. multiworker: also by several processes, here or elsewhere, which
    the environment variable TF_CONFIG names."""


def check_scale(cfg, num_envs):
    """Raise UsageError for actors that don't go together with `num_envs` environments."""
    if cfg.actors < 0 or cfg.broadcast_every < 1:
        raise UsageError("--actors must be 0 or more and --broadcast-every at least 1.")
    if cfg.actors and num_envs % cfg.actors:
        multiple = cfg.actors * max(1, round(num_envs / cfg.actors))
        raise UsageError(
            f"--num-envs={num_envs} can't be shared evenly by {cfg.actors} actors; choose a "
            f"multiple, such as --num-envs={multiple}."
        )
    if cfg.ray_address and not cfg.actors:
        raise UsageError("--ray-address is where actors run; give their number by --actors too.")
    if cfg.actors and cfg.strategy == "multiworker":
        raise UsageError(
            "--actors deliver to one learner; leave them out, or choose --strategy=mirrored."
        )


def resumed_scale(run_dir, saved, given, flags):
    """The ScaleConfig with which a run goes on that was started with `saved`.

    `flags` names those fields of `given` to take. Raises UsageError for what can't change.
    """
    fields = {field.name for field in dataclasses.fields(ScaleConfig)}
    taken = {flag.replace("-", "_") for flag in flags} & fields
    chosen = dataclasses.replace(saved, **{key: getattr(given, key) for key in taken})
    for flag, had, has in (
        ("actors", saved.actors, chosen.actors),
        ("strategy=multiworker", saved.strategy == "multiworker", chosen.strategy == "multiworker"),
    ):
        if bool(had) != bool(has):
            raise UsageError(
                f"{run_dir} was started {'with' if had else 'without'} --{flag} and goes on so; "
                "leave that flag out, or start a new run."
            )
    return chosen


def cluster_member(environ=os.environ):
    """What TF_CONFIG says of a cluster of learners: (index of this one, addresses of all).

    Raises UsageError if it does not.
    """
    try:
        cluster = json.loads(environ["TF_CONFIG"])
        addresses = cluster["cluster"]["worker"]
        index = cluster["task"]["index"]
        if (
            cluster["task"]["type"] == "worker"
            and isinstance(addresses, list)
            and all(isinstance(address, str) for address in addresses)
            and isinstance(index, int)
            and 0 <= index < len(addresses)
            and set(cluster["cluster"]) == {"worker"}
        ):
            return index, addresses
    except (KeyError, TypeError, ValueError):
        pass
    example = dict(
        cluster=dict(worker=["host0:2222", "host1:2222"]), task=dict(type="worker", index=0)
    )
    raise UsageError(
        "--strategy=multiworker needs the environment variable TF_CONFIG to name all learners and "
        f"this one, such as TF_CONFIG='{json.dumps(example)}'."
    )
