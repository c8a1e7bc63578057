"""Modules of a user, found by the names that stand on a command line."""

import importlib
import os
import sys


def advice_on(module, error):
    """What to do where `import_here(module)` raised an error because there is no such module.

    None if it is another error.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        return f"run from the folder that holds {error.name}.py"
    return None


def import_here(name):
    """Import the module `name`, looked for in the current folder first. Raises what it raises."""
    # First, for a script's own folder, such as scripts/, holds modules of common names.
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)  # for what the module imports when it is called
