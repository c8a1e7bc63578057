"""The table of algorithms. A new one is a module like `pqn`, an entry here, and a script.

Importing it loads no TensorFlow, so that `--help` is instant.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from tfdqt.errors import UsageError
from tfdqt.games import apex, dqn, ppo, pqn
from tfdqt.games.config import PUZZLES, EnvConfig, NetworkConfig, environment_kind
from tfdqt.games.flat import mean_q, policy_logits


def build_q(info, cfg):
    """See `networks.build_q`."""
    from tfdqt.games import networks  # loads Keras

    return networks.build_q(info, cfg)


def build_pi_v(info, cfg):
    """See `networks.build_pi_v`."""
    from tfdqt.games import networks  # loads Keras

    return networks.build_pi_v(info, cfg)


class Algorithm(NamedTuple):
    """What scripts, evaluation, export and plots need to know of an algorithm."""

    settings: type  # dataclass
    defaults: dict  # kind of environment -> dict(network=..., settings=...)
    check: Callable  # (NetworkConfig, settings) -> None; raises UsageError for what can't be
    train: (
        Callable  # (env_fn, network_fn, settings, *, seed, workers, log, save, saved, should_stop)
    )
    build: Callable  # (EnvInfo, NetworkConfig) -> keras.Model
    metrics: type  # NamedTuple, one line of the log
    state: type  # NamedTuple, what a checkpoint holds as "learner"
    acting: str  # the field of it with the weights that act
    scores: Callable = mean_q  # outputs of the network -> of what the best action has the greatest
    is_policy: bool = False  # whether the scores are logits of a policy that can be drawn from
    overlaps: bool = False  # whether it learns while the environments are stepped
    train_with_actors: Callable | None = None  # the same from actors elsewhere; None: it can't
    actor_metrics: type | None = None

    def acting_weights(self, saved):
        """The weights [W] that act, of a checkpoint's tree."""
        # The fields of a state before the weights that act are tensors, one array each.
        return saved["learner"][self.state._fields.index(self.acting)]


ALGORITHMS = {
    "dqn": Algorithm(
        settings=dqn.DQNConfig,
        defaults=dqn.DEFAULTS,
        check=dqn.check_dqn,
        train=dqn.dqn,
        build=build_q,
        metrics=dqn.DQNMetrics,
        state=dqn.DQNState,
        acting="acting",
        overlaps=True,
        train_with_actors=apex.apex,
        actor_metrics=apex.ApexMetrics,
    ),
    "ppo": Algorithm(
        settings=ppo.PPOConfig,
        defaults=ppo.DEFAULTS,
        check=ppo.check_ppo,
        train=ppo.ppo,
        build=build_pi_v,
        metrics=ppo.PPOMetrics,
        state=ppo.PPOState,
        acting="weights",
        scores=policy_logits,
        is_policy=True,
    ),
    "pqn": Algorithm(
        settings=pqn.PQNConfig,
        defaults=pqn.DEFAULTS,
        check=pqn.check_pqn,
        train=pqn.pqn,
        build=build_q,
        metrics=pqn.PQNMetrics,
        state=pqn.PQNState,
        acting="weights",
    ),
}


def settings_classes(name, plain):
    """The dataclasses in the config.json of a run, read as `plain`: for `read_settings`."""
    env = {"env": EnvConfig} if "env" in plain else {}  # since 0.2
    return {**env, "network": NetworkConfig, name: ALGORITHMS[name].settings}


def is_game_run(settings):
    """Whether a run's config.json is of an algorithm here, and not of a text run.

    Raises UsageError if it is of neither.
    """
    name = settings.get("algorithm")
    if name not in (*ALGORITHMS, "text"):
        raise UsageError(
            f"This run is one of {name}, which is not known here; it takes a run of "
            f"{', '.join(ALGORITHMS)} or text."
        )
    return name in ALGORITHMS


def default_settings(name, algorithm="dqn"):
    """The defaults for environment `name`: (NetworkConfig, the algorithm's settings)."""
    chosen = ALGORITHMS[algorithm]
    changed = chosen.defaults.get(environment_kind(name), chosen.defaults["other"])
    return NetworkConfig(**changed["network"]), chosen.settings(**changed["settings"])


def default_parallel(name, algorithm="dqn"):
    """Processes that step the environments, and TensorFlow's threads: dict workers, threads."""
    if ALGORITHMS[algorithm].overlaps:
        # It learns while they step, and keeps a core for that.
        cores = max(1, os.cpu_count() or 1)
        workers = max(1, cores - 1)
        if workers == 1 and environment_kind(name) == "atari":
            workers = 0  # a thread steps emulators as fast, without messages
        return dict(workers=workers, threads=cores)
    return lockstep_parallel(name)


def lockstep_parallel(name):
    """As `default_parallel`, where acting and stepping take turns.

    An emulator may take every core. CartPole and puzzles step faster than a message reaches a
    process, and CartPole's small network is quickest without handing over to a second thread.
    """
    cores = max(1, os.cpu_count() or 1)
    if name.startswith(PUZZLES):
        return dict(workers=0, threads=cores)
    if environment_kind(name) == "cartpole":
        return dict(workers=0, threads=1)
    return dict(workers=cores, threads=cores)
