"""What stands in benchmarks/, imported from its folders and called as a user calls it."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

for folder in (
    "bits",
    "defaults",
    "kill",
    "memory",
    "probe",
    "pytorch",
    "scale",
    "search",
    "size",
    "speed",
    "text",
):
    sys.path.append(str(BENCHMARKS / folder))  # as python has it when it runs a script there


def call(module, *flags):
    """Call a script's `main()` in this process: -> what it printed."""
    printed = io.StringIO()
    argv = [module.__name__, *map(str, flags)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(printed):
        module.main()
    return printed.getvalue()


def script(path, *flags):
    """Run a script of the project in a process of its own, by its path from the root."""
    command = [sys.executable, str(ROOT / path), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)
