"""A trained network as a SavedModel that TensorFlow alone can load and call."""

import time

import numpy as np

from tfdqt.backend import quiet, tf


def export_saved_model(networks, weights, folder, *, algorithm="dqn"):
    """Write a SavedModel with the signatures `q_values` (of a policy `policy`) and `action`.

    Both take a batch of windows under the names of the network's inputs: obs [B, C, F], first [B, C] int32 (1 where an
    episode starts; every place before it must be 1 too) and, if the network has it, prev_action [B, C] int32 (-1 where
    there is none). `q_values` gives q_values [B, A] of the last step, `policy` gives policy [B, A], the probabilities, and
    value [B]; `action` gives action [B] int32, the best. Returns the names of the signatures.
    """
    module = tf.Module()
    module.weights = tf.Variable(weights, name="weights")
    specs = {name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name) for name, tensor in networks.model.input.items()}

    name = "policy" if algorithm == "ppo" else "q_values"

    @tf.function(input_signature=[specs], autograph=False)
    def numbers(inputs):
        if algorithm == "ppo":
            out = networks.raw(module.weights.value(), inputs)[:, -1]
            return dict(policy=tf.nn.softmax(out[:, :-1]), value=out[:, -1])
        return dict(q_values=networks.apply(module.weights.value(), inputs)[:, -1])

    @tf.function(input_signature=[specs], autograph=False)
    def action(inputs):
        return dict(action=tf.argmax(numbers(inputs)[name], axis=-1, output_type=tf.int32))

    module.action = action
    setattr(module, name, numbers)
    signatures = {name: _by_keyword(numbers, specs), "action": _by_keyword(action, specs)}
    with quiet():
        tf.saved_model.save(module, str(folder), signatures=signatures)
    return tuple(signatures)


def _by_keyword(function, specs):
    """A signature takes its inputs by keyword, not as one dict."""
    return tf.function(lambda **inputs: function(inputs), autograph=False).get_concrete_function(**specs)


def export_text_model(task, transformer, head, scores, out):
    """Write the networks of a text run as a SavedModel that TensorFlow alone can load.

    Signatures, on text [B, length] int32 token ids and at [B] int32, the token behind which to act: q_values -> q [B, A];
    action -> action [B] int32, the best by `scores`.
    """
    text, at = tf.TensorSpec([None, task.length], tf.int32, "text"), tf.TensorSpec([None], tf.int32, "at")
    module = tf.Module()
    module.kept = [*transformer.bert.variables, *head.variables]

    @tf.function(input_signature=[text, at])
    def q_values(text, at):
        return dict(q=head(tf.gather(transformer(text), at, axis=1, batch_dims=1)))

    @tf.function(input_signature=[text, at])
    def action(text, at):
        return dict(action=tf.argmax(scores(text, at), axis=-1, output_type=tf.int32))

    with quiet():
        tf.saved_model.save(module, str(out), signatures=dict(q_values=q_values, action=action))


def export_tflite(transformer, length, out, *, quantize=True):
    """Write the encoder for one text of `length` tokens as TFLite: int32 [1, length] -> float32 [1, length, D].

    quantize: weights as 8-bit integers (dynamic range). Returns the file's size in bytes.
    """
    @tf.function(input_signature=[tf.TensorSpec([1, length], tf.int32, "text")])
    def encoder(text):
        return transformer(text)

    with quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([encoder.get_concrete_function()], transformer.bert)
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        content = converter.convert()
    with open(out, "wb") as file:
        file.write(content)
    return len(content)


def compare_tflite(transformer, texts, path, *, repeats=20):
    """How a TFLite encoder compares with the live one on texts [N, T]: dict of max_error, mean_error, cosine, milliseconds of both.

    Errors are absolute, beside hidden states of about unit size; times are medians for one text on this machine.
    """
    with quiet():
        interpreter = tf.lite.Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    live = tf.function(lambda text: transformer(text))

    def lite(text):
        interpreter.set_tensor(given["index"], text)
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])

    def clock(function):
        function(texts[:1])
        taken = []
        for i in range(repeats):
            start = time.perf_counter()
            function(texts[i % len(texts)][None])
            taken.append(time.perf_counter() - start)
        return 1e3 * float(np.median(taken))

    pairs = [(lite(text[None]), live(tf.constant(text[None])).numpy()) for text in texts]
    ours, theirs = (np.concatenate(side) for side in zip(*pairs))
    cosine = (ours * theirs).sum(-1) / (np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1) + 1e-12)
    return dict(max_error=float(abs(ours - theirs).max()), mean_error=float(abs(ours - theirs).mean()), cosine=float(cosine.mean()),
                tflite_ms=clock(lite), live_ms=clock(lambda text: live(tf.constant(text)).numpy()))
