"""The ways in which something that a user gave fails."""


class UsageError(ValueError):
    """What a user asked for can't be done. The message is one sentence that says what to do."""


class MissingPackage(UsageError, ImportError):
    """A package that is installed apart is missing. The message says how to install it."""


class EnvFailure(RuntimeError):
    """An environment raised, or returned something that is not a number."""


class Diverged(UsageError):
    """Learning gave numbers that are not finite. The message says where, and what to change."""
