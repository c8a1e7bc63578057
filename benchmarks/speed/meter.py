"""The measured side of the conversation with `benchmark.py`.

Standard library only, because two environments share it.
"""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
from pathlib import Path


def versions(*packages):
    """The versions of packages and of python: a dict."""
    numbers = {name.replace("-", "_"): importlib.metadata.version(name) for name in packages}
    return dict(numbers, python=platform.python_version())


def cpu_seconds():
    """CPU time of this process and its living children; NaN where there is no /proc."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        try:
            text = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return float("nan")
        fields = text.rpartition(")")[2].split()  # a name in brackets may hold anything
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def make_meter(ready, matmul_rate):
    """`tick(count, updates) -> whether to go on`, to call wherever nothing is half done.

    The first call answers `ready`. Each line on standard input asks for so many more counts; the
    first call by which they are done answers what they took, as one line of JSON. The clock stands
    while a line is awaited.
    """
    run = dict(goal=None)

    def answer(values):
        print(json.dumps(values), flush=True)

    def tick(count, updates):
        if run["goal"] is None:
            answer(ready)
        elif count < run["goal"]:
            return True
        else:
            seconds = time.perf_counter() - run["start"]
            cpu = cpu_seconds() - run["cpu"]
            taken = dict(count=count - run["count"], updates=updates - run["updates"])
            answer(dict(taken, seconds=seconds, cpu_seconds=cpu, matmul_rate=matmul_rate()))
        line = sys.stdin.readline()
        if not line:
            return False
        run.update(goal=count + int(line), count=count, updates=updates)
        run.update(cpu=cpu_seconds(), start=time.perf_counter())
        return True

    return tick
