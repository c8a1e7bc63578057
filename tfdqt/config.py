"""Settings: one frozen dataclass per algorithm and per network. Imports no TensorFlow, so `--help` is instant."""

import dataclasses
import json
import os
import types
import typing
from typing import Literal


class UsageError(ValueError):
    """Something the user asked for can't be done. The message is one sentence that says what to do."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The Q-network: what it sees and how large it is."""

    network: Literal["gpt", "dense"] = "gpt"
    """gpt: a Transformer decoder. dense: a feed-forward network over the same steps, flattened."""
    context: int = 4
    """How many of the latest steps the network sees (1: only the present one)."""
    prev_action: bool = False
    """Whether each step also tells the action taken before it."""
    ram_bits: bool = False
    """Whether a byte observation (Atari RAM) enters as its 8 bits beside its scaled value."""
    min_change: float = 0.0
    """Features that change by less than this part of their range a step, on average over what is seen before learning starts, are
    hidden (0: none is). What hardly changes tells one game from another, and a network learns its data by heart from it."""
    hidden_scale: float = 0.0
    """What hidden features are multiplied by: 0 and they are not seen, a little and they are learned from slowly. Categories, bits
    and bytes that are tokens can't be made smaller and are not seen."""
    standardize: bool = False
    """Whether each number of an observation is centred and scaled by the data seen before learning starts."""
    dueling: bool = False
    """Whether Q is split into a state value and advantages (Wang et al., 2016)."""
    quantiles: int = 0
    """Quantiles of the return learned for each action instead of its mean (QR-DQN, Dabney et al., 2018); 0: only the mean."""
    every_step: bool | None = None
    """Whether Q is learned at every step of a window, the first with the least history, or at its last only; None: at every step by the
    gpt, at the last by the dense network."""
    tokens: Literal["steps", "features"] = "steps"
    """gpt: one token per step, or one per feature of each step (such as each of 128 RAM bytes)."""
    layers: int = 2
    """gpt: number of Transformer blocks."""
    heads: int = 4
    """gpt: number of attention heads; must divide the width."""
    width: int = 64
    """gpt: size of a token's vector."""
    gru_gate: bool = False
    """gpt: whether GRU gates replace the residual additions (GTrXL, Parisotto et al., 2020)."""
    hidden: tuple[int, ...] = (256, 256)
    """dense: sizes of the hidden layers."""


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """Deep Q-learning (Mnih et al., 2015) with double Q, n-step returns and a sequence replay."""

    total_steps: int = 60_000
    """Environment steps in the whole run, over all environments."""
    num_envs: int = 8
    """Environments stepped in lockstep; each owns a row of the replay buffer."""
    chunk: int = 8
    """Steps per environment between two hand-overs of weights and data; acting lags learning by as much."""
    updates_per_step: float = 0.25
    """Gradient updates per environment step."""
    batch_size: int = 32
    """Windows per update."""
    replay_size: int = 1_000_000
    """Environment steps kept in the replay buffer."""
    learning_starts: int = 1_000
    """Environment steps before the first update."""
    gamma: float = 0.99
    """Discount per environment step."""
    n_step: int = 3
    """Rewards summed before the bootstrap."""
    advantage_learning: float = 0.0
    """How much of the gap between the best action and the one taken is subtracted from its target, so that actions stay
    apart where they matter little (Bellemare et al., 2016); 0: none."""
    target_epsilon: float = 0.0
    """Probability of a random action in the policy whose values are learned (expected Sarsa, van Seijen et al., 2009), so that it
    learns to play where slips happen; 0: the best action's value alone, as Q-learning."""
    double: bool = True
    """Whether the online network chooses the action that the target network values (van Hasselt et al., 2016)."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    final_learning_rate: float = 3e-4
    """Adam's step size at the end; it moves in a straight line between the two."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 10.0
    """The gradient's global norm is clipped to this."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from squared to linear."""
    target_tau: float = 0.005
    """How far the target moves towards the online network (1: a copy)."""
    target_every: int = 1
    """Updates between two moves of the target."""
    acting_tau: float = 1.0
    """How far the weights that choose actions, in training and evaluation, move towards the online network after each update
    (1: they are the online network's); an average of many updates plays better while the learning rate is high."""
    epsilon_start: float = 1.0
    """Probability of a random action at the start."""
    epsilon_end: float = 0.02
    """Probability of a random action after the schedule."""
    epsilon_fraction: float = 0.1
    """Part of the run over which epsilon falls in a straight line."""
    reward_transform: Literal["none", "sign"] = "none"
    """What the learner sees of a reward: all of it, or only its sign."""
    life_loss_ends: bool = False
    """Whether a lost life ends the return in training (games with lives only); logged returns stay whole games."""


@dataclasses.dataclass(frozen=True)
class FarConfig:
    """What takes a run past one process and one device."""

    actors: int = 0
    """Actors, which share the environments evenly, each in a process of Ray (0: none; the run's own worker processes step them)."""
    ray_address: str | None = None
    """Ray cluster to join, auto or HOST:PORT; by default Ray is started on this machine, reachable from nowhere else."""
    broadcast_every: int = 64
    """With actors: updates between two broadcasts of the weights to them."""
    strategy: Literal["none", "mirrored", "multiworker"] = "none"
    """mirrored: every batch is shared by all GPUs of this machine (tf.distribute.MirroredStrategy), and their gradients added up.
    multiworker: also by several processes, here or elsewhere, which the environment variable TF_CONFIG names."""


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al., 2017) on rollouts of many environments."""

    total_steps: int = 200_000
    """Environment steps in the whole run, over all environments."""
    num_envs: int = 8
    """Environments stepped in lockstep."""
    rollout_steps: int = 128
    """Steps per environment between two rounds of learning."""
    update_epochs: int = 4
    """Passes over a rollout."""
    batch_size: int = 256
    """Steps per update; must divide num_envs x rollout_steps."""
    gamma: float = 0.99
    """Discount per environment step."""
    gae_lambda: float = 0.95
    """How far advantages look ahead: 0 one step, 1 the whole return (Schulman et al., 2016)."""
    clip: float = 0.2
    """How far the ratio of new to old probability may leave 1 before it no longer pays."""
    final_clip: float = 0.2
    """The same at the end of the run; it moves in a straight line between the two."""
    value_clip: float | None = None
    """How far a value may leave its old one before it no longer pays; None: as far as it likes."""
    value_weight: float = 0.5
    """Weight of the squared error of values."""
    entropy_weight: float = 0.0
    """Weight of the policy's entropy."""
    normalize_advantages: bool = True
    """Whether the advantages of a batch are brought to mean 0 and deviation 1."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    final_learning_rate: float = 0.0
    """Adam's step size at the end; it moves in a straight line between the two."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 0.5
    """The gradient's global norm is clipped to this."""
    reward_transform: Literal["none", "sign"] = "none"
    """What the learner sees of a reward: all of it, or only its sign."""
    life_loss_ends: bool = False
    """Whether a lost life ends the return in training (games with lives only); logged returns stay whole games."""


@dataclasses.dataclass(frozen=True)
class TextNetworkConfig:
    """The text encoder and the head on it."""

    encoder: str | None = None
    """Hugging Face name or folder of a pretrained encoder; without it a new BERT of the sizes below."""
    layers: int = 2
    """New BERT: number of blocks."""
    heads: int = 4
    """New BERT: number of attention heads; must divide the width."""
    width: int = 128
    """New BERT: size of a token's vector."""
    hidden: tuple[int, ...] = (256,)
    """Sizes of the head's hidden layers."""
    dueling: bool = False
    """Whether Q is a value of the state and, around it, advantages of mean 0 (Wang et al., 2016)."""
    saturating: bool = False
    """wordle: whether the sum over a word's letters counts by its softplus only, which is 0 for all that is ruled out, by however many
    letters."""
    pruning_amount: float = 0.2
    """Part of the weights in every Dense kernel of the encoder that is set to zero (0: none)."""
    pruning_schedule: Literal["constant", "polynomial"] = "constant"
    """constant: pruned from the start. polynomial: rising from 0 over the first `pruning_end` updates."""
    pruning_end: int = 1_000
    """Updates until a polynomial schedule reaches its amount."""
    pruning_pattern: Literal["unstructured", "block", "2:4"] = "unstructured"
    """Which weights are zeroed together."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Q-learning on texts: double Q, or implicit Q with a cloned policy."""

    method: Literal["q", "implicit", "clone", "filtered", "montecarlo"] = "q"
    """q: double Q-learning. implicit: expectile values (IQL). clone: imitate. filtered: imitate the best. montecarlo: learn returns."""
    updates_per_batch: int = 8
    """Updates after each batch of new data."""
    batch_size: int = 256
    """Transitions, or episodes, per update."""
    replay_size: int = 200_000
    """Transitions, or episodes, kept in the replay buffer."""
    gamma: float = 0.99
    """Discount per decision."""
    learning_rate: float = 1e-3
    """Adam's step size at the start."""
    final_learning_rate: float = 1e-4
    """Adam's step size at the end; it moves in a straight line between the two."""
    max_grad_norm: float = 1.0
    """The gradient's global norm is clipped to this."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from squared to linear."""
    target_tau: float = 0.02
    """How far the target networks move towards the online ones after each update."""
    advantage_learning: float = 0.0
    """q: how much of the gap between the best action and the one taken is subtracted from its target, so that actions stay apart
    where they matter little (Bellemare et al., 2016); 0: none."""
    plausible: float = 0.0
    """q: in targets, and without --beta when acting, only actions are chosen whose probability under the cloned policy is at least this
    part of the likeliest one's (discrete BCQ; Fujimoto et al., 2019); needs --cloning. 0: all may be."""
    conservative: float = 0.0
    """Weight of CQL's conservative term (Kumar et al., 2020)."""
    expectile: float = 0.8
    """implicit: the expectile of Q that the state's value follows."""
    cloning: float = 0.0
    """Weight of cloning the data's policy beside Q-learning."""
    advantage_weighting: float = 0.0
    """implicit: actions count exp(this x advantage) when they are cloned, so that better ones are (Peng et al., 2019); 0: all alike."""
    keep_best: float = 0.1
    """filtered: part of the episodes, those of the highest return, that is imitated."""
    greedy: bool = True
    """Whether the best action is taken when acting; otherwise one is drawn in proportion to the policy, or to exp(Q)."""
    temperature: float = 1.0
    """With --no-greedy: how evenly actions are drawn; the logarithms of what they are drawn in proportion to are divided by it."""
    beta: float | None = None
    """How strongly the advantage steers the cloned policy when acting: policy x exp(beta x advantage). None: by Q alone."""


CARTPOLE = dict(context=4, layers=1, heads=4, width=32)
DQN = {  # by the kind of environment
    "cartpole": dict(
        network=CARTPOLE,
        cfg=dict(total_steps=30_000, updates_per_step=0.5, batch_size=64, learning_rate=1e-3, final_learning_rate=1e-4,
                 n_step=3, advantage_learning=0.9, learning_starts=1_000, replay_size=200_000, epsilon_fraction=0.1, target_tau=0.01,
                 acting_tau=0.005)),
    "atari": dict(
        network=dict(context=4, layers=2, heads=4, width=64, quantiles=16, dueling=True, min_change=0.001, hidden_scale=0.03),
        cfg=dict(total_steps=1_000_000, num_envs=16, chunk=4, updates_per_step=0.25, batch_size=32, learning_rate=3e-4,
                 final_learning_rate=1e-5, learning_starts=5_000, replay_size=1_000_000, epsilon_end=0.05, target_epsilon=0.05,
                 epsilon_fraction=0.02, life_loss_ends=True, advantage_learning=0.9, target_tau=0.05, acting_tau=0.005)),
    "other": dict(network={}, cfg=dict(total_steps=200_000)),
}
PPO = {
    "cartpole": dict(network=CARTPOLE,
                     cfg=dict(total_steps=99_840, rollout_steps=32, update_epochs=20, gamma=0.98, gae_lambda=0.8, learning_rate=1e-3,
                              final_clip=0.0)),
    "atari": dict(network=dict(context=4, layers=2, heads=4, width=64, min_change=0.001, hidden_scale=0.03),
                  cfg=dict(total_steps=1_000_000, num_envs=16, update_epochs=10, batch_size=512, clip=0.1, final_clip=0.0,
                           entropy_weight=0.01, learning_rate=5e-4, life_loss_ends=True)),
    "other": dict(network={}, cfg={}),
}


def _kind(name):
    return "atari" if "-ram" in name or name.startswith("ALE/") else "cartpole" if name.startswith("CartPole") else "other"


def default_config(name, algorithm="dqn"):
    """The defaults for environment `name` and algorithm dqn or ppo: (NetworkConfig, DQNConfig or PPOConfig)."""
    chosen, cls = (DQN, DQNConfig) if algorithm == "dqn" else (PPO, PPOConfig)
    return NetworkConfig(**chosen[_kind(name)]["network"]), cls(**chosen[_kind(name)]["cfg"])


def default_parallel(name, algorithm="dqn"):
    """How many processes step the environments and how many threads TensorFlow has, by default: dict of workers and threads.

    DQN learns while they step and leaves a core to itself. PPO does one after the other: an emulator may take every core, but
    CartPole steps faster than a message reaches a process, and a small network is quickest without handing over to a second thread.
    """
    cores = max(1, os.cpu_count() or 1)
    if algorithm == "dqn":
        return dict(workers=max(1, cores - 1), threads=cores)
    return dict(workers=0, threads=1) if _kind(name) == "cartpole" else dict(workers=cores, threads=cores)


METHODS = typing.get_args(TextConfig.__annotations__["method"])
VALUED = ("q", "implicit", "montecarlo")  # methods that learn values, by which a cloned policy can be steered
ONLY = dict(cloning=VALUED, beta=VALUED, plausible=("q",), advantage_learning=("q",), advantage_weighting=("implicit",))
TEXT = {
    "maze": dict(epochs=2, network=dict(width=64, hidden=(128,)), text=dict(batch_size=64, gamma=0.95, target_tau=0.05)),
    "maze-po": dict(epochs=8, network=dict(width=64, hidden=(128,)),
                    text=dict(batch_size=64, gamma=0.95, target_tau=0.05, final_learning_rate=1e-5, huber_delta=100.0, max_grad_norm=100.0,
                              greedy=False, temperature=0.3)),
    "wordle": dict(epochs=6, episodes=1_000_000, network=dict(width=64, dueling=True, saturating=True),
                   text=dict(batch_size=128, learning_rate=2e-3, final_learning_rate=1e-5, cloning=1.0, plausible=0.3, beta=12.0)),
    "corpus": dict(epochs=2, network={},
                   text=dict(method="implicit", batch_size=64, cloning=1.0, beta=4.0, greedy=False, updates_per_batch=16)),
}


def default_text_config(task, method=None):
    """The defaults for a text task: (dict of epochs and episodes, TextNetworkConfig, TextConfig).

    With another method than the task's own, settings which that method does not have are as if not given.
    """
    chosen = TEXT.get(task, TEXT["maze"])
    text = TextConfig(**chosen["text"])
    if method is not None:
        text = dataclasses.replace(text, method=method,
                                   **{field: getattr(TextConfig, field) for field, methods in ONLY.items() if method not in methods})
    return dict(epochs=chosen["epochs"], episodes=chosen.get("episodes", 0)), TextNetworkConfig(**chosen["network"]), text


def save_config(path, **parts):
    """Write dataclasses and plain values to a JSON file, one key each."""
    plain = {key: dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for key, part in parts.items()}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(plain, file, indent=2)
        file.write("\n")


def load_config(path, **classes):
    """Read what `save_config` wrote; `classes` maps a key to its dataclass, other keys come back as they are.

    Strict: an unknown or mistyped field raises UsageError. A field that is missing came after the run and takes its class's default,
    which must therefore be what runs did before there was that field.
    """
    try:
        with open(path, encoding="utf-8") as file:
            plain = json.load(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as a run's settings ({error}); give the folder of a run.") from None
    if not isinstance(plain, dict) or set(classes) - set(plain):
        raise UsageError(f"{path} does not hold the settings of such a run; give the folder of a run.")
    return {key: _strict(classes[key], value, path) if key in classes else value for key, value in plain.items()}


def _strict(cls, value, path):
    hints = typing.get_type_hints(cls)
    odd = sorted(set(value) - set(hints)) if isinstance(value, dict) else ["everything"]
    if odd:
        raise UsageError(f"{path}: {cls.__name__} has unknown fields: {', '.join(odd)}.")
    fields = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    for key, item in fields.items():
        if not _fits(item, hints[key]):
            raise UsageError(f"{path}: {cls.__name__}.{key} can't be {item!r}; it takes {hints[key]}.")
    return cls(**fields)


def _fits(value, hint):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))
