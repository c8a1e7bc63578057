"""The GPT's DQN update in eager PyTorch, to measure tfdqt's against. `scripts/benchmark.py` starts it.

The network is `tfdqt.gpt.build_q` with one token a step, the update is `tfdqt.dqn.make_update` with double Q: equal
weights and batches give equal losses, and the benchmark checks that they do. It is written to be fast among what plain
eager code can do: attention by scaled_dot_product_attention, Adam by its fused kernel, one call for all of Polyak's
averages, batches that are tensors already.

It runs in the environment of requirements-bench.txt, which has no tfdqt.
"""

import copy
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from meter import make_meter, versions
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

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


# ---------------------------------------------------------------------------------------------------------------------
# The network


class Block(nn.Module):
    """One pre-norm Transformer block: [B, T, D] -> [B, T, D]."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, visible):
        batch, length, width = x.shape
        qkv = self.attention_qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, T, D/H] each
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)), approximate="tanh"))


class GPTQ(nn.Module):
    """The decoder over a window of steps: obs [B, C, F] uint8, first [B, C] bool -> Q [B, C, A] at every step."""

    def __init__(self, features, actions, *, context, layers, heads, width):
        super().__init__()
        self.embed_obs, self.embed_place = nn.Linear(features, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.q = nn.LayerNorm(width), nn.Linear(width, actions)
        self.register_buffer("causal", torch.ones(context, context, dtype=torch.bool).tril(), persistent=False)

    def forward(self, obs, first):
        episode = first.cumsum(1)
        visible = (episode[:, :, None] == episode[:, None, :]) & self.causal  # [B, C, C]
        x = self.embed_obs(obs.float() / 128.0 - 1.0) + self.embed_place(visible.sum(-1) - 1)
        for block in self.blocks:
            x = block(x, visible[:, None])
        return self.q(self.norm(x))


def load_keras(model, weights):
    """Copy the weights of `tfdqt.gpt.build_q`, by layer/variable, into `model`."""
    names = dict(weight="kernel", bias="bias")
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            layer, kind = path.replace("blocks.", "block", 1).replace(".", "_").rsplit("_", 1)
            norm = "norm" in layer
            value = torch.from_numpy(weights[f"{layer}/{dict(weight='gamma', bias='beta')[kind] if norm else names[kind]}"])
            parameter.copy_(value if norm or kind == "bias" or layer == "embed_place" else value.T)


# ---------------------------------------------------------------------------------------------------------------------
# The update


def q_learning(online, target, cfg, obs, action, reward, discount, first):
    """The loss of one batch of steps [B, C + n, ...], as `tfdqt.dqn.q_learning`: double Q, n-step, every step learned at."""
    n, gamma = cfg["n_step"], cfg["gamma"]
    context = obs.shape[1] - n
    never = torch.zeros_like(first[:, :1])
    last = torch.cat([first[:, 1:], never], 1)  # a step that only resets: nothing is learned at it
    over = torch.cat([never, discount[:, :-1] == 0], 1)
    cut = (last[:, 1:] & ~over[:, 1:]).any(1)[:, None]  # [B, 1] cut short: bootstrap one step on
    with torch.no_grad():
        ahead = (torch.where(cut[..., None], obs[:, 1:context + 1], obs[:, n:]),
                 torch.where(cut, first[:, 1:context + 1], first[:, n:]))
        best = online(*ahead).argmax(-1, keepdim=True)
        values = target(*ahead).gather(-1, best).squeeze(-1)  # [B, C]
        targets = values
        for k in reversed(range(n)):
            targets = reward[:, k:k + context] + gamma * discount[:, k:k + context] * targets
        targets = torch.where(cut, reward[:, :context] + gamma * discount[:, :context] * values, targets)
        mask = 1.0 - last[:, :context].float()
    q = online(obs[:, :context], first[:, :context]).gather(-1, action[:, :context, None]).squeeze(-1)
    return (mask * F.huber_loss(q, targets, reduction="none", delta=cfg["huber_delta"])).sum() / mask.sum().clamp(min=1.0)


def make_update(online, cfg):
    """`update(batch) -> loss`: loss, gradient, clipping, Adam and Polyak's target."""
    target = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters(), lr=cfg["learning_rate"], eps=cfg["adam_epsilon"], fused=True)
    weights, averages = list(online.parameters()), list(target.parameters())
    average = get_ema_multi_avg_fn(1.0 - cfg["target_tau"])

    def update(batch):
        loss = q_learning(online, target, cfg, *batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, cfg["max_grad_norm"])
        optimizer.step()
        average(averages, weights, None)
        return loss.item()

    return update


def serve(settings):
    """Measure updates as the benchmark asks for them."""
    with np.load(settings["exchange"]) as file:
        arrays = dict(file)
    fields = [torch.from_numpy(arrays[name]) for name in ("obs", "action", "reward", "discount", "first")]
    fields[1] = fields[1].long()
    batches = [[field[call, i] for field in fields] for call in range(len(fields[0])) for i in range(fields[0].shape[1])]
    sizes = {key: settings["network"][key] for key in ("context", "layers", "heads", "width")}
    online = GPTQ(fields[0].shape[-1], settings["actions"], **sizes)
    update = make_update(copy.deepcopy(online), settings["dqn"])
    choose_threads(settings["torch_threads"], lambda: [update(batch) for batch in batches[:20]])
    load_keras(online, arrays)
    update = make_update(online, settings["dqn"])
    losses = [update(batch) for batch in batches]
    tick = make_meter(dict(versions("torch", "numpy"), threads=torch.get_num_threads(), losses=losses), matmul_rate)
    done = 0
    while tick(done, done):
        update(batches[done % len(batches)])
        done += 1


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
