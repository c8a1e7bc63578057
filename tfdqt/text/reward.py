"""What a text is worth: rewards found by their names, and held to give one finite number."""

import collections.abc
import inspect
import math
import numbers
import os
import traceback
from decimal import Decimal
from pathlib import Path
from typing import get_origin

import numpy as np

from tfdqt.errors import EnvFailure, UsageError, sentence_of
from tfdqt.modules import advice_on, import_here
from tfdqt.runs.processes import is_ctrl_c

LARGEST = 1e7  # either way; float32, which learning is done in, has no halves beyond 1.6e7
SHOWN = 40  # characters of a text that an error shows
LISTS = (list, collections.abc.Sequence)  # by which a function says that it takes many texts


class RewardFailure(EnvFailure, UsageError):
    """A reward raised, or gave something else than one finite number.

    Like an environment that fails: what was learned before is saved.
    """


class Reward:
    """A function text -> float that raises RewardFailure for whatever else `function` does.

    A function whose first argument is annotated as a list or Sequence is given many texts at a
    time and must give as many numbers.

    >>> Reward(len)("the sun")  # 7.0
    """

    def __init__(self, function, name=None):
        """name: what to call it in errors, by default the function's own."""
        self.function = function
        self.name = name or f"reward_fn {getattr(function, '__name__', function)}"
        self.takes_many = _takes_a_list(function)

    def __call__(self, text):
        return self.many([text])[0]

    def many(self, texts):
        """What each of some texts is worth: a list of floats."""
        if not self.takes_many:
            return [self._checked(self._call(text, text), text) for text in texts]
        values = self._call(list(texts), texts[0]) if texts else []
        try:
            # Neither a dict nor a set says which value is which text's.
            ordered = not isinstance(values, (collections.abc.Mapping, collections.abc.Set))
            values = list(values) if ordered else [values]
        except TypeError:
            values = [values]
        if len(values) != len(texts):
            raise RewardFailure(
                f"{self.name} takes a list and must give a number a text, not {len(values)} for "
                f"{len(texts)} texts"
            )
        return [self._checked(value, text) for value, text in zip(values, texts)]

    def _call(self, given, text):
        try:
            return self.function(given)
        except BaseException as error:  # sys.exit in a reward must not lose what was learned
            if is_ctrl_c(error):
                raise
            raise RewardFailure(
                f"{self.name} fails on the text {_begin(text)} "
                f"({sentence_of(error)})\n{traceback.format_exc()}"
            ) from error

    def _checked(self, value, text):
        number = _number(value)
        if number is None:
            raise RewardFailure(
                f"{self.name} must give one number, not {_describe(value)} as on the text "
                f"{_begin(text)}"
            )
        if not math.isfinite(number):
            raise RewardFailure(
                f"{self.name} must give finite numbers; {number} on the text {_begin(text)} is not "
                "finite"
            )
        if abs(number) > LARGEST:
            raise RewardFailure(
                f"{self.name} must give numbers of at most {LARGEST:,.0f} either way, not "
                f"{number:g} as on the text {_begin(text)}; divide it"
            )
        return number

    def __reduce__(self):
        # Actors find it again by its name; a module of the working directory is not pickled.
        if self.name.startswith("--reward="):
            return make_reward, (self.name.removeprefix("--reward="),)
        return Reward, (self.function, self.name)


def _takes_a_list(function):
    """Whether the first argument of a function is annotated as a list, or a sequence."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (TypeError, ValueError):  # built in
        return False
    kind = getattr(first, "annotation", None)
    named = str(kind).removeprefix("typing.").startswith(("list", "List", "Sequence"))
    return named or kind in LISTS or get_origin(kind) in LISTS


def _begin(text):
    text = str(text)
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _number(value):
    """A number, or an array of one, as a float; None if it is neither."""
    if np.ma.is_masked(value):
        return None
    try:
        array = np.asarray(value)
        if array.size != 1:
            return None
        item = array.reshape(-1)[0]
        if array.dtype.kind in "biuf" or isinstance(item, (numbers.Real, Decimal)):
            return float(item)
    except OverflowError:  # of an int that no float reaches
        return math.inf
    except Exception:  # whatever a foreign object does when it is asked
        return None
    return None


def _describe(value):
    if value is None:
        return "None (does it return what it computes?)"
    if isinstance(value, str):
        return f"the string {_begin(value)}"
    shape = getattr(value, "shape", None)
    kind = f"something of type {type(value).__name__}"
    return kind if shape is None else f"{kind} and shape {tuple(shape)}"


def make_reward(name, *, kept=False):
    """The function text -> float called `name`, a Reward.

    "sentiment" (VADER's, -1 to 1; Hutto and Gilbert, 2014) or module:function, looked for in the
    working directory first. kept: whether it is that of a run, which takes no other. Raises
    UsageError if it can't be found, imported or called.
    """
    if name == "sentiment":
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ModuleNotFoundError:
            raise UsageError(
                "--reward=sentiment needs the package vaderSentiment; pip install it, or give "
                "module:function."
            ) from None
        analyzer = SentimentIntensityAnalyzer()
        return Reward(lambda text: analyzer.polarity_scores(text)["compound"], f"--reward={name}")
    module, _, function = name.partition(":")
    if module.endswith(".py") or os.sep in module or module.startswith("."):
        raise UsageError(
            f"--reward={name} names a file; give a module of the folder you are in, such as "
            f"{Path(module).stem or 'rewards'}:{function or 'function'}."
        )
    if not (module and function):
        raise UsageError(
            f"--reward={name} can't be found; give sentiment, or module:function of a function "
            "text -> float."
        )
    found = getattr(_import(module, name, kept), function, None)
    if found is None:
        raise UsageError(
            f"--reward={name} can't be found (the module {module} has no {function}); give "
            "module:function of a function text -> float."
        )
    if not callable(found):
        raise UsageError(
            f"--reward={name} is of type {type(found).__name__}, not a function; give "
            "module:function of a function text -> float."
        )
    return Reward(found, f"--reward={name}")


def _import(module, name, kept):
    try:
        return import_here(module)
    except BaseException as error:  # a module may raise anything, sys.exit included
        if is_ctrl_c(error):
            raise
        missing = advice_on(module, error)
        advice = missing or "mend the module"
        if not kept:
            advice += ", or give sentiment" if missing else ""
            advice += "; it takes module:function of a function text -> float"
        raise UsageError(
            f"--reward={name} can't be found: importing {module} fails ({sentence_of(error)}); "
            f"{advice}."
        ) from None
