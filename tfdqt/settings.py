"""Dataclasses of settings as JSON and back, and the checks that all of them share.

Imports no TensorFlow, so `--help` is instant.
"""

import dataclasses
import json
import math
import numbers
import os
import types
import typing
from typing import Literal

import numpy as np

from tfdqt.errors import UsageError

# Plain values of a run beside its dataclasses: their types, and the least of whole numbers.
PLAIN = dict(
    version=(str, None),
    algorithm=(str, None),
    name=(str, None),
    task=(str, None),
    corpus=(str | None, None),
    reward=(str, None),
    seed=(int, 0),
    episodes=(int, 0),
    log_lines=(int, 1),
    checkpoint_every=(int, 1),
    epochs=(int, 1),
    vocabulary=(int, 1),
    words=(Literal["unicode", "plain", "raw"], None),
    window=(int, 1),
    new_items=(int, 1),
    evaluate_every=(int, 0),
    evaluate_episodes=(int, 1),
    stop_at_score=(float | None, None),
    games=(int, 1),
)


def save_config(path, **parts):
    """Write dataclasses and plain values to a JSON file, one key each."""
    plain = {
        key: dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part
        for key, part in parts.items()
    }
    text = json.dumps(plain, indent=2, default=_number)
    temporary = f"{path}.writing"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    os.replace(temporary, path)  # a run must not lose its settings when it is killed here


def _number(value):
    """A number of numpy as Python's, which JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be kept in a run's settings.")


def load_config(path, **classes):
    """Read what `save_config` wrote; `classes` maps keys to dataclasses, others come as they are.

    Strict, with the keys in PLAIN too: an unknown or mistyped field raises UsageError. A field that
    is missing came after the run and takes its class's default, which must therefore be what runs
    did before that field.
    """
    try:
        with open(path, encoding="utf-8") as file:
            plain = json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} can't be read as a run's settings ({error}); give the folder of a run."
        ) from None
    if not isinstance(plain, dict) or set(classes) - set(plain):
        raise UsageError(
            f"{path} does not hold the settings of such a run; give the folder of a run."
        )
    for key in PLAIN.keys() & plain.keys() - classes.keys():
        _check_plain(key, plain[key], path)
    return {
        key: _strict(classes[key], value, path) if key in classes else value
        for key, value in plain.items()
    }


def _check_plain(key, value, path):
    hint, least = PLAIN[key]
    if not _fits(value, hint):
        raise UsageError(f"{path}: {key} can't be {value!r}; it takes {_in_words(hint)}.")
    if least is not None and value < least:
        raise UsageError(f"{path}: {key} must be at least {least}, not {value}.")


def _strict(cls, value, path):
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(value) - set(hints)) if isinstance(value, dict) else ["everything"]
    if unknown:
        raise UsageError(f"{path}: {cls.__name__} has unknown fields: {', '.join(unknown)}.")
    fields = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    for key, item in fields.items():
        if not _fits(item, hints[key]):
            raise UsageError(
                f"{path}: {cls.__name__}.{key} can't be {item!r}; it takes {_in_words(hints[key])}."
            )
    return cls(**fields)


def _fits(value, hint):
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if hint is int:
        return is_whole(value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint):
    """What a hint lets a JSON file hold, for people: `int | None` -> "a whole number or null"."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, args))
    if origin is tuple:
        return f"a list, each of {_in_words(args[0])}"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "null" if hint is types.NoneType else str(hint))


def is_whole(value):
    """Whether a value is a whole number, of Python or numpy; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


# -------------------------------------------------------------------------------------------------
# Checks


def check_whole(least, **named):
    """Raise UsageError unless each value is a whole number of at least `least`."""
    for name, value in named.items():
        if not is_whole(value) or value < least:
            raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}.")


def flag_of(field):
    """The flag that sets a field: "batch_size" -> "--batch-size"."""
    return f"--{field.replace('_', '-')}"


def words_of(settings):
    """The words of a command for settings without dashes, "min-change=0" or "hidden 64 64" each."""
    return [word for setting in settings for word in f"--{setting}".split()]


def check_left_out(args, why, *fields):
    """Raise UsageError for a flag that says nothing of such a run.

    args: a dataclass; a flag is left out if its field has the class's default.
    """
    for field in fields:
        if getattr(args, field) != getattr(type(args), field):
            raise UsageError(f"{flag_of(field)} {why}.")


def check_types(cfg):
    """Raise UsageError unless each field of a dataclass holds what its annotation says."""
    if isinstance(cfg, type):
        raise UsageError(f"Give {cfg.__name__}() with its settings, not the class alone.")
    for key, hint in typing.get_type_hints(type(cfg)).items():
        value = getattr(cfg, key)
        if _fits(tuple(value) if isinstance(value, list) else value, hint):
            continue
        if typing.get_origin(hint) is Literal:
            names = ", ".join(map(str, typing.get_args(hint)))
            raise UsageError(f"{flag_of(key)} must be one of {names}, not {value}.")
        raise UsageError(
            f"{flag_of(key)} can't be {value!r}; it takes {getattr(hint, '__name__', hint)}."
        )


def check_positive(cfg, *fields):
    """Raise UsageError unless each of these fields is greater than 0, and finite."""
    for field in fields:
        value = getattr(cfg, field)
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{flag_of(field)} must be greater than 0 and finite, not {value}.")


def check_not_negative(cfg, *fields):
    """Raise UsageError unless each of these fields is 0 or more, and finite."""
    for field in fields:
        value = getattr(cfg, field)
        if not value >= 0:
            raise UsageError(f"{flag_of(field)} must be 0 or more, not {value}.")
        if value == math.inf:
            raise UsageError(f"{flag_of(field)} must be finite, not {value}.")


def check_seed(cfg):
    """Raise UsageError unless `cfg.seed` is one that every library takes."""
    check_not_negative(cfg, "seed")
    check_seed_size("--seed", cfg.seed)


def check_seed_size(name, seed):
    """Raise UsageError for a seed that is larger than some library takes."""
    if seed >= 1 << 32:
        raise UsageError(f"{name} must be less than {1 << 32}, not {seed}.")


def check_fractions(cfg, *fields):
    """Raise UsageError unless each of these fields lies between 0 and 1."""
    for field in fields:
        if not 0 <= getattr(cfg, field) <= 1:
            raise UsageError(
                f"{flag_of(field)} must lie between 0 and 1, not {getattr(cfg, field)}."
            )


def check_at_least_one(args, *fields):
    """Raise UsageError unless each of these fields is 1 or more; None counts as not given."""
    for field in fields:
        if getattr(args, field) is not None and getattr(args, field) < 1:
            raise UsageError(f"{flag_of(field)} must be at least 1, not {getattr(args, field)}.")


def check_heads(cfg):
    """Raise UsageError unless attention's heads divide a network's width."""
    if cfg.width % cfg.heads:
        multiple = cfg.heads * max(1, round(cfg.width / cfg.heads))
        raise UsageError(
            f"--width={cfg.width} can't be divided by --heads={cfg.heads}; choose a width that is "
            f"a multiple of the heads, such as {multiple}."
        )
