"""Write the network of a run as a SavedModel: python scripts/export.py RUN OUT"""

import dataclasses
from pathlib import Path

import tyro

from tfdqt.config import UsageError, load_config
from tfdqt.runs import find_run, run_main


@dataclasses.dataclass(frozen=True)
class Args:
    """Write the network of a run as a SavedModel with the signatures q_values (PPO: policy) and action."""

    run: tyro.conf.Positional[str]
    """Folder of the run."""
    out: tyro.conf.Positional[str]
    """Folder to write; must not exist."""
    tflite: str | None = None
    """Text runs: also write the encoder, its weights as 8-bit integers, to this TFLite file, and compare the two."""
    checkpoint: str | None = None
    """Checkpoint to take, by default the newest."""


def export_text(args):
    from tfdqt.backend import tf
    from tfdqt.export import compare_tflite, export_text_model, export_tflite
    from tfdqt.text_runs import load_text_run, make_run_scores, sample_texts

    trained = load_text_run(args.run, args.checkpoint)
    task = trained.task
    scores = make_run_scores(task, trained.transformer, trained.head, trained.settings["text"])
    try:
        if args.tflite:
            size = export_tflite(trained.transformer, task.length, args.tflite)
            found = compare_tflite(trained.transformer, sample_texts(task, 32), args.tflite)
            print(f"{args.tflite}: {size:,} bytes. " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    except OSError as error:
        raise UsageError(f"{args.tflite} can't be written ({error.strerror or error}); name another file.") from None
    try:
        export_text_model(task, trained.transformer, trained.head, scores, args.out)
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(f"{args.out} can't be written ({getattr(error, 'strerror', None) or error}); name another folder.") from None
    print(f"{args.out}: signatures q_values and action; inputs text [None, {task.length}] int32, at [None] int32.")


def main():
    args = tyro.cli(Args, description=__doc__)
    run_dir = find_run(args.run)
    if Path(args.out).exists():
        raise UsageError(f"{args.out} exists already; name a folder that does not.")
    if load_config(run_dir / "config.json").get("algorithm") == "text":
        return export_text(args)
    if args.tflite:
        raise UsageError("--tflite is for text runs; leave it out.")

    from tfdqt.backend import tf
    from tfdqt.evaluate import load_run
    from tfdqt.export import export_saved_model

    trained = load_run(args.run, args.checkpoint)
    try:
        names = export_saved_model(trained.networks, trained.weights, args.out, algorithm=trained.algorithm)
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(f"{args.out} can't be written ({getattr(error, 'strerror', None) or error}); name another folder.") from None
    inputs = ", ".join(f"{name} {[None, *tensor.shape[1:]]} {tensor.dtype}" for name, tensor in trained.networks.model.input.items())
    print(f"{args.out}: signatures {' and '.join(names)}; inputs {inputs}.")


if __name__ == "__main__":
    run_main(main)
