"""Settings of networks on games, and kinds of environments. Imports no TensorFlow."""

import dataclasses
import re
from typing import Literal

from tfdqt.errors import UsageError
from tfdqt.settings import (
    check_fractions,
    check_heads,
    check_not_negative,
    check_positive,
    check_types,
)
from tfdqt.value_scale import ValueScale

PUZZLES = ("Sokoban-", "LightsOut-", "RushHour-")  # names of environments begin so
EXPLORATION = 1.25  # c of the PUCT of a search at decision time, as MuZero's


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """How an environment is made, besides its name."""

    wrappers: tuple[str, ...] = ()
    """Wrappers put around the environment, the first one innermost: MODULE:FUNCTION, or
    'MODULE:FUNCTION(key=value)'; the module may lie in the current folder."""
    env_options: str = ""
    """Keyword arguments that it is made with, as JSON: '{"is_slippery": false}'."""
    reset_options: str = ""
    """Options that every reset is given, as JSON."""


Network = Literal["gpt", "dense", "gru"]
FEWEST_BINS = 16  # which reach values of 10,000


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The network: what it sees and how large it is."""

    network: Network = "gpt"
    """gpt: a Transformer decoder. dense: a feed-forward network over the same steps, flattened.
    gru: a recurrent network over the same steps."""
    context: int = 4
    """How many of the latest steps the network sees (1: only the present one)."""
    prev_action: bool = False
    """Whether each step also tells the action taken before it."""
    ram_bits: bool = False
    """Whether a byte observation (Atari RAM) enters as its scaled value and its 8 bits."""
    min_change: float = 0.0
    """Features that change by less than this part of their range a step, on average over what is
    seen before learning starts, are hidden (0: none is). What hardly changes tells one game from
    another, and a network learns its data by heart from it."""
    hidden_scale: float = 0.0
    """What hidden features are multiplied by: 0 and they are not seen, a little and they are
    learned from slowly. Categories, bits and bytes that are tokens can't be made smaller and are
    not seen."""
    standardize: bool = False
    """Whether each number of an observation is centred and scaled by the data seen before learning
    starts. Categories and bits, and bytes with a vector each (--tokens=features), are not."""
    dueling: bool = False
    """Whether Q is split into a state value and advantages (Wang et al., 2016)."""
    quantiles: int = 0
    """Quantiles of the return learned for each action instead of its mean (QR-DQN, Dabney et al.,
    2018); 0 or 1: only the mean."""
    value_scale: ValueScale = "linear"
    """The scale on which values are learned: linear; or, for rewards of any size, sqrt,
    sign(x) (sqrt(|x| + 1) - 1) (Pohlen et al., 2018), or log, sign(x) log(|x| + 1). What the
    network gives are values all the same."""
    reward_units: bool = False
    """Whether values are learned in units of a typical reward: the root mean square of the rewards
    seen before learning starts that are not 0, for one of which it waits (DQN only). For rewards of
    a hundredth: what the weights do at random moves a value by more than that."""
    bins: int = 0
    """Bins of a histogram of the value that is learned for each action, by cross-entropy (HL-Gauss,
    Farebrother et al., 2024), instead of a mean or quantiles; with --value-scale=log. 0: none."""
    every_step: bool | None = None
    """Whether Q is learned at every step of a window, the first with the least history, or at its
    last only; None: at every step by the gpt and the gru, at the last by the dense network."""
    tokens: Literal["steps", "features", "cells"] = "steps"
    """gpt: one token per step, one per feature of each step (such as each of 128 RAM bytes), or one
    per cell of a grid or image, [height, width] or [height, width, channels]."""
    places: Literal["history", "lag", "lag-start"] = "history"
    """gpt with --tokens=steps: what tells where a step lies: a learned vector for how many steps of
    history it has; or lag, a learned bias of each head for how many steps back another lies (after
    Raffel et al., 2020), which suits what must be remembered for a number of steps; or lag-start,
    that and a learned vector for how long ago the episode began, where its start is seen, which
    suits what must be counted."""
    patch: int = 1
    """gpt with --tokens=cells: cells of a patch of so many rows and columns share one token."""
    categories: int = 0
    """gpt with --tokens=cells: the numbers in the cells are categories, each below this; 0: as the
    space says (categories if it is discrete, or of whole numbers from 0 to less than 32)."""
    readout: Literal["step", "mean"] = "step"
    """gpt with --tokens=cells: Q is read at a token of its own for each step, or at the mean of all
    tokens of the step."""
    layers: int = 2
    """gpt: number of Transformer blocks. gru: number of GRU layers."""
    loops: int = 1
    """gpt: how many times the blocks are run, one round after another with the same weights."""
    loops_random: bool = False
    """gpt: whether each update draws the number of loops, from 1 to --loops."""
    heads: int = 4
    """gpt: number of attention heads; must divide the width."""
    width: int = 64
    """gpt: size of a token's vector. gru: size of each layer's state."""
    gru_gate: bool = False
    """gpt: whether GRU gates replace the residual additions (GTrXL, Parisotto et al., 2020)."""
    hidden: tuple[int, ...] = (256, 256)
    """dense: sizes of the hidden layers; with --residual the size of the residual stream, then the
    inner size of each block."""
    residual: bool = False
    """dense: whether its layers are residual blocks, as the feed-forward parts of a Transformer:
    x + W2 gelu(W1 norm(x))."""
    layer_norm: bool = False
    """dense: whether each hidden layer is normalised before its activation; a gpt and residual
    blocks always are. gru: whether what each layer gives is normalised."""


def learns_every_step(cfg):
    """Whether a network gives Q at every step of a window: `every_step`, or what None means."""
    return cfg.network != "dense" if cfg.every_step is None else cfg.every_step


def check_network(cfg):
    """Raise UsageError for a network that can't be built."""
    check_types(cfg)
    check_positive(cfg, "context", "layers", "loops", "patch", "heads", "width")
    if cfg.network == "gpt":
        check_heads(cfg)
    check_fractions(cfg, "min_change", "hidden_scale")
    check_not_negative(cfg, "quantiles", "categories", "bins")
    if cfg.bins and (cfg.value_scale != "log" or cfg.quantiles > 1):
        raise UsageError(
            "--bins is for --value-scale=log without --quantiles; give that, or leave it out."
        )
    if cfg.bins and cfg.reward_units:
        raise UsageError("--bins learns values of any size; leave out --reward-units.")
    if 0 < cfg.bins < FEWEST_BINS:
        raise UsageError(f"--bins must be 0 or at least {FEWEST_BINS}, not {cfg.bins}.")
    if cfg.loops_random and cfg.loops == 1:
        raise UsageError("--loops-random draws from 1 to --loops; give --loops of at least 2.")
    if cfg.tokens == "cells" and (cfg.min_change or cfg.ram_bits):
        raise UsageError(
            "--min-change and --ram-bits are for rows of numbers; leave them out with "
            "--tokens=cells."
        )
    if cfg.network == "dense" and (not cfg.hidden or min(cfg.hidden) < 1):
        raise UsageError(f"--hidden must list one or more sizes of at least 1, not {cfg.hidden}.")
    if cfg.residual and cfg.network != "dense":
        raise UsageError(
            "--residual is for --network=dense; leave it out (a gpt always has residual blocks)."
        )
    if cfg.residual and len(cfg.hidden) < 2:
        raise UsageError(
            "--residual takes the size of the stream and then of each block; give --hidden two or "
            "more sizes, such as 64 256."
        )
    if cfg.places != "history" and (cfg.network != "gpt" or cfg.tokens != "steps"):
        raise UsageError(
            "--places is for --network=gpt with --tokens=steps; leave it out without it."
        )
    cells = cfg.network == "gpt" and cfg.tokens == "cells"
    if not cells and (cfg.patch > 1 or cfg.categories or cfg.readout != "step"):
        raise UsageError(
            "--patch, --categories and --readout are for --network=gpt with --tokens=cells; leave "
            "them out without it."
        )
    # Runs from before 0.2 may have --tokens=features with a dense network, which had no effect.
    if cfg.network == "dense" and (cfg.tokens == "cells" or cfg.loops > 1):
        raise UsageError(
            "--tokens=cells and --loops are for --network=gpt; leave them out with --network=dense."
        )
    if cfg.network == "gru" and (cfg.tokens != "steps" or cfg.loops > 1 or cfg.gru_gate):
        raise UsageError(
            "--tokens, --loops and --gru-gate are for --network=gpt; leave them out with "
            "--network=gru."
        )


def check_policy_network(cfg):
    """Raise UsageError for a network of a policy that has settings for Q-values."""
    of_q = cfg.quantiles or cfg.bins or cfg.dueling or cfg.reward_units
    if of_q or cfg.every_step is not None:
        raise UsageError(
            "--quantiles, --bins, --dueling, --reward-units and --every-step are for Q-values, "
            "which a policy has none of; leave them out."
        )


def environment_kind(name):
    """The kind of an environment, by which an algorithm's DEFAULTS go: atari, cartpole or other.

    A new kind is a branch here and an entry in the DEFAULTS of each algorithm that needs one.
    """
    if re.search(r"-ram(Deterministic|NoFrameskip)?-v\d", name) or name.startswith("ALE/"):
        return "atari"
    if name.startswith("CartPole"):
        return "cartpole"
    return "other"
