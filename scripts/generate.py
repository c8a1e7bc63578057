"""Write with the networks of a text run.

python scripts/generate.py RUN --prompt "and the" --words=40
python scripts/generate.py RUN --prompts=prompts.txt --json > texts.jsonl
"""

import dataclasses
import json
import sys
import warnings
from pathlib import Path
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
    prompts: str | None = None
    """File of prompts, one a line, instead."""
    words: int = 40
    """Words, or sub-words, to write."""
    count: int = 3
    """Texts to write of each prompt (greedy and beam write the same one each time)."""
    best_of: int = 1
    """sample: of how many texts the one with the greatest reward is written."""
    method: Literal["greedy", "sample", "beam"] = "sample"
    """How the next word is chosen."""
    beta: float | None = None
    """Strength of the advantage over the cloned policy, in typical rewards if the run has
    --reward-units (0: that policy alone, inf: Q alone); by default as trained."""
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
    json: bool = False
    """Whether to write a line of JSON a text: prompt, text, reward, log_probability, and words with
    the value and the log-probability of each."""
    checkpoint: str | None = None
    """Checkpoint to take, by default the newest."""


def read_prompts(args):
    """The prompts that the arguments name, a list. Raises UsageError for a file without any."""
    if args.prompts is None:
        return [args.prompt]
    if args.prompt:
        raise UsageError("--prompt and --prompts both say what to begin with; give one of them.")
    try:
        text = Path(args.prompts).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(
            f"--prompts={args.prompts} can't be read ({reason}); give a file with a prompt a line."
        ) from None
    prompts = [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UsageError(f"--prompts={args.prompts} holds no prompts; give one a line.")
    return prompts


def show(writer, prompt, seed, best_of, **how):
    """Write one text, its words as they come, and what it is worth behind it: -> the text."""
    shown = ""

    def on_word(texts):
        nonlocal shown
        # The last letter may be half of one of several bytes.
        whole = texts[0].rstrip("\ufffd")
        if whole.startswith(shown):
            print(whole[len(shown) :], end="", flush=True)
            shown = whole

    on_word = on_word if best_of == 1 else None  # which is the best is not known before the end
    (text,) = writer([prompt], seed=seed, best_of=best_of, on_word=on_word, **how)
    rest = text[len(shown) :] if text.startswith(shown) else f"\n{text}"
    print(f"{rest}  [{writer.reward(text):.3f}]", flush=True)
    return text


def write_json(writer, prompts, count, seed, **how):
    """A line of JSON a text."""
    asked = [prompt for prompt in prompts for _ in range(count)]
    for prompt, written in zip(asked, writer.write(asked, seed=seed, **how)):
        known = [log_p for log_p in written.log_probabilities if log_p is not None]
        line = dict(
            prompt=prompt,
            text=written.text,
            reward=writer.reward(written.text),
            log_probability=sum(known),
            words=written.words,
            values=written.values,
            log_probabilities=written.log_probabilities,
        )
        print(json.dumps(line, ensure_ascii=False))


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    find_run(args.run)
    if args.count < 1 or args.seed < 0:
        raise UsageError("--count must be at least 1 and --seed 0 or more.")
    prompts = read_prompts(args)
    writer = load_writer(args.run, args.checkpoint, beta=args.beta)
    names = ("words", "best_of", "method", "temperature", "top_k", "top_p", "beams")
    how = {name: getattr(args, name) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("once", UserWarning)
        warnings.showwarning = show_notice
        if args.json:
            write_json(writer, prompts, args.count, args.seed, **how)
            return
        each = [(prompt, args.seed + i) for prompt in prompts for i in range(args.count)]
        texts = [show(writer, *one, **how) for one in each]

    from tfdqt.text.generation import diversity

    measured = diversity(texts)
    collapsed = measured.pop("collapsed")
    print(", ".join(f"{name} {value:.3f}" for name, value in measured.items()))
    if collapsed:
        print(collapsed)


def show_notice(message, category, *_, **__):
    """A warning of a prompt as a note."""
    if category is UserWarning:
        print(f"Note: {message}.", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
