"""The legacy proof of concept, kept for comparison: a small GPT decoder learns a game by DQN, in eager PyTorch, in one file.

    python old_pytorch/gpt_dqn.py --name=CartPole-v1 --out=log.csv
    python old_pytorch/gpt_dqn.py --name=Breakout-ram-v0 --total-steps=50000 --tokens=bytes --context=1 --out=log.csv

One environment, one process, a step and then, now and then, an update. Network and update are those of tfdqt (double Q, n-step
returns, Huber loss, clipped gradient, Adam, Polyak's average): `tests/games/test_old_pytorch.py` shows that equal weights give equal
Q-values, losses and weights after ten updates. The CSV has tfdqt's columns. It can't be resumed, and saves no weights.
"""

import argparse
import copy
import csv
import sys
import time
import warnings
from collections import deque

import ale_py
import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
    """The decoder over a window of steps: obs [B, C, F], first [B, C] bool -> Q [B, C, A] at every step.

    tokens: "steps" makes a token of every step, "bytes" one of every byte of every step.
    """

    def __init__(self, features, actions, *, context, layers, heads, width, tokens="steps"):
        super().__init__()
        self.features, self.tokens = features, tokens
        if tokens == "steps":
            self.embed_obs = nn.Linear(features, width)
        else:
            self.embed_value, self.embed_feature = nn.Embedding(256, width), nn.Embedding(features, width)
        self.embed_place = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.q = nn.LayerNorm(width), nn.Linear(width, actions)
        length = context * (1 if tokens == "steps" else features)
        self.register_buffer("causal", torch.ones(length, length, dtype=torch.bool).tril(), persistent=False)
        # GPT-2's small start.
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if name.endswith("_out.weight") else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if tokens == "steps":
            nn.init.normal_(self.embed_obs.weight, std=min(0.3, features ** -0.5))

    def forward(self, obs, first):
        batch, context = first.shape
        episode = first.cumsum(1)
        same = episode[:, :, None] == episode[:, None, :]  # [B, C, C]
        place = self.embed_place((same & self.causal[:context, :context]).sum(-1) - 1)
        if self.tokens == "steps":
            x = self.embed_obs(obs.float() / 128.0 - 1.0 if obs.dtype == torch.uint8 else obs) + place
        else:
            x = self.embed_value(obs.long()) + self.embed_feature.weight + place[:, :, None]
            x = x.flatten(1, 2)
            same = same.repeat_interleave(self.features, 1).repeat_interleave(self.features, 2)
        visible = same & self.causal
        for block in self.blocks:
            x = block(x, visible[:, None])
        if self.tokens == "bytes":  # the last byte of a step has seen the whole step
            x = x.view(batch, context, self.features, -1)[:, :, -1]
        return self.q(self.norm(x))


def load_keras(model, weights):
    """Copy the weights of `tfdqt.gpt.build_q`, by layer/variable, into `model`."""
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            layer, kind = path.replace("blocks.", "block", 1).replace(".", "_").rsplit("_", 1)
            if layer in ("embed_value", "embed_feature"):
                value = weights[f"{layer}/embeddings"]
            elif layer == "embed_place":
                value = weights["embed_place/kernel"]
            elif "norm" in layer:
                value = weights[f"{layer}/{dict(weight='gamma', bias='beta')[kind]}"]
            else:
                value = weights[f"{layer}/{dict(weight='kernel', bias='bias')[kind]}"]
                value = value.T if kind == "weight" else value
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


# ---------------------------------------------------------------------------------------------------------------------
# The update


def q_learning(online, target, cfg, obs, action, reward, discount, first):
    """The loss of one batch of steps [B, C + n, ...]: double Q, n-step, every step of the window learned at.

    -> (loss, mean of Q, mean absolute error)
    """
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
        count = mask.sum().clamp(min=1.0)
    q = online(obs[:, :context], first[:, :context]).gather(-1, action[:, :context, None]).squeeze(-1)
    loss = (mask * F.huber_loss(q, targets, reduction="none", delta=cfg["huber_delta"])).sum() / count
    with torch.no_grad():
        return loss, (mask * q).sum() / count, (mask * (q - targets).abs()).sum() / count


def make_update(online, cfg):
    """`update(batch) -> dict of loss, q_mean, td_error, grad_norm`: gradient, clipping, Adam and Polyak's target."""
    target = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters(), lr=cfg["learning_rate"], eps=cfg["adam_epsilon"], fused=True)
    weights, averages = list(online.parameters()), list(target.parameters())
    average = get_ema_multi_avg_fn(1.0 - cfg["target_tau"])

    def update(batch, part=0.0):
        """`part` of the run is done: the learning rate moves in a straight line."""
        optimizer.param_groups[0]["lr"] = cfg["learning_rate"] + part * (cfg["final_learning_rate"] - cfg["learning_rate"])
        loss, q_mean, td_error = q_learning(online, target, cfg, *batch)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, cfg["max_grad_norm"])
        optimizer.step()
        average(averages, weights, None)
        return dict(loss=loss.item(), q_mean=q_mean.item(), td_error=td_error.item(), grad_norm=norm.item())

    return update


# ---------------------------------------------------------------------------------------------------------------------
# Replay and the loop


class Replay:
    """The plain stream of one environment's steps; windows of it are drawn uniformly."""

    def __init__(self, capacity, obs_shape, obs_dtype):
        self.arrays = (np.zeros((capacity, *obs_shape), obs_dtype), np.zeros(capacity, np.int64), np.zeros(capacity, np.float32),
                       np.zeros(capacity, np.float32), np.zeros(capacity, bool))
        self.capacity, self.seen = capacity, 0

    def add(self, *step):
        for array, value in zip(self.arrays, step):
            array[self.seen % self.capacity] = value
        self.seen += 1

    def sample(self, rng, size, length):
        starts = rng.integers(max(0, self.seen - self.capacity), self.seen - length + 1, size)
        places = (starts[:, None] + np.arange(length)) % self.capacity
        return [torch.from_numpy(array[places]) for array in self.arrays]


def make_env(name):
    """A gymnasium environment; `<Game>-ram-<version>` is the game's old name for playing from RAM."""
    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        game, ram, version = name.partition("-ram-")
        return gymnasium.make(f"{game}-{version}", obs_type="ram", disable_env_checker=True) if ram else gymnasium.make(name)


def train(cfg, log=None):
    """Train and return the network: `log` is called with each row of the CSV, about a thousand in all."""
    torch.manual_seed(cfg["seed"])
    rng = np.random.default_rng(cfg["seed"])
    env = make_env(cfg["name"])
    dtype = np.uint8 if env.observation_space.dtype == np.uint8 else np.float32
    shape, actions = env.observation_space.shape, int(env.action_space.n)
    sizes = {key: cfg[key] for key in ("context", "layers", "heads", "width", "tokens")}
    online = GPTQ(shape[0], actions, **sizes)
    update = make_update(online, cfg)
    replay = Replay(cfg["replay_size"], shape, dtype)
    obs_window, first_window = np.zeros((1, cfg["context"], *shape), dtype), np.ones((1, cfg["context"]), bool)
    obs, first, total, lives, games, recent = env.reset(seed=cfg["seed"])[0], True, 0.0, 0, 0, deque(maxlen=100)
    found, updates, start, every = {}, 0, time.monotonic(), max(1, cfg["total_steps"] // 1_000)
    for step in range(1, cfg["total_steps"] + 1):
        obs_window, first_window = np.roll(obs_window, -1, 1), np.roll(first_window, -1, 1)
        obs_window[0, -1], first_window[0, -1] = obs, first
        part = min(1.0, step / (cfg["epsilon_fraction"] * cfg["total_steps"]))
        epsilon = 1.0 + part * (cfg["epsilon_end"] - 1.0)
        if rng.random() < epsilon:
            action = int(rng.integers(actions))
        else:
            with torch.no_grad():
                action = int(online(torch.from_numpy(obs_window), torch.from_numpy(first_window))[0, -1].argmax())
        behind, reward, terminated, truncated, info = env.step(action)
        lost_life, lives = info.get("lives", 0) < lives, info.get("lives", 0)
        over = terminated or (cfg["life_loss_ends"] and lost_life)
        replay.add(obs, action, reward, 0.0 if over else 1.0, first)
        obs, first, total = behind, False, total + reward
        if terminated or truncated:
            replay.add(obs, 0, 0.0, 1.0, False)  # the last observation, and a step that only resets
            recent.append(total)
            games += 1
            obs, first, total, lives = env.reset()[0], True, 0.0, 0
        if step >= cfg["learning_starts"] and step % cfg["steps_per_update"] == 0:
            batch = replay.sample(rng, cfg["batch_size"], cfg["context"] + cfg["n_step"])
            found = update(batch, step / cfg["total_steps"])
            updates += 1
        if log and step % every == 0:
            nothing = dict.fromkeys(("loss", "q_mean", "td_error", "grad_norm"), float("nan"))
            log(dict(epoch=step // every, seconds=round(time.monotonic() - start, 2), step=step, games=games,
                     mean_return=float(np.mean(recent)) if recent else float("nan"), **(found or nothing), epsilon=epsilon,
                     updates=updates))
    return online


DEFAULTS = {
    "CartPole-v1": dict(total_steps=40_000, steps_per_update=2, batch_size=64, layers=1, width=32, learning_rate=1e-3,
                        final_learning_rate=1e-4, learning_starts=1_000, replay_size=60_000, epsilon_fraction=0.1, target_tau=0.01),
    "Breakout-ram-v0": dict(total_steps=400_000, steps_per_update=4, batch_size=32, layers=2, width=64, learning_rate=3e-4,
                            final_learning_rate=1e-5, learning_starts=5_000, replay_size=400_000, epsilon_fraction=0.05,
                            target_tau=0.005),
}
COMMON = dict(context=4, heads=4, tokens="steps", gamma=0.99, n_step=3, huber_delta=1.0, adam_epsilon=1e-5, max_grad_norm=10.0,
              epsilon_end=0.02, life_loss_ends=True, seed=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="CartPole-v1", help="CartPole-v1, Breakout-ram-v0 or an environment like them")
    parser.add_argument("--out", default="log.csv", help="CSV to write")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    known = {**DEFAULTS["CartPole-v1"], **COMMON}
    for key, value in known.items():
        choices = dict(choices=("steps", "bytes")) if key == "tokens" else {}
        kind = (lambda word: word.lower() == "true") if isinstance(value, bool) else type(value)
        parser.add_argument(f"--{key.replace('_', '-')}", type=kind, **choices)
    args = vars(parser.parse_args())
    cfg = {**COMMON, **DEFAULTS["Breakout-ram-v0" if "-ram-" in args["name"] else "CartPole-v1"]}
    cfg.update({key: value for key, value in args.items() if value is not None})
    torch.set_num_threads(cfg["threads"])
    with open(cfg["out"], "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("epoch", "seconds", "step", "games", "mean_return", "loss", "q_mean", "td_error", "grad_norm",
                                       "epsilon", "updates"))
        writer.writeheader()

        def log(row):
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
            file.flush()
            print(f"\rEpoch: {row['epoch']} | {row['step']} | {row['loss']:.3f} | {row['mean_return']:.3f} | "
                  f"games played: {row['games']}", end="", file=sys.stderr)

        train(cfg, log)
    print(file=sys.stderr)


if __name__ == "__main__":
    main()
