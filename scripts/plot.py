"""Draw the learning curves of runs: python scripts/plot.py RUN... --out=curves.png"""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.report.kinds import group_runs, settings_of, task_of
from tfdqt.runs.cli import run_main
from tfdqt.runs.folder import find_run
from tfdqt.runs.log import read_log
from tfdqt.runs.plots import plot_learning


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


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    if not args.runs:
        raise UsageError("Name one or more folders of runs.")
    settings = {run: settings_of(run) for run in args.runs}
    kinds = group_runs(args.runs, settings)
    groups = {label: [read_log(run) for run in runs] for label, runs in kinds.items()}
    for log in (log for logs in groups.values() for log in logs):
        if args.column not in log:
            raise UsageError(f"The log has no column {args.column!r}; it has {', '.join(log)}.")
    try:
        levels = {
            label: float(height)
            for label, _, height in (pair.rpartition("=") for pair in args.level)
        }
        if not all(map(math.isfinite, levels.values())):
            raise ValueError
    except ValueError:
        raise UsageError("--level takes LABEL=HEIGHT, such as --level human=31.8.") from None
    out = Path(args.out or find_run(args.runs[0]) / "learning.png")
    if not out.suffix:
        out = out.with_suffix(".png")
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
