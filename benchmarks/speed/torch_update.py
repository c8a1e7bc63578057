"""The GPT's DQN update in eager PyTorch, to measure tfdqt's against. `scripts/benchmark.py` starts it.

The network and the update are those of `old_pytorch/gpt_dqn.py`: equal weights and batches give the losses of `tfdqt.gpt.build_q`
and `tfdqt.dqn.make_update`, and the benchmark checks that they do. They are written to be fast among what plain
eager code can do: attention by scaled_dot_product_attention, Adam by its fused kernel, one call for all of Polyak's
averages, batches that are tensors already.

This runs in the environment of requirements-bench.txt, which has no tfdqt.
"""

import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from meter import make_meter, versions

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "old_pytorch"))
from gpt_dqn import GPTQ, load_keras, make_update  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# The machine


def matmul_rate(size=1024, repeats=10):
    """Floating point operations per second of the fastest of some float32 matrix products."""
    a, best = torch.rand(size, size), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size ** 3 / best


def choose_threads(wanted, work):
    """Set torch's threads to `wanted`; with 0, to torch's own number or to one, whichever does `work()` faster.

    Small networks can gain nothing from a second thread, or lose much where cores are shared and threads wait for each other.
    """
    seconds = {}
    for threads in {wanted} if wanted else {1, torch.get_num_threads()}:
        torch.set_num_threads(threads)
        work()
        start = time.perf_counter()
        work()
        seconds[threads] = time.perf_counter() - start
    torch.set_num_threads(min(seconds, key=seconds.get))


def serve(settings):
    """Measure updates as the benchmark asks for them."""
    with np.load(settings["exchange"]) as file:
        arrays = dict(file)
    fields = [torch.from_numpy(arrays[name]) for name in ("obs", "action", "reward", "discount", "first")]
    fields[1] = fields[1].long()
    batches = [[field[call, i] for field in fields] for call in range(len(fields[0])) for i in range(fields[0].shape[1])]
    sizes = {key: settings["network"][key] for key in ("context", "layers", "heads", "width")}
    online = GPTQ(fields[0].shape[-1], settings["actions"], **sizes)
    update = make_update(copy.deepcopy(online), settings["cfg"])
    choose_threads(settings["torch_threads"], lambda: [update(batch) for batch in batches[:20]])
    load_keras(online, arrays)
    update = make_update(online, settings["cfg"])
    losses = [update(batch)["loss"] for batch in batches]
    tick = make_meter(dict(versions("torch", "numpy"), threads=torch.get_num_threads(), losses=losses), matmul_rate)
    done = 0
    while tick(done, done):
        update(batches[done % len(batches)])
        done += 1


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
