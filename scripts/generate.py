"""Write with the networks of a text run: python scripts/generate.py RUN --prompt "and the" --words=40"""

import dataclasses
from typing import Literal

import tyro

from tfdqt.config import UsageError
from tfdqt.runs import find_run, run_main


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
    """Strength of the advantage over the cloned policy (0: that policy alone, inf: Q alone); by default as trained."""
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


def main():
    args = tyro.cli(Args, description=__doc__)
    find_run(args.run)
    if args.count < 1 or args.seed < 0:
        raise UsageError("--count must be at least 1 and --seed 0 or more.")

    from tfdqt.reading import words_of
    from tfdqt.text_runs import load_text_run, make_run_scores
    from tfdqt.writing import diversity, generate

    trained = load_text_run(args.run, args.checkpoint)
    task = trained.task
    if task.name != "corpus":
        raise UsageError(f"{args.run} learned to play {task.name}, not to write; give a run of run_text.py --task=corpus.")
    scores = make_run_scores(task, trained.transformer, trained.head, trained.settings["text"], beta=args.beta)
    texts = generate(scores, task.tokenizer, [" ".join(words_of(args.prompt))] * args.count, words=args.words, length=task.length,
                     method=args.method, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, beams=args.beams,
                     seed=args.seed)
    for text in texts:
        print(f"{task.reward(text):8.3f}  {text}")
    found = diversity(texts)
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items() if name != "collapsed"))
    if found["collapsed"]:
        print(found["collapsed"])


if __name__ == "__main__":
    run_main(main)
