"""How much memory there is, and what things take of it: in bytes, by what Linux tells in files."""

import os
import resource
from pathlib import Path

from tfdqt.errors import UsageError

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def available():
    """Bytes that this process may still take, or None where nothing tells.

    The least of what the machine has, its control groups (containers) allow, and its own limit of
    addresses does.
    """
    kinds = (_machine(), *_groups(), _own_limit())
    known = [room for room in kinds if room is not None]
    return max(0, min(known)) if known else None


def _numbers(path):
    """A file of lines `name number ...` as a dict; empty if it can't be read."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def _number(path):
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _machine():
    room = _numbers(PROC / "meminfo").get("MemAvailable")
    return None if room is None else room * 1024


def _groups():
    """What each control group of this process, and each that it lies in, leaves."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            root, names = CGROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = CGROUP / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            limit = _number(group / names[0])
            used = _number(group / names[1])
            if limit is not None and used is not None:
                # What of files lies in memory goes when it is needed.
                yield limit - used + _numbers(group / "memory.stat").get(names[2], 0)
            if group == root:
                break


def _own_limit():
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _numbers(PROC / "self" / "status").get("VmSize")
    if limit == resource.RLIM_INFINITY or used is None:
        return None
    return limit - used * 1024


def resident():
    """Bytes that this process and its children hold in memory; 0 where nothing tells."""
    pages = 0
    waiting = [os.getpid()]
    while waiting:
        folder = PROC / str(waiting.pop())
        try:
            pages += int((folder / "statm").read_text().split()[1])
            for children in folder.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
        except OSError:  # it has ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_words(size):
    """A number of bytes for people: "24.0 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def check_fits(size, what, advice):
    """Raise UsageError unless `size` bytes are available: `what` needs them, `advice` says what to
    do.

    advice: called with the bytes that are available.
    """
    room = available()
    if room is not None and size > room:
        raise UsageError(
            f"{what} {in_words(size)} of memory, but {in_words(room)} are available; {advice(room)}"
        )


def round_down(number):
    """A whole number to its first two digits, as a person would give it: 123_456 -> 120_000."""
    unit = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // unit * unit
