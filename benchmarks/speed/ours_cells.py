"""An update of tfdqt's network on cells, to be measured. `cells.py` starts it."""

import json
import sys
import time

import numpy as np
from gymnasium import spaces
from meter import make_meter, versions
from ours import make_matmul_rate

from tfdqt.backend import keras, set_threads, tf
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.flat import flatten, flatten_q, learn_in_parts, repeat_update, step_adam
from tfdqt.games.spaces import describe

VALUES = 7  # of a cell, as Sokoban has
ACTIONS = 4
PER_CALL = 8  # updates


def make_net(settings):
    """The network, flat, for grids [side, side] of a category each."""
    side = settings["side"]
    grid = spaces.MultiDiscrete(np.full((side, side), VALUES), dtype=np.uint8)
    info = describe(grid, spaces.Discrete(ACTIONS), "grid")
    cfg = NetworkConfig(
        tokens="cells",
        context=1,
        layers=settings["blocks"],
        loops=settings["loops"],
        width=settings["width"],
        heads=settings["heads"],
        prev_action=False,
    )
    from tfdqt.games.networks import build_q  # loads Keras

    return flatten_q(build_q(info, cfg), info)


def make_update(net):
    """Compile `update(state, obs [K, B, F], targets [K, B, A]) -> (state, mean loss)`."""
    cfg = DQNConfig()

    def learned(weights, obs, target):
        inputs = dict(obs=obs[:, None], first=tf.ones([obs.shape[0], 1], tf.int32))
        with tf.GradientTape() as tape:
            trained, fixed = net.unflatten(weights)
            tape.watch(trained)
            q = net.apply((trained, fixed), inputs)[:, 0, :, 0]
            loss = tf.reduce_mean((q - target) ** 2)
        gradient = flatten(net, tape.gradient(loss, trained))
        return dict(loss=loss, gradient=gradient, count=tf.cast(obs.shape[0], tf.float32))

    def one(state, obs, target):
        weights, moments, count = state
        found = learn_in_parts(
            net, lambda part: learned(weights, *part), (obs, target), obs.shape[0], ("loss",)
        )
        weights, moments, _ = step_adam(weights, moments, found["gradient"], count, 0.0, cfg)
        return (weights, moments, count + 1), found

    @tf.function(jit_compile=True)
    def update(state, obs, targets):
        return repeat_update(
            lambda state, i: one(state, obs[i], targets[i]), state, PER_CALL, ("loss",)
        )

    return update


def serve(settings):
    """Update on random grids; they and the first weights go to settings["exchange"]."""
    set_threads(1, 1)
    tf.config.set_visible_devices([], "GPU")
    keras.utils.set_random_seed(0)
    net = make_net(settings)
    rng = np.random.default_rng(0)
    shape = (PER_CALL, settings["batch"])
    obs = rng.integers(0, VALUES, (*shape, settings["side"] ** 2)).astype(np.uint8)
    targets = rng.normal(size=(*shape, ACTIONS)).astype(np.float32)
    weights = {
        f"{layer.name}/{variable.name}": variable.numpy()
        for layer in net.model._flatten_layers()
        for variable in layer._trainable_variables
    }
    np.savez(settings["exchange"], obs=obs, targets=targets, **weights)
    obs = tf.constant(obs)
    targets = tf.constant(targets)
    update = make_update(net)
    zeros = tf.zeros_like(net.start)
    state = (net.start, (zeros, zeros), tf.constant(1, tf.int64))
    losses = []
    for _ in range(3):
        state, scalars = update(state, obs, targets)
        losses.append(float(scalars["loss"]))
    rate = make_matmul_rate(clock=time.process_time)
    tick = make_meter(dict(versions("tensorflow", "keras"), losses=losses), rate)
    done = 0
    while tick(done, done):
        state, scalars = update(state, obs, targets)
        float(scalars["loss"])
        done += PER_CALL


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
