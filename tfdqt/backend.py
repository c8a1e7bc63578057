"""The one door through which TensorFlow and Keras come in: late, quietly, and with few threads.

`tf` and `keras` load when something of them is first used, so that every module can import them at
its top and a command line can still be read at once.
"""

import contextlib
import contextvars
import functools
import importlib
import os
import sys
import tempfile
import types
import warnings

from tfdqt.errors import UsageError


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


class LazyModule(types.ModuleType):
    """A module that is imported, quietly, when an attribute of it is first asked for.

    >>> tf = LazyModule("tensorflow")  # nothing is loaded yet
    >>> tf.constant(1)                 # now it is
    """

    def __init__(self, name, before=()):
        """before: modules that must be imported first."""
        super().__init__(name)
        self._before = before

    def __getattr__(self, attribute):
        if attribute.startswith("__"):  # what Python itself asks of a module, such as doctest
            raise AttributeError(attribute)
        with contextlib.nullcontext() if self.__name__ in sys.modules else quiet():
            for name in (*self._before, self.__name__):
                module = importlib.import_module(name)
        value = getattr(module, attribute)
        setattr(self, attribute, value)  # found at once the next time
        return value


# Keras 3 goes first: TensorFlow takes the settings of tfdqt/__init__.py while Keras loads it.
keras = LazyModule("keras")
tf = LazyModule("tensorflow", before=("keras",))


def traced(function=None, **options):
    """`tf.function` without AutoGraph: a decorator, with and without options of `tf.function`.

    AutoGraph rewrites the source of all that is called, which takes a fourth of a short run's time.
    Without it a loop or branch on a tensor must be a `tf.while_loop` or `tf.cond`; a `for` or an
    `if` on one raises TypeError.
    """
    if function is None:
        return functools.partial(traced, **options)
    made = tf.function(function, autograph=False, **options)
    # It counts tracings by where a function is written, so the fifth network of a program, of which
    # each is traced once, would be told of as if one were traced again and again.
    made._omit_frequent_tracing_warning = True
    return made


_QUICK = contextvars.ContextVar("quick", default=False)


@contextlib.contextmanager
def quick_gradients(on=True):
    """In the block layers of ours may have gradients that only what XLA compiles can work out.

    on: False: in this block, maybe inside of another, they have TensorFlow's own.
    """
    token = _QUICK.set(on)
    try:
        yield
    finally:
        _QUICK.reset(token)


def are_gradients_quick():
    """Whether this is called in a block of `quick_gradients`."""
    return _QUICK.get()


def optimization_barrier(x):
    """A tensor as it is, past which XLA moves nothing. Only in what XLA compiles."""
    from tensorflow.compiler.tf2xla.python import xla

    return xla.optimization_barrier(x)[0]


def set_threads(intra_op, inter_op=2):
    """Threads inside one operation, and operations at a time. Only before TensorFlow's first one.

    Raises RuntimeError when TensorFlow has already started with other numbers.
    """
    tf.config.threading.set_intra_op_parallelism_threads(intra_op)
    tf.config.threading.set_inter_op_parallelism_threads(inter_op)
