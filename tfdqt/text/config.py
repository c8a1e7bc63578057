"""Settings of text runs and what can't be. Imports no TensorFlow, so `--help` is instant.

What a task changes in the defaults stands with the task, see `tasks.table`.
"""

import dataclasses
import typing
from typing import Literal

from tfdqt.errors import UsageError
from tfdqt.settings import (
    check_fractions,
    check_heads,
    check_not_negative,
    check_positive,
    check_types,
)


@dataclasses.dataclass(frozen=True)
class TextNetworkConfig:
    """The text encoder and the head on it."""

    encoder: str | None = None
    """Hugging Face name or folder of a pretrained encoder; without it a new BERT of the sizes
    below."""
    layers: int = 2
    """New BERT: number of blocks."""
    heads: int = 4
    """New BERT: number of attention heads; must divide the width."""
    width: int = 128
    """New BERT: size of a token's vector."""
    hidden: tuple[int, ...] = (256,)
    """Sizes of the head's hidden layers."""
    language_head: bool = False
    """With --encoder: whether the cloned policy starts as the encoder's own language model, if it
    has one; then it is that model's matrix and has no hidden layers."""
    dueling: bool = False
    """Whether Q is a value of the state and, around it, advantages of mean 0 (Wang et al.,
    2016)."""
    saturating: bool = False
    """wordle: whether the sum over a word's letters counts by its softplus only, which is 0 for all
    that is ruled out, by however many letters."""
    pruning_amount: float = 0.2
    """Part of the weights in every Dense kernel of the encoder that is set to zero (0: none)."""
    pruning_schedule: Literal["constant", "polynomial"] = "constant"
    """constant: pruned from the start. polynomial: rising from 0 over the first `pruning_end`
    updates."""
    pruning_end: int = 1_000
    """Updates until a polynomial schedule reaches its amount."""
    pruning_pattern: Literal["unstructured", "block", "2:4"] = "unstructured"
    """Which weights are zeroed together."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Q-learning on texts: double Q, or implicit Q with a cloned policy."""

    method: Literal["q", "implicit", "clone", "filtered", "montecarlo"] = "q"
    """q: double Q-learning. implicit: expectile values (IQL). clone: imitate. filtered: imitate the
    best. montecarlo: learn returns."""
    updates_per_batch: int = 8
    """Updates after each batch of new data."""
    batch_size: int = 256
    """Transitions, or episodes, per update."""
    replay_size: int = 200_000
    """Transitions, or episodes, kept in the replay buffer."""
    gamma: float = 0.99
    """Discount per decision."""
    reward_at: Literal["word", "end"] = "word"
    """corpus: whether a word's reward is what it adds to the worth of the text, whose every
    beginning is looked at, or all of it comes with the last word, which --method=montecarlo learns
    from and one-step targets hardly do."""
    reward_units: bool = False
    """Whether values are learned in units of a typical reward, the root mean square of those of the
    first batch that are not 0, so that the size of a reward does not matter (of montecarlo, whose
    rewards are returns, a typical return); beta, temperature, advantage_weighting, huber_delta and
    conservative count in it too."""
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
    """q: how much of the gap between the best action and the one taken is subtracted from its
    target, so that actions stay apart where they matter little (Bellemare et al., 2016); 0:
    none."""
    plausible: float = 0.0
    """q: in targets, and without --beta when acting, only actions are chosen whose probability
    under the cloned policy is at least this part of the likeliest one's (discrete BCQ; Fujimoto et
    al., 2019); needs --cloning. 0: all may be."""
    conservative: float = 0.0
    """Weight of CQL's conservative term (Kumar et al., 2020)."""
    expectile: float = 0.8
    """implicit: the expectile of Q that the state's value follows."""
    cloning: float = 0.0
    """Weight of cloning the data's policy beside Q-learning."""
    advantage_weighting: float = 0.0
    """implicit: actions count exp(this x advantage) when they are cloned, so that better ones are
    (Peng et al., 2019); 0: all alike."""
    keep_best: float = 0.1
    """filtered: part of the episodes, those of the highest return, that is imitated; of a corpus,
    which is streamed, of each --new-items."""
    greedy: bool = True
    """Whether the best action is taken when acting; otherwise one is drawn in proportion to the
    policy, or to exp(Q), in typical rewards with reward_units."""
    temperature: float = 1.0
    """With --no-greedy: how evenly actions are drawn; the logarithms of what they are drawn in
    proportion to are divided by it."""
    beta: float | None = None
    """How strongly the advantage, in typical rewards with reward_units, steers the cloned policy
    when acting: policy x exp(beta x advantage). None: by Q alone."""


METHODS = typing.get_args(TextConfig.__annotations__["method"])
IMITATING = ("clone", "filtered")  # methods that learn no values
VALUED = tuple(method for method in METHODS if method not in IMITATING)
METHODS_OF = {  # settings that only some methods have
    "cloning": VALUED,
    "beta": VALUED,
    "plausible": ("q",),
    "advantage_learning": ("q",),
    "advantage_weighting": ("implicit",),
}


def with_method(cfg, method):
    """A TextConfig with another method; settings that it doesn't have are as if not given."""
    reset = {
        field: getattr(TextConfig, field)
        for field, methods in METHODS_OF.items()
        if method not in methods
    }
    return dataclasses.replace(cfg, method=method, **reset)


def check_text_network(cfg):
    """Raise UsageError for an encoder and head that can't be built."""
    check_types(cfg)
    check_positive(cfg, "layers", "heads", "width", "pruning_end")
    if any(size < 1 for size in cfg.hidden):
        raise UsageError(f"--hidden must be sizes of at least 1, not {cfg.hidden}.")
    if cfg.encoder is None:
        check_heads(cfg)
    if not 0 <= cfg.pruning_amount < 1:
        raise UsageError(
            f"--pruning-amount must be at least 0 and less than 1, not {cfg.pruning_amount}."
        )


def check_text(cfg):
    """Raise UsageError for settings Q-learning on texts can't run with."""
    check_types(cfg)
    check_positive(
        cfg,
        "updates_per_batch",
        "batch_size",
        "replay_size",
        "learning_rate",
        "final_learning_rate",
        "max_grad_norm",
        "huber_delta",
        "temperature",
    )
    check_fractions(
        cfg, "gamma", "target_tau", "expectile", "keep_best", "advantage_learning", "plausible"
    )
    check_not_negative(cfg, "conservative", "cloning", "advantage_weighting")
    if cfg.advantage_learning and cfg.method != "q":
        raise UsageError(
            "--advantage-learning changes the targets of Q-learning; it needs --method=q."
        )
    if cfg.plausible and not (cfg.method == "q" and cfg.cloning):
        raise UsageError(
            "--plausible asks the cloned policy what Q-learning may choose; it needs --method=q "
            "and --cloning, or give --plausible=0."
        )
    if cfg.plausible and cfg.advantage_learning:
        raise UsageError(
            "--advantage-learning measures gaps to the best of all actions, plausible or not; "
            "leave out one of the two (--plausible=0 does)."
        )
    if cfg.advantage_weighting and not (cfg.method == "implicit" and cfg.cloning):
        raise UsageError(
            "--advantage-weighting weighs what is cloned by implicit values; it needs "
            "--method=implicit and --cloning."
        )
    if cfg.beta is not None:
        check_not_negative(cfg, "beta")
    if cfg.beta is not None and not cfg.cloning and cfg.method not in IMITATING:
        raise UsageError(
            "--beta steers a cloned policy, which is only learned with --cloning greater than 0; "
            "or give --beta=None."
        )
