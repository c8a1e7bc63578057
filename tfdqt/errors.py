"""The ways in which something that a user gave fails."""


class UsageError(ValueError):
    """What a user asked for can't be done. The message is one sentence that says what to do."""


class MissingPackage(UsageError, ImportError):
    """A package that is installed apart is missing. The message says how to install it."""


class EnvFailure(Exception):
    """An environment raised, or returned something that is not a number.

    No RuntimeError: one that comes of a StopIteration a context manager takes for Python's own, and
    lets the StopIteration go on in its place.
    """


DIVERGED = "Learning diverged"  # with which the message of a Diverged begins


class Diverged(UsageError):
    """Learning gave numbers that are not finite. The message says where, and what to change."""


def sentence_of(error):
    """An error of someone else's code in one line: "ValueError: no such level"."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # its own __str__ fails
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def first_line(error):
    """The sentence of an error; an EnvFailure has a traceback behind it."""
    return str(error).strip().partition("\n")[0]
