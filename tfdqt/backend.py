"""The one door through which TensorFlow comes in: quietly, and with few threads."""

import contextlib
import os
import sys
import tempfile
import warnings

import tfdqt  # noqa: F401  (its environment variables must be set before TensorFlow loads)
from tfdqt.config import UsageError


@contextlib.contextmanager
def quiet():
    """Hold back what the block writes to standard error, C++ included, and what it warns of.

    It is shown if the block raises, unless that is a UsageError, which says itself what is wrong.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except UsageError:
            raise
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


with quiet():
    import keras  # noqa: F401  (Keras 3; it would load TensorFlow without the settings above if it came first)
    import tensorflow as tf


def set_threads(intra_op, inter_op=2):
    """Threads inside one operation, and operations at a time. Only before TensorFlow's first operation.

    Raises RuntimeError when TensorFlow has already started with other numbers.
    """
    tf.config.threading.set_intra_op_parallelism_threads(intra_op)
    tf.config.threading.set_inter_op_parallelism_threads(inter_op)
