"""The same update as `ours_cells.py` in eager PyTorch. `cells.py` starts it.

This runs in the environment of requirements-bench.txt, which has no tfdqt.
"""

import functools
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from meter import make_meter, versions
from torch import nn
from torch_update import matmul_rate


class Block(nn.Module):
    """One pre-norm Transformer block with a bias for how two cells lie: [B, T, D] -> [B, T, D]."""

    def __init__(self, width, heads, relation):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention_qkv = nn.Linear(width, 3 * width)
        self.attention_bias = nn.Parameter(torch.zeros(heads, int(relation.max()) + 1))
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.register_buffer("relation", relation, persistent=False)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.attention_qkv(self.norm1(x))
        qkv = qkv.view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, T, D/H] each
        bias = self.attention_bias[:, self.relation][None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)), approximate="tanh"))


class CellsQ(nn.Module):
    """Grids [B, F] int64 -> values [B, A], from the weights of ours by their names."""

    def __init__(self, settings, weights):
        super().__init__()
        self.side = settings["side"]
        self.loops = settings["loops"]
        width = settings["width"]
        values = len(weights["embed_cell/kernel"])
        actions = weights["q/kernel"].shape[1]
        relation = torch.from_numpy(relations(self.side))
        self.embed_cell = nn.Linear(values, width)
        self.rows = nn.Parameter(torch.zeros(self.side, 1, width))
        self.columns = nn.Parameter(torch.zeros(self.side, width))
        self.step = nn.Parameter(torch.zeros(1, width))
        blocks = [Block(width, settings["heads"], relation) for _ in range(settings["blocks"])]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, actions)
        self.values = values
        self.load(weights)

    def load(self, weights):
        """Copy the weights of ours."""
        names = dict(
            rows="embed_cell_place/rows",
            columns="embed_cell_place/columns",
            step="embed_place/kernel",
        )
        with torch.no_grad():
            for path, parameter in self.named_parameters():
                layer, _, kind = path.replace("blocks.", "block").replace(".", "_").rpartition("_")
                if "norm" in layer:
                    kind = dict(weight="gamma", bias="beta")[kind]
                kind = dict(weight="kernel").get(kind, kind)
                if path.endswith("attention_bias"):
                    layer += "_bias"
                value = weights[names.get(path, f"{layer}/{kind}")]
                value = value.T if kind == "kernel" and path not in names else value
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def forward(self, obs):
        x = self.embed_cell(F.one_hot(obs, self.values).float())
        x = x + (self.rows + self.columns).flatten(0, 1)
        x = torch.cat([x, self.step.expand(len(x), 1, -1)], 1)
        tokens = x
        for loop in range(self.loops):
            if loop:
                x = x + tokens
            for block in self.blocks:
                x = block(x)
        return self.q(self.norm(x[:, -1]))


def relations(side):
    """How any two tokens lie to each other, by number, as `tfdqt.games.tokens.relations`."""
    row, column = np.divmod(np.arange(side * side), side)
    down = row[:, None] - row[None] + side - 1
    right = column[:, None] - column[None] + side - 1
    count = (2 * side - 1) ** 2
    relation = np.full((side * side + 1,) * 2, count)
    relation[:-1, :-1] = down * (2 * side - 1) + right
    relation[-1] += 1
    relation[-1, -1] += 1
    return relation


def serve(settings):
    """Measure updates as the benchmark asks for them."""
    torch.set_num_threads(1)
    with np.load(settings["exchange"]) as file:
        arrays = dict(file)
    obs = list(torch.from_numpy(arrays.pop("obs")).long())
    targets = list(torch.from_numpy(arrays.pop("targets")))
    net = CellsQ(settings, arrays)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4, eps=1e-5, fused=True)

    def update(i):
        optimizer.zero_grad()
        loss = F.mse_loss(net(obs[i]), targets[i])
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        return loss.detach()

    losses = [np.mean([update(i).item() for i in range(len(obs))]) for _ in range(3)]
    rate = functools.partial(matmul_rate, clock=time.process_time)
    tick = make_meter(dict(versions("torch"), losses=losses), rate)
    done = 0
    while tick(done, done):
        update(done % len(obs)).item()
        done += 1


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
