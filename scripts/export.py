"""Write the network of a run as a SavedModel: python scripts/export.py RUN OUT"""

import dataclasses
from pathlib import Path

import tyro

from tfdqt.config import UsageError
from tfdqt.runs import find_run, run_main


@dataclasses.dataclass(frozen=True)
class Args:
    """Write the network of a run as a SavedModel with the signatures q_values and action."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    out: tyro.conf.Positional[str]
    """Folder to write; must not exist."""
    checkpoint: str | None = None
    """Checkpoint to take, by default the newest."""


def main():
    args = tyro.cli(Args, description=__doc__)
    find_run(args.run)
    if Path(args.out).exists():
        raise UsageError(f"{args.out} exists already; name a folder that does not.")

    from tfdqt.evaluate import load_run
    from tfdqt.export import export_saved_model

    trained = load_run(args.run, args.checkpoint)
    try:
        export_saved_model(trained.networks, trained.weights, args.out)
    except OSError as error:
        raise UsageError(f"{args.out} can't be written ({error.strerror or error}); name another folder.") from None
    inputs = ", ".join(f"{name} {[None, *tensor.shape[1:]]} {tensor.dtype}" for name, tensor in trained.networks.model.input.items())
    print(f"{args.out}: signatures q_values and action; inputs {inputs}.")


if __name__ == "__main__":
    run_main(main)
