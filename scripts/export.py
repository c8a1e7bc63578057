"""Write the network of a run as a SavedModel, or what playing needs of it.

python scripts/export.py RUN OUT
python scripts/export.py RUN OUT --policy
"""

import dataclasses
from pathlib import Path

import tyro

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import is_game_run
from tfdqt.runs.cli import read_settings, run_main
from tfdqt.runs.folder import find_run


@dataclasses.dataclass(frozen=True)
class Args:
    """Write the network of a run as a SavedModel with the signatures q_values (PPO: policy) and
    action."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    out: tyro.conf.Positional[str]
    """Folder to write; must not exist."""
    policy: bool = False
    """Game runs: write what playing needs instead, its settings and the weights that act, less than
    1 MB; evaluate.py, report.py and load_policy take the folder as a run."""
    tflite: str | None = None
    """Text runs: also write the encoder, its weights as 8-bit integers, to this TFLite file, and
    compare the two."""
    checkpoint: str | None = None
    """Checkpoint to take, by default the newest; best: of a run with --evaluate-every."""


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    run_dir = find_run(args.run)
    if Path(args.out).exists():
        raise UsageError(f"{args.out} exists already; name a folder that does not.")
    if is_game_run(read_settings(run_dir)):
        if args.tflite:
            raise UsageError("--tflite is for text runs; leave it out.")
        from tfdqt.games.export import export_policy, export_run

        if args.policy:
            return export_policy(run_dir, args.out, args.checkpoint)
        return export_run(run_dir, args.out, args.checkpoint)
    if args.policy:
        raise UsageError("--policy is for game runs; leave it out.")
    from tfdqt.text.export import export_run

    return export_run(run_dir, args.out, args.tflite, args.checkpoint)


if __name__ == "__main__":
    run_main(main)
