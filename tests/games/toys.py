"""What tests of games share: small networks and windows of steps."""

import functools
from unittest import mock

import numpy as np

from tfdqt import backend
from tfdqt.backend import keras, tf
from tfdqt.games import networks
from tfdqt.games.config import NetworkConfig
from tfdqt.games.flat import flatten_q
from tfdqt.games.spaces import EnvInfo

# -------------------------------------------------------------------------------------------------
# Networks

BOX = EnvInfo("Box", (3,), "float32", (), 2)
RAM = EnvInfo("Ram", (6,), "uint8", (), 4)
CELLS = EnvInfo("Cells", (1,), "int32", (7,), 3)
NUMBER = EnvInfo("Number", (1,), "float32", (), 2)
PAIR = EnvInfo("Pair", (2,), "int32", (3, 5), 3)
SMALL = dict(context=4, layers=1, heads=2, width=8, hidden=(16, 8))


def build(info, seed=0, **settings):
    """A network with large random weights: -> (keras.Model, NetworkConfig).

    At the start they are so small that little depends on anything.
    """
    cfg = NetworkConfig(**{**SMALL, **settings})
    model = networks.build_q(info, cfg)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * 0.5)
    return model, cfg


@functools.cache
def shared(info, settings):
    """One that no test changes; settings as a tuple of pairs."""
    return build(info, **dict(settings))


def linear_net(context, slopes):
    """Q(s, a) = slopes[a] * s at every step, whatever came before."""
    inputs = dict(
        obs=keras.Input((context, 1), name="obs"),
        first=keras.Input((context,), dtype="int32", name="first"),
    )
    start = keras.initializers.Constant([slopes])
    q = keras.layers.Dense(2, use_bias=False, kernel_initializer=start)(inputs["obs"])
    return flatten_q(keras.Model(inputs, keras.layers.Reshape((context, 2, 1))(q)), NUMBER)


def without_xla():
    """Within the block nothing is compiled by XLA, which takes longer than a few updates do."""
    function = tf.function

    def plain(*args, jit_compile=None, **more):
        return function(*args, **more)

    return mock.patch.object(backend.tf, "function", plain)


# -------------------------------------------------------------------------------------------------
# Windows


def random_window(info, context, batch=5, seed=1):
    """A window of random steps in which no episode starts but at its front."""
    rng = np.random.default_rng(seed)
    shape = (batch, context, *info.obs_shape)
    if info.nvec:
        obs = rng.integers(info.nvec, size=shape).astype("int32")
    elif info.obs_dtype == "uint8":
        obs = rng.integers(256, size=shape).astype("uint8")
    else:
        obs = rng.normal(size=shape).astype("float32")
    first = np.zeros((batch, context), "int32")
    first[:, 0] = 1
    action = rng.integers(-1, info.num_actions, (batch, context)).astype("int32")
    return dict(obs=obs, first=first, prev_action=action)


def q_of(model, inputs):
    """What a Keras model says of a window, as numpy."""
    return model({name: tf.constant(inputs[name]) for name in model.input}).numpy()
