"""tfdqt: Deep Q-learning with Transformers in TensorFlow and Keras."""

import os
import sys

__version__ = "0.1.0"

# TF-Agents and TF-MOT need Keras 2 behind `tf.keras`. TensorFlow reads this switch once, while it
# loads; `import keras` stays Keras 3 either way.
if "tensorflow" in sys.modules and os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    raise ImportError(
        "tfdqt: TensorFlow was imported without TF_USE_LEGACY_KERAS=1; import tfdqt before tensorflow and keras, "
        "or set TF_USE_LEGACY_KERAS=1 in the environment.")
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
