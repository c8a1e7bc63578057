"""What benchmark.py measures: one row a comparison."""

import dataclasses
from typing import Literal, NamedTuple

from tfdqt.games.algorithms import default_settings
from tfdqt.games.config import NetworkConfig, learns_every_step
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.ppo import PPOConfig

RowName = Literal[
    "dense-cartpole", "dense-breakout", "gpt-update", "gpt-breakout", "ppo-cartpole", "ppo-breakout"
]
ENDLESS = 10**9  # steps of a run that ends when the measurements do


class Row(NamedTuple):
    """One comparison."""

    name: str
    env: str
    algorithm: str  # dqn or ppo
    network: NetworkConfig
    cfg: DQNConfig | PPOConfig
    unit: str  # what is counted: env steps or updates
    target: float  # the least ratio; without a counterpart the least rate
    theirs: str | None = None  # script of the counterpart
    theirs_env: dict | None = None  # its environment, as arguments of gymnasium.make


def make_rows(num_envs=None):
    """All rows by name.

    `num_envs`: environments of our side in the dense DQN rows, by default as many as tfdqt's
    default settings for them have.
    """
    cartpole = dict(id="CartPole-v1")
    breakout = dict(id="Breakout-v0", obs_type="ram")
    rows = (
        dense_dqn(
            "dense-cartpole",
            "CartPole-v1",
            cartpole,
            num_envs,
            target_every=5_000,
            batch_size=64,
            updates_per_step=0.5,
        ),
        dense_dqn(
            "dense-breakout",
            "Breakout-ram-v0",
            breakout,
            num_envs,
            target_every=2_500,
            batch_size=32,
            updates_per_step=0.25,
        ),
        gpt_update(),
        gpt_breakout(),
        dense_ppo("ppo-cartpole", "CartPole-v1", cartpole, rollout_steps=32, update_epochs=20),
        dense_ppo("ppo-breakout", "Breakout-ram-v0", breakout, entropy_weight=0.01),
    )
    return {row.name: row for row in rows}


def dense_dqn(name, env, theirs_env, num_envs, **settings):
    """A dense DQN with the settings of Stable-Baselines3's."""
    _, defaults = default_settings(env, "dqn")
    network = NetworkConfig(
        network="dense",
        context=1,
        prev_action=False,
        ram_bits=False,
        standardize=False,
        dueling=False,
        hidden=(256, 256),
    )
    cfg = DQNConfig(
        total_steps=ENDLESS,
        num_envs=num_envs or defaults.num_envs,
        chunk=defaults.chunk,
        replay_size=100_000,
        learning_starts=1_000,
        gamma=0.99,
        n_step=1,
        double=False,
        learning_rate=1e-4,
        final_learning_rate=1e-4,
        max_grad_norm=10.0,
        target_tau=1.0,
        epsilon_start=0.1,
        epsilon_end=0.1,
        reward_transform="none",
        life_loss_ends=False,
        advantage_learning=0.0,
        **settings,
    )
    return Row(name, env, "dqn", network, cfg, "env steps", 2.5, "sb3.py", theirs_env)


def dense_ppo(name, env, theirs_env, **settings):
    """A dense PPO with the settings of Stable-Baselines3's."""
    network = NetworkConfig(network="dense", context=1, hidden=(64, 64))
    cfg = PPOConfig(total_steps=ENDLESS, final_learning_rate=3e-4, **settings)
    return Row(name, env, "ppo", network, cfg, "env steps", 2.0, "sb3.py", theirs_env)


def gpt_update():
    """The GPT's update alone, as old_pytorch/ does it."""
    network = NetworkConfig(
        context=4,
        layers=2,
        heads=4,
        width=64,
        prev_action=False,
        ram_bits=False,
        standardize=False,
        dueling=False,
        tokens="steps",
        gru_gate=False,
    )
    _, defaults = default_settings("Breakout-ram-v0", "dqn")
    cfg = dataclasses.replace(
        defaults,
        batch_size=32,
        n_step=3,
        double=True,
        target_tau=0.005,
        target_every=1,
        final_learning_rate=defaults.learning_rate,
        reward_transform="none",
        advantage_learning=0.0,
        target_epsilon=0.0,
    )
    env = "Breakout-ram-v0"
    return Row("gpt-update", env, "dqn", network, cfg, "updates", 1.5, "torch_update.py")


def gpt_breakout():
    """A training run of the GPT, once epsilon has reached its end."""
    network, cfg = default_settings("Breakout-ram-v0", "dqn")
    network = dataclasses.replace(network, context=4)
    cfg = dataclasses.replace(
        cfg,
        total_steps=ENDLESS,
        epsilon_start=cfg.epsilon_end,
        batch_size=32,
        updates_per_step=0.25,
    )
    return Row("gpt-breakout", "Breakout-ram-v0", "dqn", network, cfg, "env steps", 600.0)


# --------------------------------------------------------------------------------------------------
# What a row comes to


def describe(row):
    """What is measured, in a line."""
    network = row.network
    cfg = row.cfg
    if network.network == "dense":
        size = f"MLP {list(network.hidden)}"
    else:
        size = (
            f"GPT of {network.layers} layers, width {network.width}, {network.heads} heads, "
            f"context {network.context}"
        )
    if row.algorithm == "ppo":
        way = (
            f"{cfg.num_envs} environments, rollouts of {cfg.rollout_steps} steps, "
            f"{cfg.update_epochs} passes, batch {cfg.batch_size}"
        )
    elif row.unit == "updates":
        way = f"batch {cfg.batch_size}, {cfg.n_step}-step, {updates_per_call(row)} updates a call"
    else:
        way = (
            f"batch {cfg.batch_size}, {cfg.n_step}-step, {cfg.updates_per_step:g} updates per "
            f"step, {cfg.num_envs} environments"
        )
    return f"{row.env}, {size}, {way}"


def updates_per_call(row):
    """Updates that training does in one call."""
    cfg = row.cfg
    if row.algorithm == "ppo":
        return cfg.update_epochs * cfg.num_envs * cfg.rollout_steps // cfg.batch_size
    return round(cfg.updates_per_step * cfg.chunk * cfg.num_envs)


def matmul_flops(row, info):
    """Floating point operations of the matrix products of one update.

    Lookups and GRU gates are not counted.
    """
    network = row.network
    cfg = row.cfg
    bits = network.ram_bits and info.obs_dtype == "uint8"
    features = info.obs_shape[0] * (9 if bits else 1)
    if network.network == "dense":
        sizes = (network.context * features, *network.hidden, info.num_actions)
        first, *others = (a * b for a, b in zip(sizes, sizes[1:]))
        rest = sum(others)
    else:
        width = network.width
        tokens = network.context
        first = tokens * features * width
        attended = 2 * tokens * width  # scores and weighted values
        block = (3 + 1 + 4 + 4) * width**2 + attended
        # The last block makes keys and values of every token, the rest of those read alone.
        read = tokens if learns_every_step(network) else 1
        rest = tokens * (network.layers - 1) * block + 2 * (tokens - read) * width**2
        rest += read * (block + width * info.num_actions)
    passes = 1
    if row.algorithm == "dqn":
        passes = 2 + cfg.double + (cfg.advantage_learning > 0 and cfg.gap_of == "target")
    # Backwards, each product has two: for its weights and for its input. The first layer's input
    # needs none.
    return 2 * cfg.batch_size * (passes * (first + rest) + first + 2 * rest)
