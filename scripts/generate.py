"""Write with the networks of a text run.

python scripts/generate.py RUN --prompt "and the" --words=40
"""

import dataclasses
import sys
import warnings
from typing import Literal

import tyro

from tfdqt import load_writer
from tfdqt.errors import UsageError
from tfdqt.runs.cli import run_main
from tfdqt.runs.folder import find_run


@dataclasses.dataclass(frozen=True)
class Args:
    """Go on with a prompt, one word after another, by the networks of a text run."""

    run: tyro.conf.Positional[str]
    """Folder of a run of run_text.py --task=corpus."""
    prompt: str = ""
    """What the text begins with."""
    words: int = 40
    """Words to write."""
    count: int = 3
    """Texts to write (greedy and beam write the same one each time)."""
    method: Literal["greedy", "sample", "beam"] = "sample"
    """How the next word is chosen."""
    beta: float | None = None
    """Strength of the advantage over the cloned policy (0: that policy alone, inf: Q alone); by
    default as trained."""
    temperature: float = 1.0
    """sample: above 1 flatter, below 1 sharper."""
    top_k: int = 0
    """sample: only from this many best words (0: all)."""
    top_p: float = 1.0
    """sample: only from the fewest words that hold this probability."""
    beams: int = 4
    """beam: texts followed at a time."""
    seed: int = 0
    """Seeds the drawing."""
    checkpoint: str | None = None
    """Checkpoint to take, by default the newest."""


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    find_run(args.run)
    if args.count < 1 or args.seed < 0:
        raise UsageError("--count must be at least 1 and --seed 0 or more.")
    writer = load_writer(args.run, args.checkpoint, beta=args.beta)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always", UserWarning)
        texts = writer(
            [args.prompt] * args.count,
            words=args.words,
            method=args.method,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            beams=args.beams,
            seed=args.seed,
        )
    for notice in notices:
        if notice.category is UserWarning:
            print(f"Note: {notice.message}.", file=sys.stderr)
    for text in texts:
        print(f"{writer.reward(text):8.3f}  {text}")

    from tfdqt.text.generation import diversity

    measured = diversity(texts)
    collapsed = measured.pop("collapsed")
    print(", ".join(f"{name} {value:.3f}" for name, value in measured.items()))
    if collapsed:
        print(collapsed)


if __name__ == "__main__":
    run_main(main)
