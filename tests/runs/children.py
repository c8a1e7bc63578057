"""An environment with a process of its own, whose end the environment variable KIND tells.

Imports no TensorFlow: worker processes import it too.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np


def sleep():
    while True:
        time.sleep(1)


def is_running(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Children(gymnasium.Env):
    """Episodes of five steps; the child's pid is appended to the file that PIDS names."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.kind = os.environ.get("KIND", "fork")
        self.child = None
        self.steps = 0
        self.all_steps = 0
        self.fail("constructor")

    def fail(self, where):
        if self.kind == f"{where} exits":
            sys.exit(0)
        if self.kind == f"{where} raises":
            raise EOFError("the simulator is gone")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.fail("reset")
        self.steps = 0
        if self.child is None and self.kind in ("fork", "interrupt", "leave", "step hangs"):
            self.child = multiprocessing.get_context("fork").Process(target=sleep)
            self.child.start()
        if self.child is None and self.kind == "program":
            self.child = subprocess.Popen(["sleep", "1000"])
        if self.child is not None and "PIDS" in os.environ:
            with open(os.environ["PIDS"], "a") as file:
                file.write(f"{self.child.pid}\n")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.all_steps += 1
        if self.all_steps > int(os.environ.get("FAIL_AFTER", 0)):
            self.fail("step")
            if self.kind == "step hangs":
                sleep()
        return np.full(1, self.steps, np.float32), 1.0, self.steps >= 5, False, {}

    def close(self):
        self.fail("close")
        if self.kind == "hang":
            sleep()
        if self.kind == "stubborn":
            while True:
                try:
                    sleep()
                except Exception:
                    pass
        if self.kind == "fork":
            self.child.terminate()
            self.child.join()
        if self.kind == "interrupt":
            os.kill(self.child.pid, 2)
            self.child.join()
        if self.kind == "program":
            self.child.terminate()
            self.child.wait()


gymnasium.register("Children-v0", Children)
