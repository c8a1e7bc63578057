"""A run's folder: made for a new run, opened again, and freed if nothing was learned."""

import contextlib
from pathlib import Path

from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import checkpoints
from tfdqt.scale.config import cluster_member
from tfdqt.settings import save_config


def start_run(run_dir, **settings):
    """Make the folder of a new run and save its settings as config.json. Returns its path.

    Raises UsageError if the folder can't be written or holds a run already.
    """
    run_dir = Path(run_dir)
    if (run_dir / "config.json").exists():
        if not checkpoints(run_dir):
            raise UsageError(
                f"{run_dir} already holds a run, which has no checkpoint yet; delete the folder if "
                "it was killed before its first one, or choose another --run-dir."
            )
        raise UsageError(
            f"{run_dir} already holds a run; go on with it by --resume={run_dir}, or choose "
            "another --run-dir."
        )
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        save_config(run_dir / "config.json", **settings)
    except OSError as error:
        raise UsageError(
            f"The run folder {run_dir} can't be written ({error.strerror}); choose another "
            "--run-dir."
        ) from None
    return run_dir


def find_run(run_dir):
    """The path of an existing run. Raises UsageError if there is none."""
    run_dir = Path(run_dir)
    if not (run_dir / "config.json").is_file():
        raise UsageError(
            f"There is no run in {run_dir} (no config.json); give the folder that a run printed at "
            "its start."
        )
    return run_dir


def learner_folder(run_dir, scale):
    """Where this process keeps its part of a run.

    Of several learners that learn together, each but the first has a folder inside the run's.
    """
    index = cluster_member()[0] if scale.strategy == "multiworker" else 0
    return Path(run_dir, f"learner-{index}") if index else Path(run_dir)


@contextlib.contextmanager
def freed_if_nothing_is_learned(run_dir):
    """Let the folder be used again if the block fails before the first checkpoint."""
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        if not checkpoints(run_dir):
            Path(run_dir, "config.json").unlink(missing_ok=True)
        raise
