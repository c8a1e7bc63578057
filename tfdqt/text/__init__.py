"""Q-learning on texts: a pruned BERT, a head that values next words, and tasks to learn.

    from tfdqt.text import DeepQLearningModel, ExperienceReplay, PrunedTransformerModel, train_model

What is listed in `__all__` is loaded when it is first asked for, so that settings, and `--help`,
need no TensorFlow.
"""

import importlib

_MODULES = {
    "DeepQLearningModel": "head",
    "Episode": "replay",
    "ExperienceReplay": "replay",
    "PrunedTransformerModel": "encoder",
    "TextConfig": "config",
    "TextNetworkConfig": "config",
    "Transition": "replay",
    "custom_loss": "learn",
    "generate": "generation",
    "make_tokenizer": "tokenizers",
    "make_word_scores": "generation",
    "sparsity": "encoder",
    "text_loader": "tasks.corpus",
    "train_model": "learn",
}

__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
