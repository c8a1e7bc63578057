"""Which runs are of one kind: those that differ in their seed alone."""

import collections
import dataclasses

from tfdqt.games.algorithms import ALGORITHMS, is_game_run, settings_classes
from tfdqt.games.config import EnvConfig
from tfdqt.runs.cli import read_settings
from tfdqt.runs.folder import find_run
from tfdqt.text.config import TextConfig, TextNetworkConfig

# Runs may differ in these and be of one kind.
ALIKE = (
    "version",
    "seed",
    "checkpoint_every",
    "epochs",
    "log_lines",
    "spaces",
    "evaluate_every",
    "evaluate_episodes",
    "stop_at_score",
)


def settings_of(run):
    """A run's settings as plain values; fields that came after it are set as by default."""
    folder = find_run(run)
    plain = read_settings(folder)
    if is_game_run(plain):
        classes = settings_classes(plain["algorithm"], plain)
        later = dict(env=EnvConfig())
    else:
        classes = dict(network=TextNetworkConfig, text=TextConfig)
        later = {}
    return {
        key: dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part
        for key, part in {**later, **read_settings(folder, **classes)}.items()
    }


def task_of(settings):
    """The environment or text task that a run learns."""
    return settings.get("name") or settings["task"]


def name_of(settings):
    """What a run learns, and how."""
    if settings["algorithm"] in ALGORITHMS:
        network = settings["network"]["network"]
        return f"{task_of(settings)} {settings['algorithm'].upper()} {network}"
    return f"{task_of(settings)} {settings['text']['method']}"


def flat(settings):
    """All settings by name, but those that may differ."""
    fields = {}
    for key, value in settings.items():
        if key not in ALIKE:
            fields.update(value if isinstance(value, dict) else {key: value})
    return fields


def differences(settings, others):
    """What tells a run from others of its name, such as ", width=32"; empty if it is alone."""
    mine = flat(settings)
    odd = [key for key in mine if any(flat(other).get(key) != mine[key] for other in others)]
    return "".join(f", {key}={mine[key]}" for key in odd)


def group_runs(runs, settings):
    """Runs that differ in their seed alone, by a label: dict label -> list of runs."""
    kinds = collections.defaultdict(list)
    for run in runs:
        kinds[repr(sorted(flat(settings[run]).items(), key=str))].append(run)
    firsts = [settings[kind[0]] for kind in kinds.values()]
    groups = {}
    for kind, first in zip(kinds.values(), firsts):
        rivals = [other for other in firsts if name_of(other) == name_of(first)]
        groups.setdefault(name_of(first) + differences(first, rivals), []).extend(kind)
    return groups
