"""tfdqt: Deep Q-learning with Transformers in TensorFlow and Keras.

A trained run in three lines:

    policy = tfdqt.load_policy("runs/cartpole-0")
    policy.reset()
    action = policy(obs)
"""

import os
import sys

from tfdqt.version import __version__

__all__ = ["__version__", "load_policy", "load_writer"]

# TF-Agents and TF-MOT need Keras 2 behind `tf.keras`. TensorFlow reads this switch once, while it
# loads; `import keras` stays Keras 3 either way.
if "tensorflow" in sys.modules and os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    raise ImportError(
        "tfdqt: TensorFlow was imported without TF_USE_LEGACY_KERAS=1; import tfdqt before "
        "tensorflow and keras, or set TF_USE_LEGACY_KERAS=1 in the environment."
    )
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def load_policy(run_dir, checkpoint=None, **how):
    """The policy of a trained game run; see `tfdqt.games.trained.Policy`."""
    from tfdqt.games.trained import load_policy

    return load_policy(run_dir, checkpoint, **how)


def load_writer(run_dir, checkpoint=None, **how):
    """The writer of a trained text run; see `tfdqt.text.evaluate.Writer`."""
    from tfdqt.text.evaluate import load_writer

    return load_writer(run_dir, checkpoint, **how)
