"""Settings that can't be are refused here, in a sentence, before anything is started; so is what a resumed run can't change."""

import dataclasses
import json
import os

from tfdqt.config import FarConfig, UsageError


def check_network(cfg):
    """Raise UsageError for a network that can't be built."""
    _positive(cfg, "context", "layers", "heads", "width")
    _divided(cfg)
    _fractions(cfg, "min_change", "hidden_scale")
    if cfg.quantiles < 0:
        raise UsageError(f"--quantiles must be 0 or more, not {cfg.quantiles}.")
    if cfg.network == "dense" and (not cfg.hidden or min(cfg.hidden) < 1):
        raise UsageError(f"--hidden must list one or more sizes of at least 1, not {cfg.hidden}.")


def check_dqn(cfg):
    """Raise UsageError for settings DQN can't run with."""
    _positive(cfg, "total_steps", "num_envs", "chunk", "batch_size", "replay_size", "n_step", "target_every",
              "learning_rate", "final_learning_rate", "adam_epsilon", "max_grad_norm", "huber_delta",
              "updates_per_step", "epsilon_fraction")
    _fractions(cfg, "gamma", "target_tau", "acting_tau", "epsilon_start", "epsilon_end", "advantage_learning", "target_epsilon")
    if cfg.learning_starts < 0:
        raise UsageError(f"--learning-starts must be 0 or more, not {cfg.learning_starts}.")
    updates = cfg.updates_per_step * cfg.num_envs * cfg.chunk
    if not 1 <= updates < 1e9 or abs(updates - round(updates)) > 1e-6:
        near = max(1, round(min(updates, 1e9))) / (cfg.num_envs * cfg.chunk)
        raise UsageError(
            f"--updates-per-step x --num-envs x --chunk must be a whole number of updates, not "
            f"{updates:g}; change one of them (for example --updates-per-step={near:.10g}).")


def check_far(cfg, num_envs):
    """Raise UsageError for actors that don't go together with `num_envs` environments."""
    if cfg.actors < 0 or cfg.broadcast_every < 1:
        raise UsageError("--actors must be 0 or more and --broadcast-every at least 1.")
    if cfg.actors and num_envs % cfg.actors:
        raise UsageError(f"--num-envs={num_envs} can't be shared evenly by {cfg.actors} actors; choose a multiple, such as "
                         f"--num-envs={cfg.actors * max(1, round(num_envs / cfg.actors))}.")
    if cfg.ray_address and not cfg.actors:
        raise UsageError("--ray-address is where actors run; give their number by --actors too.")
    if cfg.actors and cfg.strategy == "multiworker":
        raise UsageError("--actors deliver to one learner; leave them out, or choose --strategy=mirrored.")


def resumed_far(run_dir, far, given, flags):
    """The FarConfig with which a run goes on that was started with `far`, where `flags` names those of `given` to take.

    Raises UsageError for what can't change on the way.
    """
    taken = {flag.replace("-", "_") for flag in flags} & {field.name for field in dataclasses.fields(FarConfig)}
    chosen = dataclasses.replace(far, **{key: getattr(given, key) for key in taken})
    for flag, had, has in (("actors", far.actors, chosen.actors),
                           ("strategy=multiworker", far.strategy == "multiworker", chosen.strategy == "multiworker")):
        if bool(had) != bool(has):
            raise UsageError(f"{run_dir} was started {'with' if had else 'without'} --{flag} and goes on so; leave that flag out, or start "
                             "a new run.")
    return chosen


def cluster_place(environ=os.environ):
    """What TF_CONFIG says of a cluster of learners: (number of this one, addresses of all). Raises UsageError if it does not."""
    try:
        said = json.loads(environ["TF_CONFIG"])
        addresses, index, kind = said["cluster"]["worker"], said["task"]["index"], said["task"]["type"]
        if kind == "worker" and isinstance(index, int) and 0 <= index < len(addresses) and set(said["cluster"]) == {"worker"}:
            return index, addresses
    except (KeyError, TypeError, ValueError):
        pass
    example = dict(cluster=dict(worker=["host0:2222", "host1:2222"]), task=dict(type="worker", index=0))
    raise UsageError("--strategy=multiworker needs the environment variable TF_CONFIG to name all learners and this one, such as "
                     f"TF_CONFIG='{json.dumps(example)}'.")


def check_ppo(cfg):
    """Raise UsageError for settings PPO can't run with."""
    _positive(cfg, "total_steps", "num_envs", "rollout_steps", "update_epochs", "batch_size", "learning_rate", "adam_epsilon",
              "max_grad_norm")
    _fractions(cfg, "gamma", "gae_lambda", "clip", "final_clip")
    for field in ("value_weight", "entropy_weight", "final_learning_rate"):
        if not getattr(cfg, field) >= 0:
            raise UsageError(f"--{field.replace('_', '-')} must be 0 or more, not {getattr(cfg, field)}.")
    if cfg.value_clip is not None:
        _positive(cfg, "value_clip")
    size = cfg.num_envs * cfg.rollout_steps
    if size % cfg.batch_size:
        near = max(n for n in range(1, min(cfg.batch_size, size) + 1) if size % n == 0)
        raise UsageError(f"--batch-size={cfg.batch_size} does not divide --num-envs x --rollout-steps, {size} steps; choose for "
                         f"example {near}.")


def check_text_network(cfg):
    """Raise UsageError for an encoder and head that can't be built."""
    _positive(cfg, "layers", "heads", "width", "pruning_end")
    if cfg.encoder is None:
        _divided(cfg)
    if not 0 <= cfg.pruning_amount < 1:
        raise UsageError(f"--pruning-amount must be at least 0 and less than 1, not {cfg.pruning_amount}.")


def check_text(cfg):
    """Raise UsageError for settings Q-learning on texts can't run with."""
    _positive(cfg, "updates_per_batch", "batch_size", "replay_size", "learning_rate", "final_learning_rate", "max_grad_norm",
              "huber_delta", "temperature")
    _fractions(cfg, "gamma", "target_tau", "expectile", "keep_best", "advantage_learning", "plausible")
    for field in ("conservative", "cloning", "advantage_weighting"):
        if getattr(cfg, field) < 0:
            raise UsageError(f"--{field.replace('_', '-')} must be 0 or more, not {getattr(cfg, field)}.")
    if cfg.advantage_learning and cfg.method != "q":
        raise UsageError("--advantage-learning changes the targets of Q-learning; it needs --method=q.")
    if cfg.plausible and not (cfg.method == "q" and cfg.cloning):
        raise UsageError("--plausible asks the cloned policy what Q-learning may choose; it needs --method=q and --cloning, or give "
                         "--plausible=0.")
    if cfg.plausible and cfg.advantage_learning:
        raise UsageError("--advantage-learning measures gaps to the best of all actions, plausible or not; leave out one of the two "
                         "(--plausible=0 does).")
    if cfg.advantage_weighting and not (cfg.method == "implicit" and cfg.cloning):
        raise UsageError("--advantage-weighting weighs what is cloned by implicit values; it needs --method=implicit and --cloning.")
    if cfg.beta is not None and not cfg.cloning and cfg.method not in ("clone", "filtered"):
        raise UsageError("--beta steers a cloned policy, which is only learned with --cloning greater than 0; or give --beta=None.")


def _divided(cfg):
    if cfg.width % cfg.heads:
        raise UsageError(f"--width={cfg.width} can't be divided by --heads={cfg.heads}; choose a width that is a "
                         f"multiple of the heads, such as {cfg.heads * max(1, round(cfg.width / cfg.heads))}.")


def _fractions(cfg, *fields):
    for field in fields:
        if not 0 <= getattr(cfg, field) <= 1:
            raise UsageError(f"--{field.replace('_', '-')} must lie between 0 and 1, not {getattr(cfg, field)}.")


def _positive(cfg, *fields):
    for field in fields:
        if not getattr(cfg, field) > 0:
            raise UsageError(f"--{field.replace('_', '-')} must be greater than 0, not {getattr(cfg, field)}.")
