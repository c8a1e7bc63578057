"""What every algorithm that acts keeps beside its learner: the latest steps, how far it is, and a snapshot of all of it."""

from typing import NamedTuple

import numpy as np

from tfdqt.backend import tf
from tfdqt.config import UsageError
from tfdqt.envs import EnvFailure


class Window(NamedTuple):
    """The latest steps of N environments, as the network is shown them; numpy, changed in place."""

    obs: np.ndarray  # [N, C, ...]
    first: np.ndarray  # [N, C] int32
    prev_action: np.ndarray  # [N, C] int32


def make_window(info, num_envs, context):
    """An empty window: every place starts an episode of its own, so nothing looks back at it."""
    return Window(np.zeros((num_envs, context, *info.obs_shape), info.obs_dtype), np.ones((num_envs, context), np.int32),
                  np.full((num_envs, context), -1, np.int32))


def push(window, obs, first, action):
    """Move the window on by one step: obs [N, ...], first [N], action before it [N]."""
    for array in window:
        array[:, :-1] = array[:, 1:]
    window.obs[:, -1], window.first[:, -1] = obs, first
    window.prev_action[:, -1] = np.where(first, -1, action)


def shown(window):
    """The window as inputs of the network: the action before its first step is not shown, as in training."""
    before = window.prev_action.copy()
    before[:, 0] = -1
    return dict(obs=window.obs, first=window.first, prev_action=before)


class Progress(NamedTuple):
    """Where a run stands, beside the learner's state."""

    step: int = 0
    games: int = 0
    recent: tuple = ()  # returns of the last 100 games

    def after(self, steps, games):
        """The progress after `steps` more steps in which `games`, a list of (return, length), ended."""
        return Progress(self.step + steps, self.games + len(games), (self.recent + tuple(ret for ret, _ in games))[-100:])

    def mean_return(self):
        """Mean return of the last 100 games; NaN before the first."""
        return float(np.mean(self.recent or [np.nan]))


def ended_games(out):
    """The (return, length) of each game that ended with the latest step of a VecEnv's `out`."""
    return [(float(out["ret"][i]), int(out["length"][i])) for i in np.flatnonzero(out["ended"])]


def learned(state, progress, **more):
    """What of a run is its learner's: a tree for a checkpoint, with `more` beside it."""
    return dict(learner=[np.asarray(tensor) for tensor in tf.nest.flatten(state)], progress=progress._asdict(), **more)


def snapshot(state, vec, window, rng, progress, *, envs=True, **more):
    """All that a run needs to go on, as arrays and plain values in a tree of dicts and lists. envs=False leaves their states out."""
    states = vec.states() if envs else [None] * len(vec.out["ended"])
    return learned(state, progress, envs=states, window={name: array.copy() for name, array in window._asdict().items()},
                   rng=rng.bit_generator.state, **more)


def save_with(save, progress, make, *, last):
    """Hand `make` to `save`; if an environment's state can't be read, keep the rest and raise its EnvFailure."""
    try:
        save(progress.step, make, last=last)
    except EnvFailure:
        save(progress.step, lambda: make(envs=False), last=last)
        raise


def restore_state(saved, state):
    """The learner's state from a snapshot, in the structure of `state`. Raises UsageError if it is one of other sizes."""
    learner, known = saved["learner"], tf.nest.flatten(state)
    if len(learner) != len(known) or any(tensor.shape != array.shape for tensor, array in zip(known, learner)):
        raise UsageError("The checkpoint holds a network of other sizes; resume with the settings that the run was started with.")
    return tf.nest.pack_sequence_as(state, [tf.constant(array) for array in learner])


def restore_progress(saved):
    """The Progress of a snapshot."""
    return Progress(**{**saved["progress"], "recent": tuple(saved["progress"]["recent"])})


def restore_place(saved, vec, window, rng):
    """Put environments, window and rng back as a snapshot has them. Returns the Progress."""
    vec.restore(saved["envs"])
    for name, array in saved["window"].items():
        getattr(window, name)[...] = array
    for row, env in enumerate(saved["envs"]):
        if env is None:  # a fresh episode: the window must not show the old one
            for array, empty in zip(window, (0, 1, -1)):
                array[row] = empty
            window.obs[row, -1], window.first[row, -1] = vec.out["obs"][row], 1
    rng.bit_generator.state = saved["rng"]
    return restore_progress(saved)
