"""A trained network on games as a SavedModel that TensorFlow alone can load and call."""

import shutil
from pathlib import Path

from tfdqt.backend import quiet, tf, traced
from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.flat import mean_q
from tfdqt.games.trained import load_run
from tfdqt.losses import best_actions, log_probabilities
from tfdqt.runs.checkpoint import BEST, load_checkpoint, save_checkpoint
from tfdqt.runs.cli import read_settings
from tfdqt.runs.folder import find_run


def export_run(run_dir, out, checkpoint=None):
    """Write the network of a game run as a SavedModel to the folder `out`, and say so.

    Raises UsageError if it can't be written.
    """
    trained = load_run(run_dir, checkpoint)
    try:
        names = export_saved_model(
            trained.net, trained.weights, out, is_policy=trained.algorithm.is_policy
        )
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{out} can't be written ({reason}); name another folder.") from None
    inputs = ", ".join(
        f"{name} {[None, *tensor.shape[1:]]} {tensor.dtype}"
        for name, tensor in trained.net.model.input.items()
    )
    print(f"{out}: signatures {' and '.join(names)}; inputs {inputs}.")


def export_policy(run_dir, out, checkpoint=None):
    """Write what playing needs of a game run to the folder `out`, and say so.

    That is its config.json and the weights that act; `load_run`, and all that uses it, opens the
    folder as it opens a run. Raises UsageError if it can't be written.
    """
    folder = find_run(run_dir)
    plain = read_settings(folder)
    algorithm = ALGORITHMS[plain["algorithm"]]
    saved, _ = load_checkpoint(folder, checkpoint, best_too=True)
    learner = [None] * len(algorithm.state._fields)
    learner[algorithm.state._fields.index(algorithm.acting)] = algorithm.acting_weights(saved)
    step = saved["progress"]["step"]
    try:
        Path(out).mkdir(parents=True)
        shutil.copy(folder / "config.json", out)
    except OSError as error:
        raise UsageError(
            f"{out} can't be written ({error.strerror}); name another folder."
        ) from None
    tree = dict(learner=learner, progress=dict(step=step))
    save_checkpoint(out, step, tree, folder=BEST, kept=1)
    size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file())
    print(
        f"{out}: the policy after {step} steps, {size:,} bytes; evaluate.py and load_policy play "
        "it."
    )


def export_saved_model(net, weights, folder, *, is_policy=False):
    """Write a SavedModel with the signatures `q_values` (of a policy `policy`) and `action`.

    Both take a batch of windows under the names of the network's inputs: obs [B, C, F], first [B,
    C] int32 (1 where an episode starts; every step before it must be 1 too) and, if the network
    has it, prev_action [B, C] int32 (-1 where there is none). `q_values` gives q_values [B, A] of
    the last step, `policy` gives policy [B, A], the probabilities, and value [B]; `action` gives
    action [B] int32, the best, counted from 0. Of actions of several parts that is the number that
    numpy.ravel_multi_index gives, and A the sum of their values if there are many. Where actions
    may be illegal, the last A entries of an observation say which are legal. Returns the names of
    the signatures.
    """
    module = tf.Module()
    module.weights = tf.Variable(weights, name="weights")
    specs = {
        name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name)
        for name, tensor in net.model.input.items()
    }
    name = "policy" if is_policy else "q_values"

    @traced(input_signature=[specs])
    def numbers(inputs):
        outputs = net.apply(module.weights.value(), inputs)[:, -1]
        if is_policy:
            log_p = log_probabilities(outputs[:, :-1], net.parts)
            return dict(policy=tf.exp(log_p), value=outputs[:, -1])
        return dict(q_values=mean_q(outputs))

    @traced(input_signature=[specs])
    def action(inputs):
        return dict(action=best_actions(numbers(inputs)[name], net.parts))

    module.action = action
    setattr(module, name, numbers)
    signatures = {name: _by_keyword(numbers, specs), "action": _by_keyword(action, specs)}
    with quiet():
        tf.saved_model.save(module, str(folder), signatures=signatures)
    return tuple(signatures)


def _by_keyword(function, specs):
    """A signature takes its inputs by keyword, not as one dict."""
    by_keyword = traced(lambda **inputs: function(inputs))
    return by_keyword.get_concrete_function(**specs)
