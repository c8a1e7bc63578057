"""Tokens a second of writing: ours, from what was kept, against transformers' own `generate`.

    OMP_NUM_THREADS=1 python benchmarks/speed/writing.py
    OMP_NUM_THREADS=1 python benchmarks/speed/writing.py --torch-python=.torch/bin/python

The same GPT-2, of random weights, draws texts from its own language model, one thread. Sides in
turn, A B C A B C: `kept`, ours; `whole`, ours from the whole text at every word; `eager` and `xla`,
transformers' for TensorFlow, as it is and compiled by XLA; `torch`, transformers' for PyTorch, in
an environment of old_pytorch/requirements.txt, where it borrows this one's transformers. The first
call of each, in which it is compiled, is not counted. Times are the processor's.
"""

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import tyro

from tfdqt.backend import set_threads, tf
from tfdqt.errors import UsageError
from tfdqt.runs.cli import run_main
from tfdqt.runs.log import write_rows
from tfdqt.runs.processes import starting

OUT = Path(__file__).parent / "speed_writing.csv"
TORCH = """
import json, os, sys, time
os.environ.update(USE_TF="0", USE_JAX="0")
sys.path.append(sys.argv[2])
import torch, transformers
given = json.loads(sys.argv[1])
torch.set_num_threads(1)
config = transformers.GPT2Config(**given["config"])
model = transformers.GPT2LMHeadModel(config).eval()
ids = torch.full((given["texts"], 1), 2)
words = given["words"]
how = dict(max_new_tokens=words, min_new_tokens=words, do_sample=True, pad_token_id=0)
def write():
    with torch.no_grad():
        model.generate(ids, eos_token_id=None, **how)
write()
print("ready", flush=True)
for _ in sys.stdin:
    began = time.process_time()
    write()
    print(time.process_time() - began, flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure how fast texts are written."""

    out: Path = OUT
    """CSV of every measurement."""
    torch_python: str | None = None
    """The python of an environment with PyTorch."""
    layers: int = 4
    """Blocks."""
    width: int = 256
    """Width."""
    vocabulary: int = 2_003
    """Tokens that there are."""
    texts: int = 16
    """Texts that are written at a time."""
    words: int = 64
    """Tokens of each."""
    repeats: int = 5
    """Measurements of each side."""


def make_sides(args, config):
    """`side()` writes the texts once: dict of such functions."""
    import transformers

    from tfdqt.text.encoder import PrunedTransformerModel
    from tfdqt.text.generation import generate, make_word_scores
    from tfdqt.text.head import DeepQLearningModel
    from tfdqt.text.tokenizers import make_tokenizer

    tokenizer = make_tokenizer([f"w{i}" for i in range(args.vocabulary - 3)])
    model = transformers.TFGPT2LMHeadModel(config)
    model.build_in_name_scope()
    encoder = PrunedTransformerModel(config, 0.0)
    encoder.bert.set_weights(model.transformer.get_weights())
    language = encoder.bert.get_input_embeddings().weights[0].numpy().T
    head = DeepQLearningModel(args.width, args.vocabulary, language=language)
    scores = make_word_scores(encoder, head, clone=True)
    prompts = [""] * args.texts
    ours = dict(words=args.words, length=args.words + 1)
    ids = tf.fill([args.texts, 1], 2)
    how = dict(max_new_tokens=args.words, min_new_tokens=args.words, do_sample=True)
    how |= dict(pad_token_id=0, eos_token_id=None)
    compiled = tf.function(lambda ids: model.generate(ids, **how), jit_compile=True)
    return dict(
        kept=lambda: generate(scores, tokenizer, prompts, **ours),
        whole=lambda: generate(lambda *of: scores(*of), tokenizer, prompts, **ours),
        eager=lambda: model.generate(ids, **how).numpy(),
        xla=lambda: compiled(ids).numpy(),
    )


def start_torch(args, config):
    """`seconds()` of PyTorch's side, measured in a process of its own."""
    import transformers

    given = dict(texts=args.texts, words=args.words, config=config.to_diff_dict())
    packages = str(Path(transformers.__file__).parents[1])
    with starting(f"--torch-python={args.torch_python}"):
        process = subprocess.Popen(
            [args.torch_python, "-c", TORCH, json.dumps(given), packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    while (line := process.stdout.readline()).strip() != "ready":
        if not line:
            raise UsageError("PyTorch's side did not start; give --torch-python with torch.")

    def seconds():
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return seconds, process


def main():
    args = tyro.cli(Args, description=__doc__)
    import transformers

    set_threads(1, 1)
    config = transformers.GPT2Config(
        vocab_size=args.vocabulary,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=4,
        n_positions=args.words + 1,
        bos_token_id=2,
        eos_token_id=1,
    )
    sides = make_sides(args, config)
    for write in sides.values():
        write()
    torch_seconds, process = start_torch(args, config) if args.torch_python else (None, None)
    rows = []
    for repeat in range(args.repeats):
        for side, write in sides.items():
            began = time.process_time()
            write()
            rows.append((side, repeat, time.process_time() - began))
        if torch_seconds:
            rows.append(("torch", repeat, torch_seconds()))
    if process:
        process.kill()
    tokens = args.texts * args.words
    shape = {key: getattr(args, key) for key in ("layers", "width", "vocabulary", "texts", "words")}
    write_rows(
        args.out,
        [
            dict(side=side, repeat=repeat, tokens_per_second=tokens / seconds, **shape)
            for side, repeat, seconds in rows
        ],
    )
    rates = {}
    for side, _, seconds in rows:
        rates.setdefault(side, []).append(tokens / seconds)
    for side, each in rates.items():
        ratio = np.median(np.array(rates["kept"]) / np.array(each))
        print(f"{side}: {np.median(each):,.0f} tokens/s; ours {ratio:.2f} times that")


if __name__ == "__main__":
    run_main(main)
