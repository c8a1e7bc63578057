"""tfdqt's own algorithms, to be measured. `benchmark.py` and `../scale/scale.py` start it."""

import functools
import json
import sys
import time

import numpy as np
from meter import make_meter, versions

import tfdqt
from tfdqt.backend import keras, set_threads, tf
from tfdqt.games import dqn
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.flat import flatten_q
from tfdqt.replay import Steps
from tfdqt.scale.ray_pool import make_pool


def make_matmul_rate(size=1024, repeats=10, clock=time.perf_counter):
    """`rate()`: floating point operations per second of the fastest of some float32 products."""
    a = tf.random.stateless_uniform([size, size], [0, 0])

    def rate():
        best = float("inf")
        for _ in range(repeats):
            start = clock()
            tf.linalg.matmul(a, a)
            best = min(best, clock() - start)
        return 2 * size**3 / best

    return rate


def serve(settings):
    """Measure our side as the driver asks for it."""
    set_threads(settings["threads"])
    tf.config.set_visible_devices([], "GPU")
    hidden = tuple(settings["network"]["hidden"])
    network = NetworkConfig(**{**settings["network"], "hidden": hidden})
    cfg = ALGORITHMS[settings["algorithm"]].settings(**settings["cfg"])
    ready = versions("tensorflow", "keras", "numpy", "gymnasium", "ale-py")
    ready.update(tfdqt=tfdqt.__version__, threads=settings["threads"])
    measure = serve_updates if settings["unit"] == "updates" else serve_training
    measure(settings, network, cfg, ready, make_matmul_rate())


def serve_training(settings, network, cfg, ready, rate):
    """Train; the clock runs from one call of the training's `log` to another."""
    algorithm = ALGORITHMS[settings["algorithm"]]
    tick = make_meter(ready, rate)
    going = [True]

    def log(metrics):
        if metrics.step >= settings["warm_up"]:
            going[0] = tick(metrics.step, metrics.updates)

    env_fn = functools.partial(make_env, settings["env"])
    network_fn = functools.partial(algorithm.build, cfg=network)
    train = algorithm.train
    players = dict(workers=settings["workers"])
    if settings.get("actors"):
        train = algorithm.train_with_actors
        players = dict(actors=settings["actors"], make_pool=make_pool)
    train(env_fn, network_fn, cfg, log=log, should_stop=lambda: not going[0], **players)


def random_steps(info, cfg, calls, per_call, length):
    """Random batches as a replay buffer would give them: Steps [calls, updates, B, T, ...]."""
    rng = np.random.default_rng(0)
    shape = (calls, per_call, cfg.batch_size, length)
    return Steps(
        obs=rng.integers(0, 256, (*shape, *info.obs_shape), np.uint8),
        action=rng.integers(0, info.num_actions, shape, np.int32),
        reward=rng.integers(0, 2, shape).astype(np.float32),
        discount=(rng.random(shape) > 0.02).astype(np.float32),
        first=rng.random(shape) < 0.05,
    )


def serve_updates(settings, network, cfg, ready, rate, calls=4):
    """Update on random batches.

    They and the first weights go to settings["exchange"], for the other side.
    """
    from tfdqt.games.networks import build_q  # loads Keras

    keras.utils.set_random_seed(0)
    info = info_of(functools.partial(make_env, settings["env"]))
    net = flatten_q(build_q(info, network), info)
    state = dqn.first_state(net)
    update = dqn.make_update(net, cfg)
    per_call = settings["updates_per_call"]
    steps = random_steps(info, cfg, calls, per_call, network.context + cfg.n_step)
    weights = {
        f"{layer.name}/{variable.name}": variable.numpy()
        for layer in net.model.layers
        for variable in layer.weights
    }
    np.savez(settings["exchange"], **steps._asdict(), **weights)

    batches = [
        tf.nest.map_structure(lambda field: tf.constant(field[call]), steps)
        for call in range(calls)
    ]
    losses = []
    for batch in batches:
        state, diagnostics = update(state, batch)
        losses.append(float(diagnostics["loss"]))
    tick = make_meter(dict(ready, losses=losses, updates_per_call=per_call), rate)
    done = 0
    while tick(done, done):
        state, diagnostics = update(state, batches[done // per_call % calls])
        float(diagnostics["loss"])
        done += per_call


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
