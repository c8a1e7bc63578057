"""Draw the learning curves of runs: python scripts/plot.py RUN... --out=curves.png"""

import collections
import dataclasses
from typing import Annotated, Literal

import tyro

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS, is_game_run, settings_classes
from tfdqt.games.config import EnvConfig
from tfdqt.runs.cli import read_settings, run_main
from tfdqt.runs.folder import find_run
from tfdqt.runs.log import read_log
from tfdqt.runs.plots import plot_learning
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


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw the learning curves of runs; those that differ in the seed alone become one line with a
    band."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs."""
    out: str | None = None
    """PNG to write, by default learning.png in the folder of the first run."""
    column: str = "mean_return"
    """Column of the log to draw."""
    x: Literal["step", "seconds"] = "step"
    """Over steps, or over seconds of wall clock."""
    title: str = ""
    """Heading; by default the environments' names."""
    level: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL=HEIGHT ...")] = ()
    """Dashed lines to compare with."""


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
    """The logs of runs that differ in their seed alone, by a label: dict label -> list of logs."""
    kinds = collections.defaultdict(list)
    for run in runs:
        kinds[repr(sorted(flat(settings[run]).items(), key=str))].append(run)
    firsts = [settings[kind[0]] for kind in kinds.values()]
    groups = {}
    for kind, first in zip(kinds.values(), firsts):
        rivals = [other for other in firsts if name_of(other) == name_of(first)]
        groups[name_of(first) + differences(first, rivals)] = [read_log(run) for run in kind]
    return groups


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    if not args.runs:
        raise UsageError("Name one or more folders of runs.")
    settings = {run: settings_of(run) for run in args.runs}
    groups = group_runs(args.runs, settings)
    for log in (log for logs in groups.values() for log in logs):
        if args.column not in log:
            raise UsageError(f"The log has no column {args.column!r}; it has {', '.join(log)}.")
    try:
        levels = {
            label: float(height)
            for label, _, height in (pair.rpartition("=") for pair in args.level)
        }
    except ValueError:
        raise UsageError("--level takes LABEL=HEIGHT, such as --level human=30.5.") from None
    out = args.out or find_run(args.runs[0]) / "learning.png"
    title = args.title or ", ".join(sorted({task_of(each) for each in settings.values()}))
    games = all(each["algorithm"] in ALGORITHMS for each in settings.values())
    xlabel = "updates" if args.x == "step" and not games else None
    try:
        plot_learning(
            groups, out, column=args.column, levels=levels, title=title, x=args.x, xlabel=xlabel
        )
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The picture {out} can't be written ({error}); name another one with --out=NAME.png."
        ) from None
    print(out)
    return 0


if __name__ == "__main__":
    run_main(main)
