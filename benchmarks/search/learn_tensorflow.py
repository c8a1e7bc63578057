"""What `regress.py` learns with on a CPU: one network after another, with TensorFlow."""

import functools

import numpy as np
import tensorflow as tf
from regress import MAX_NORM, loss_of, rate_after

from tfdqt import losses
from tfdqt.backend import set_threads
from tfdqt.games.flat import draw_loops, flatten, flatten_model, repeat_update

PER_CALL = 50  # updates

set_threads(1, 1)


def learn(args, model, starts, runs, data, report):
    """Train networks: -> their weights [runs, W].

    starts: of each run, the weights in the order of the model's; runs: of each, the learning rate
    and the seed of its batches; report(updates done, errors).
    """
    net = flatten_model(model)
    update = _make_update(args, net, {key: tf.constant(each) for key, each in data.items()})
    fixed = [variable.value for variable in model.non_trainable_variables]
    learned = []
    for start, (rate, seed) in zip(starts, runs):
        weights = flatten(net, start, fixed)
        zeros = tf.zeros_like(weights)
        state = (weights, (zeros, zeros), tf.constant(0, tf.int64))
        errors = []
        for done in range(0, args.updates, PER_CALL):
            state, scalars = update(state, tf.constant(rate), tf.constant(seed, tf.int64))
            errors.append(float(scalars["loss"]))
            if (done // PER_CALL) % 20 == 19:
                report(done + PER_CALL, np.mean(errors[-20:]))
        learned.append(state[0].numpy())
    return np.stack(learned)


def _make_update(args, net, data):
    size = len(data["q"])

    def one(state, rate, seed):
        weights, moments, count = state
        chosen = tf.random.stateless_uniform([args.batch], [seed, count], 0, size, tf.int32)
        batch = {key: tf.gather(each, chosen) for key, each in data.items()}
        trained, fixed = net.unflatten(draw_loops(net, weights, count))
        with tf.GradientTape() as tape:
            tape.watch(trained)
            q = _q(net, (trained, fixed), batch["obs"])
            loss = tf.reduce_mean(loss_of(q, batch["q"], batch["legal"]))
        gradient = flatten(net, tape.gradient(loss, trained))
        gradient *= tf.minimum(1.0, MAX_NORM / tf.norm(gradient))
        rate *= rate_after(tf.cast(count, tf.float32), args.updates)
        weights, moments = losses.adam(
            weights, gradient, moments, count + 1, rate=rate, epsilon=1e-6
        )
        return (weights, moments, count + 1), dict(loss=loss)

    @tf.function(jit_compile=True)
    def update(state, rate, seed):
        return repeat_update(lambda state, i: one(state, rate, seed), state, PER_CALL, ("loss",))

    return update


def _q(net, weights, obs):
    inputs = dict(obs=obs[:, None], first=tf.ones([obs.shape[0], 1], tf.int32))
    return net.apply(weights, inputs)[:, 0, :, 0]


def make_values(model):
    """Compile `values(weights [W], obs [n, F]) -> [n, A]` of the actions by a network."""
    return tf.function(functools.partial(_q, flatten_model(model)), jit_compile=True)
