"""The one training loop of all algorithms, and the snapshot from which a run goes on.

An algorithm gives it one iteration: act, learn, and what there is to tell of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.vec_envs import VecEnv, make_vec_env
from tfdqt.games.window import Window, forget_history, make_window, push


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
):
    """Iterate until `total_steps` environment steps are done or the run is to stop.

    Args:
      iterate: (state, progress) -> (state, progress, metrics to log, or None if nothing happened).
      snapshot: (state, progress, envs=True) -> tree for a checkpoint; envs=False leaves the
        environments' states out.
      state, progress: to begin with.
      log: called as log(metrics).
      save: called as save(step, make, last=...) after every iteration that did something, with
        last=True at the end; calls make() for what to keep, if it wants to keep it.
      should_stop: asked after every iteration.
      any_of: whether something is true in any of the processes that learn together.

    Returns (state, progress). If an environment fails, what was learned before this iteration is
    saved, without the environments' states, and its EnvFailure raised.
    """

    def keep(last, envs=True):
        if save:
            save(progress.step, lambda: snapshot(state, progress, envs=envs), last=last)

    while progress.step < total_steps:
        try:
            state, progress, metrics = iterate(state, progress)
        except EnvFailure:
            keep(last=True, envs=False)
            raise
        if log and metrics is not None:
            log(metrics)
        stop = any_of(should_stop is not None and should_stop())
        if metrics is not None or stop:
            try:
                keep(last=stop or progress.step >= total_steps)
            except EnvFailure:  # an environment's state can't be read
                keep(last=stop or progress.step >= total_steps, envs=False)
                raise
        if stop:
            break
    return state, progress


# -------------------------------------------------------------------------------------------------
# Environments that are stepped by the run itself


class Stepper(NamedTuple):
    """Environments in lockstep, and what acting in them needs to be gone on with."""

    vec: VecEnv
    window: Window
    rng: np.random.Generator  # of the actions


def make_stepper(
    env_fn, info, context, num_envs, *, seed, workers=0, life_loss_ends=False, rng=None
):
    """A Stepper of environments at their first step; the arguments as in `make_vec_env`.

    rng: of the actions, by default one that grows from `seed`.
    """
    vec = make_vec_env(env_fn, info, num_envs, seed, workers=workers, life_loss_ends=life_loss_ends)
    window = make_window(info, num_envs, context)
    push(window, vec.out["obs"], vec.out["first"], -1)
    return Stepper(vec, window, np.random.default_rng([seed, 1]) if rng is None else rng)


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
    window = {name: array.copy() for name, array in stepper.window._asdict().items()}
    rng = stepper.rng.bit_generator.state
    return learner_snapshot(state, progress, envs=states, window=window, rng=rng, **more)


def restore_state(saved, state):
    """The learner's state from a snapshot, in the structure of `state`.

    Raises UsageError if it is one of other sizes.
    """
    arrays = saved["learner"]
    tensors = tf.nest.flatten(state)
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
    """Put environments, window and generator back as a snapshot has them."""
    vec, window, rng = stepper
    vec.restore(saved["envs"])
    for name, array in saved["window"].items():
        getattr(window, name)[...] = array
    for row, env in enumerate(saved["envs"]):
        if env is None:  # a fresh episode
            forget_history(window, row, vec.out["obs"][row])
    rng.bit_generator.state = saved["rng"]
