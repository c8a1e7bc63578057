"""Processes that are measured in turn: start one, ask it for so much work, end it.

The other side of the conversation is `meter.py`.
"""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

from tfdqt.errors import UsageError
from tfdqt.runs.processes import starting

ROOT = Path(__file__).resolve().parents[2]


def start(command, settings, env=None):
    """Start a measured process and wait until it is warm: -> (process, what it says of itself).

    Raises UsageError if it can't be started, or ends.
    """
    with starting(command[0]):
        process = subprocess.Popen(
            [*command, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
    try:
        return process, ask(process)
    except BaseException:
        stop(process)
        raise


def ask(process, goal=None):
    """Ask a measured process for `goal` counts, or just wait until it is warm: -> its answer."""
    if goal is not None:
        try:
            process.stdin.write(f"{goal}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as reading finds out
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise UsageError(
        f"A measured process ended with exit code {process.wait()}; what it wrote above says why."
    )


def stop(process):
    """End a measured process."""
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def other_environ():
    """The environment variables for another python, whose packages are its own."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def machine():
    """What is measured on, for the CSV: a dict."""
    return dict(
        cpu=_processor(),
        cores=os.cpu_count(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=_commit(),
    )


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("model name"))
        return line.partition(":")[2].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit():
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return ended.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
