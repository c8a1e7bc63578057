"""tfdqt's own DQN and PPO, to be measured. `scripts/benchmark.py` starts it."""

import functools
import json
import sys
import time

import numpy as np
from meter import make_meter, versions

import tfdqt
from tfdqt.config import DQNConfig, NetworkConfig, PPOConfig


def make_matmul_rate(tf, size=1024, repeats=10):
    """`rate()`: floating point operations per second of the fastest of some float32 matrix products."""
    a = tf.random.stateless_uniform([size, size], [0, 0])

    def rate():
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            tf.linalg.matmul(a, a)
            best = min(best, time.perf_counter() - start)
        return 2 * size ** 3 / best

    return rate


def serve(settings):
    """Measure our side as the driver asks for it."""
    from tfdqt import backend

    backend.set_threads(settings["threads"])
    backend.tf.config.set_visible_devices([], "GPU")
    network = NetworkConfig(**{**settings["network"], "hidden": tuple(settings["network"]["hidden"])})
    cfg = (PPOConfig if settings["algorithm"] == "ppo" else DQNConfig)(**settings["cfg"])
    names = versions("tensorflow", "keras", "numpy", "gymnasium", "ale-py")
    ready = dict(names, tfdqt=tfdqt.__version__, threads=settings["threads"])
    rate = make_matmul_rate(backend.tf)
    (serve_updates if settings["unit"] == "updates" else serve_training)(settings, network, cfg, ready, rate)


def serve_training(settings, network, cfg, ready, rate):
    """Train by `tfdqt.dqn.dqn` or `tfdqt.ppo.ppo`; the clock runs from one call of its `log` to another."""
    from tfdqt import dqn, gpt, ppo
    from tfdqt.envs import make_env

    learn, build = (ppo.ppo, gpt.build_pi_v) if settings["algorithm"] == "ppo" else (dqn.dqn, gpt.build_q)
    tick, going = make_meter(ready, rate), [True]

    def log(metrics):
        if metrics.step >= settings["warm_up"]:
            going[0] = tick(metrics.step, metrics.updates)

    env_fn, q_fn = functools.partial(make_env, settings["env"]), functools.partial(build, cfg=network)
    play = dict(workers=settings["workers"])
    if count := settings.get("actors"):
        from tfdqt import actors, apex

        learn, play = apex.apex, dict(actors=count, make_pool=functools.partial(actors.make_game_pool, env_fn, q_fn, cfg, actors=count))
    learn(env_fn, q_fn, cfg, log=log, should_stop=lambda: not going[0], **play)


def serve_updates(settings, network, cfg, ready, rate, calls=4):
    """Update on random batches. They and the first weights go to settings["exchange"], for the other side."""
    from tfdqt import dqn, gpt
    from tfdqt.backend import keras, tf
    from tfdqt.envs import env_info, make_env
    from tfdqt.networks import flatten_model
    from tfdqt.replay import Steps

    keras.utils.set_random_seed(0)
    info = env_info(make_env(settings["env"]))
    networks = flatten_model(gpt.build_q(info, network))
    state, update = dqn.first_state(networks), dqn.make_update(networks, cfg)
    per_call = settings["updates_per_call"]
    rng, shape = np.random.default_rng(0), (calls, per_call, cfg.batch_size, network.context + cfg.n_step)
    steps = Steps(obs=rng.integers(0, 256, (*shape, *info.obs_shape), np.uint8),
                  action=rng.integers(0, info.num_actions, shape, np.int32),
                  reward=rng.integers(0, 2, shape).astype(np.float32),
                  discount=(rng.random(shape) > 0.02).astype(np.float32), first=rng.random(shape) < 0.05)
    weights = {f"{layer.name}/{variable.name}": variable.numpy() for layer in networks.model.layers for variable in layer.weights}
    np.savez(settings["exchange"], **steps._asdict(), **weights)

    batches = [tf.nest.map_structure(lambda field: tf.constant(field[call]), steps) for call in range(calls)]
    losses = []
    for batch in batches:
        state, diagnostics = update(state, batch)
        losses.append(float(diagnostics["loss"]))
    tick, done = make_meter(dict(ready, losses=losses, updates_per_call=per_call), rate), 0
    while tick(done, done):
        state, diagnostics = update(state, batches[done // per_call % calls])
        float(diagnostics["loss"])
        done += per_call


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
