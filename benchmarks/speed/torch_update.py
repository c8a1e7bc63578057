"""The GPT's DQN update in eager PyTorch, to measure tfdqt's against. `benchmark.py` starts it.

The network and the update are those of `old_pytorch/gpt_dqn.py`: equal weights and batches give the
losses of `build_q` and `make_update` of tfdqt.games, and the benchmark checks that they do. They
are written to be fast among what plain eager code can do: attention by
scaled_dot_product_attention, Adam by its fused kernel, one call for all of Polyak's averages,
batches that are tensors already.

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

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "old_pytorch"))
from gpt_dqn import GPTQ, load_keras, make_update  # noqa: E402


def matmul_rate(size=1024, repeats=10, clock=time.perf_counter):
    """Floating point operations per second of the fastest of some float32 matrix products."""
    a = torch.rand(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        a @ a
        best = min(best, clock() - start)
    return 2 * size**3 / best


def choose_threads(wanted, work):
    """Set torch's threads to `wanted`.

    With 0, to torch's own number or to one, whichever does `work()` faster: small networks can gain
    nothing from a second thread, or lose much where cores are shared and threads wait for each
    other.
    """
    seconds = {}
    for threads in {wanted} if wanted else {1, torch.get_num_threads()}:
        torch.set_num_threads(threads)
        work()
        start = time.perf_counter()
        work()
        seconds[threads] = time.perf_counter() - start
    torch.set_num_threads(min(seconds, key=seconds.get))


def read_batches(arrays):
    """What `ours.py` wrote as batches: list of [obs, action, reward, discount, first]."""
    fields = [
        torch.from_numpy(arrays[name]) for name in ("obs", "action", "reward", "discount", "first")
    ]
    fields[1] = fields[1].long()
    calls, updates = fields[0].shape[:2]
    return [[field[call, i] for field in fields] for call in range(calls) for i in range(updates)]


def serve(settings):
    """Measure updates as the benchmark asks for them."""
    with np.load(settings["exchange"]) as file:
        arrays = dict(file)
    batches = read_batches(arrays)
    sizes = {key: settings["network"][key] for key in ("context", "layers", "heads", "width")}
    online = GPTQ(arrays["obs"].shape[-1], settings["actions"], **sizes)
    update = make_update(copy.deepcopy(online), settings["cfg"])
    choose_threads(settings["torch_threads"], lambda: [update(batch) for batch in batches[:20]])
    load_keras(online, arrays)
    update = make_update(online, settings["cfg"])
    ready = versions("torch", "numpy")
    ready["threads"] = torch.get_num_threads()
    ready["losses"] = [update(batch)["loss"] for batch in batches]
    tick = make_meter(ready, matmul_rate)
    done = 0
    while tick(done, done):
        update(batches[done % len(batches)])
        done += 1


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
