"""The scale on which values are learned, so that rewards of any size can be.

A network with a scale gives values as they are: its last step is `stretch`. Only losses are taken
of what `shrink` makes of values and targets. Both take numbers, tensors and arrays; what is whole
is taken as float32.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

ValueScale = Literal["linear", "sqrt", "log"]


class Scale(NamedTuple):
    """A rising function and its inverse."""

    shrink: Callable  # value -> what is learned
    stretch: Callable  # what is learned -> value


def same(x):
    """x."""
    return x


def signed_root(x):
    """sign(x) (sqrt(|x| + 1) - 1): 1 becomes 0.41, 100 becomes 9.

    Of Pohlen et al. (2018), without their linear term; written so that small numbers keep their
    digits.
    """
    x = _floats(x)
    return x / ((abs(x) + 1) ** 0.5 + 1)


def signed_square(x):
    """What `signed_root` made this x: sign(x) ((|x| + 1)^2 - 1)."""
    x = _floats(x)
    return x * (abs(x) + 2)


def signed_log(x):
    """sign(x) log(1 + |x|) (Hafner et al., 2023): 1 becomes 0.69, 100 becomes 4.6."""
    from tfdqt.backend import keras  # loads TensorFlow

    x = _floats(x)
    side = _side(x)
    return side * keras.ops.log1p(side * x)


def signed_exp(x):
    """What `signed_log` made this x: sign(x) (exp(|x|) - 1)."""
    from tfdqt.backend import keras  # loads TensorFlow

    x = _floats(x)
    side = _side(x)
    return side * keras.ops.expm1(side * x)


def _floats(x):
    """x if it is of floats, else as float32: of whole numbers a root would be taken in their type,
    which can't hold what is worked out on the way."""
    if isinstance(x, float) or "float" in str(getattr(x, "dtype", "")):
        return x
    if isinstance(x, (int, list, tuple, np.ndarray, np.generic)):
        return np.asarray(x, np.float32)
    from tfdqt.backend import tf  # x is a tensor

    return tf.cast(x, tf.float32)


def _side(x):
    """1 or -1. Not the sign, nor |x|: the gradient of either at 0 is 0, and a value that starts
    there would stay."""
    from tfdqt.backend import keras  # loads TensorFlow

    return keras.ops.where(x >= 0, keras.ops.ones_like(x), -keras.ops.ones_like(x))


LINEAR = Scale(same, same)
SCALES = {
    "linear": LINEAR,
    "sqrt": Scale(signed_root, signed_square),
    "log": Scale(signed_log, signed_exp),
}
