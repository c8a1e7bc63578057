"""The one training loop of all algorithms, and the snapshot from which a run goes on.

An algorithm gives it one iteration: act, learn, and what there is to tell of it.
"""

from __future__ import annotations

import contextlib
import math
from collections import namedtuple
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt.backend import keras, tf
from tfdqt.errors import DIVERGED, Diverged, EnvFailure, UsageError
from tfdqt.games.vec_envs import VecEnv, make_vec_env
from tfdqt.games.window import Window, forget_history, make_window, push
from tfdqt.policy import Held, hold_nothing
from tfdqt.settings import check_seed_size, check_whole


class Progress(NamedTuple):
    """Where a run stands, besides the learner's state."""

    step: int = 0  # environment steps
    games: int = 0  # finished
    recent: tuple = ()  # returns of the last 100 games

    def after(self, steps, games):
        """The progress after `steps` more steps in which `games`, (return, length) each, ended."""
        recent = self.recent + tuple(ret for ret, _ in games)
        return Progress(self.step + steps, self.games + len(games), recent[-100:])

    def mean_return(self):
        """Mean return of the last 100 games; NaN before the first."""
        return float(np.mean(self.recent or [np.nan]))

    def metrics(self):
        """The first columns of every log: step, games and mean_return."""
        return self.step, self.games, self.mean_return()


def ended_games(out):
    """The (return, length) of each game that ended with the latest step of a VecEnv's `out`."""
    return [(float(out["ret"][i]), int(out["length"][i])) for i in np.flatnonzero(out["ended"])]


class Evaluation(NamedTuple):
    """How a run is evaluated while it trains."""

    every: int  # environment steps between two; there is always one at the end
    play: Callable  # (net, state, progress) -> (mean return, whether the run is to stop now)
    # play gives None if it broke off because the run is to stop.

    def is_due(self, before, now, total_steps):
        """Whether one is to follow the iteration from step `before` to step `now`."""
        return now // self.every > before // self.every or now >= total_steps


def check_start(network_fn, seed, workers):
    """Raise UsageError for what a training function can't start with."""
    check_whole(0, seed=seed, workers=workers)
    check_seed_size("seed", seed)
    if isinstance(network_fn, keras.Model):
        raise UsageError(
            "Give a function EnvInfo -> keras.Model, such as lambda info: model, not the model."
        )


def check_learns(progress, first, total_steps, why):
    """Raise UsageError if a run ends before its first update, which comes behind step `first`.

    why: what that depends on, as flags.
    """
    if progress.step < total_steps <= first:
        raise UsageError(
            f"--total-steps={total_steps} ends the run before its first update, which comes behind "
            f"step {first} ({why}); give --total-steps={first + 1} or more."
        )


def is_finite(metrics):
    """Whether learning goes well by an iteration's metrics; before the first update all are NaN."""
    return not metrics.updates or math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)


def train_loop(
    iterate: Callable,
    snapshot: Callable,
    state,
    progress,
    total_steps,
    *,
    log=None,
    save=None,
    should_stop=None,
    any_of=bool,
    evaluation=None,
    net=None,
    saved=None,
):
    """Iterate until `total_steps` environment steps are done or the run is to stop.

    Args:
      iterate: (state, progress) -> (state, progress, metrics to log, or None if nothing happened).
      snapshot: (state, progress, envs=True) -> tree for a checkpoint; envs=False leaves the
        environments' states out.
      state, progress: to begin with.
      log: called as log(metrics), and as log(metrics, evaluation=mean return) behind an evaluation.
      save: called as save(step, make, last=...) after every iteration that did something, with
        last=True at the end; calls make() for what to keep, if it wants to keep it.
      should_stop: asked after every iteration.
      any_of: whether something is true in any of the processes that learn together.
      evaluation: an Evaluation, or None. net: what it is to play with.
      saved: the snapshot that the run goes on from. An evaluation that was due at its step is made
        first.

    Returns (state, progress). If an environment fails, what was learned before this iteration is
    saved, without the environments' states, and its EnvFailure raised; as is Diverged if what is
    learned is not finite. What was learned is also saved before whatever an evaluation raises.
    """

    def keep(last, envs=True, unevaluated=None):
        """Save, with the metrics of an evaluation that may still be missing."""

        def make():
            tree = snapshot(state, progress, envs=envs)
            return tree if unevaluated is None else dict(tree, unevaluated=unevaluated._asdict())

        if save:
            save(progress.step, make, last=last)

    def keep_all(last, unevaluated=None):
        try:
            keep(last, unevaluated=unevaluated)
        except EnvFailure:  # an environment's state can't be read
            keep(last, envs=False, unevaluated=unevaluated)
            raise

    def evaluate(metrics):
        """Play and log what came of it: -> whether the run is to stop."""
        try:
            outcome = evaluation.play(net, state, progress)
        except (Exception, SystemExit):  # whatever it is, what was learned is kept
            keep_all(last=True, unevaluated=metrics)
            raise
        if outcome is not None and log:
            log(metrics, evaluation=outcome[0])
        stop = any_of(outcome is None or outcome[1])
        if stop:
            keep_all(last=True, unevaluated=metrics)
        return stop

    if evaluation is not None:
        check_whole(1, every=evaluation.every)
    if saved is not None and "unevaluated" in saved:
        metrics = namedtuple("Metrics", saved["unevaluated"])(**saved["unevaluated"])
        if evaluation is None and log:
            log(metrics)
        if evaluation is not None and evaluate(metrics):
            return state, progress
    while progress.step < total_steps:
        try:
            new_state, new_progress, metrics = iterate(state, progress)
        except EnvFailure:
            keep(last=True, envs=False)
            raise
        learned = new_state is not state and metrics is not None
        if learned and not is_finite(metrics):
            keep(last=True, envs=False)
            raise Diverged(
                f"{DIVERGED} behind step {progress.step} (loss {metrics.loss:g}, grad_norm "
                f"{metrics.grad_norm:g}); start again with a lower --learning-rate, with "
                "--reward-transform=sign, or with rewards that a wrapper scales."
            )
        due = (
            evaluation is not None
            and metrics is not None
            and evaluation.is_due(progress.step, new_progress.step, total_steps)
        )
        state = new_state
        progress = new_progress
        if log and metrics is not None and not due:
            log(metrics)
        stop = any_of(should_stop is not None and should_stop())
        if metrics is not None or stop:
            last = stop or progress.step >= total_steps
            keep_all(last, unevaluated=metrics if due else None)
        if stop or (due and evaluate(metrics)):
            break
    return state, progress


# -------------------------------------------------------------------------------------------------
# Environments that are stepped by the run itself


class Stepper(NamedTuple):
    """Environments in lockstep, and what acting in them needs to be gone on with."""

    vec: VecEnv
    window: Window
    rng: np.random.Generator  # of the actions
    held: Held  # which of them go on


def make_stepper(
    env_fn, info, context, num_envs, *, seed, workers=0, life_loss_ends=False, rng=None
):
    """A Stepper of environments at their first step; the arguments as in `make_vec_env`.

    rng: of the actions, by default one that grows from `seed`.
    """
    vec = make_vec_env(env_fn, info, num_envs, seed, workers=workers, life_loss_ends=life_loss_ends)
    window = make_window(info, num_envs, context)
    push(window, vec.out["obs"], vec.out["first"], -1)
    rng = np.random.default_rng([seed, 1]) if rng is None else rng
    return Stepper(vec, window, rng, hold_nothing(num_envs))


@contextlib.contextmanager
def stepping(env_fn, info, context, cfg, *, seed, workers, saved=None):
    """A Stepper for the block, as it was in the snapshot `saved` if there is one.

    cfg: has num_envs and life_loss_ends.
    """
    stepper = make_stepper(
        env_fn,
        info,
        context,
        cfg.num_envs,
        seed=seed,
        workers=workers,
        life_loss_ends=cfg.life_loss_ends,
    )
    try:
        if saved is not None:
            restore_stepper(saved, stepper)
        yield stepper
    finally:
        stepper.vec.close()


# -------------------------------------------------------------------------------------------------
# Snapshots: trees of dicts and lists with arrays and plain values at their leaves


def learner_snapshot(state, progress, **more):
    """What of a run is its learner's, with `more`."""
    learner = [np.asarray(tensor) for tensor in tf.nest.flatten(state)]
    return dict(learner=learner, progress=progress._asdict(), **more)


def run_snapshot(state, progress, stepper, *, envs=True, **more):
    """All that a run needs to go on. envs=False leaves the environments' states out."""
    states = stepper.vec.states() if envs else [None] * len(stepper.vec.out["ended"])
    arrays = dict(window=_copied(stepper.window), held=_copied(stepper.held))
    rng = stepper.rng.bit_generator.state
    return learner_snapshot(state, progress, envs=states, rng=rng, **arrays, **more)


def _copied(arrays):
    return {name: array.copy() for name, array in arrays._asdict().items()}


def _put_back(saved, arrays):
    for name, array in saved.items():
        getattr(arrays, name)[...] = array


def restore_state(saved, state):
    """The learner's state from a snapshot, in the structure of `state`.

    The last fields, which one of an older version lacks, stay as they are in `state`. Raises
    UsageError if it is one of other sizes.
    """
    tensors = tf.nest.flatten(state)
    arrays = [*saved["learner"], *tensors[len(saved["learner"]) :]]
    if [tensor.shape for tensor in tensors] != [array.shape for array in arrays]:
        raise UsageError(
            "The checkpoint holds a network of other sizes; resume with the settings that the run "
            "was started with."
        )
    return tf.nest.pack_sequence_as(state, [tf.constant(array) for array in arrays])


def restore_progress(saved):
    """The Progress of a snapshot, or of a new run if there is none."""
    if saved is None:
        return Progress()
    return Progress(**{**saved["progress"], "recent": tuple(saved["progress"]["recent"])})


def restore_stepper(saved, stepper):
    """Put environments, window, generator and held actions back as a snapshot has them."""
    vec, window, rng, held = stepper
    for kept, arrays in ((saved["window"], window), (saved.get("held", {}), held)):
        if any(getattr(arrays, name).shape != np.shape(array) for name, array in kept.items()):
            raise UsageError(
                "The checkpoint is of another number of environments, or another context; resume "
                "with the settings that the run was started with."
            )
    went_on = vec.restore(saved["envs"])
    _put_back(saved["window"], window)
    for row in range(len(went_on)):
        if not went_on[row]:
            forget_history(window, row, vec.out["obs"][row])
    rng.bit_generator.state = saved["rng"]
    _put_back(saved.get("held", {}), held)  # since 0.2
