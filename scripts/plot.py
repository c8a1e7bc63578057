"""Draw the learning curves of runs: python scripts/plot.py RUN... --out=curves.png"""

import collections
import dataclasses
from typing import Annotated

import tyro

from tfdqt.config import DQNConfig, FarConfig, NetworkConfig, PPOConfig, TextConfig, TextNetworkConfig, UsageError, load_config
from tfdqt.runs import find_run, read_log, run_main

ALIKE = ("seed", "checkpoint_every", "epochs")  # runs may differ in these and be of one kind
PARTS = dict(dqn=dict(network=NetworkConfig, dqn=DQNConfig, far=FarConfig), ppo=dict(network=NetworkConfig, ppo=PPOConfig),
             text=dict(network=TextNetworkConfig, text=TextConfig, far=FarConfig))


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw the learning curves of runs; runs that differ in the seed alone become one line with a band."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs."""
    out: str | None = None
    """PNG to write, by default learning.png in the folder of the first run."""
    column: str = "mean_return"
    """Column of the log to draw."""
    title: str = ""
    """Heading; by default the environments' names."""
    level: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL=HEIGHT ...")] = ()
    """Dashed lines to compare with."""


def complete(plain):
    """A run's settings, with fields that came after it set as they are by default."""
    return {**plain, **{part: {**dataclasses.asdict(cls()), **plain.get(part, {})} for part, cls in PARTS[plain["algorithm"]].items()}}


def name_of(settings):
    """What a run learns, and how."""
    if settings["algorithm"] == "text":
        return f"{settings['task']} {settings['text']['method']}"
    return f"{settings['name']} {settings['algorithm'].upper()} {settings['network']['network']}"


def differences(settings, others):
    """The settings that tell a run from others of its name, such as ", width=32"; empty if it is alone."""
    def flat(tree):
        return {name: leaf for key, value in tree.items() if key not in ALIKE
                for name, leaf in (value.items() if isinstance(value, dict) else [(key, value)])}

    mine = flat(settings)
    odd = [key for key in mine if any(flat(other).get(key) != mine[key] for other in others)]
    return "".join(f", {key}={mine[key]}" for key in odd)


def main():
    args = tyro.cli(Args, description=__doc__)
    if not args.runs:
        raise UsageError("Name one or more folders of runs.")
    settings = {run: complete(load_config(find_run(run) / "config.json")) for run in args.runs}
    kinds = collections.defaultdict(list)
    for run in args.runs:
        kinds[repr({key: value for key, value in settings[run].items() if key not in ALIKE})].append(run)
    firsts = [settings[kind[0]] for kind in kinds.values()]
    groups = {}
    for kind, first in zip(kinds.values(), firsts):
        label = name_of(first) + differences(first, [other for other in firsts if name_of(other) == name_of(first)])
        groups[label] = [read_log(run) for run in kind]
    for log in (log for logs in groups.values() for log in logs):
        if args.column not in log:
            raise UsageError(f"The log has no column {args.column!r}; it has {', '.join(log)}.")
    try:
        levels = {label: float(height) for label, _, height in (pair.rpartition("=") for pair in args.level)}
    except ValueError:
        raise UsageError("--level takes LABEL=HEIGHT, such as --level human=30.5.") from None

    from tfdqt.plots import plot_learning

    out = args.out or find_run(args.runs[0]) / "learning.png"
    title = args.title or ", ".join(sorted({each.get("name") or each["task"] for each in settings.values()}))
    try:
        plot_learning(groups, out, column=args.column, levels=levels, title=title,
                      steps="updates" if next(iter(settings.values()))["algorithm"] == "text" else "environment steps")
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"The picture {out} can't be written ({error}); name another one with --out=NAME.png.") from None
    print(out)


if __name__ == "__main__":
    run_main(main)
