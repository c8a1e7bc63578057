"""The networks of a text run as a SavedModel that TensorFlow alone can load, and as TFLite."""

import time

import numpy as np

from tfdqt.backend import quiet, tf, traced
from tfdqt.errors import UsageError
from tfdqt.text.evaluate import load_text_run
from tfdqt.text.generation import make_run_scores
from tfdqt.text.learn import hidden_at
from tfdqt.text.tokenizers import padded


def export_text_model(task, transformer, head, scores, out):
    """Write the networks of a text run as a SavedModel that TensorFlow alone can load.

    Signatures, on text [B, length] int32 token ids and at [B] int32, the token behind which to act:
    q_values -> q [B, A]; action -> action [B] int32, the best by `scores`; of a run that writes,
    the best of the tokens that are written.
    """
    never = np.zeros(len(task.actions), np.float32)
    if task.writes:
        never[task.tokenizer.all_special_ids] = -np.inf
    text = tf.TensorSpec([None, task.length], tf.int32, "text")
    at = tf.TensorSpec([None], tf.int32, "at")
    module = tf.Module()
    module.kept = [*transformer.bert.variables, *head.variables]

    @traced(input_signature=[text, at])
    def q_values(text, at):
        return dict(q=head(hidden_at(transformer, text, at)))

    @traced(input_signature=[text, at])
    def action(text, at):
        return dict(action=tf.argmax(scores(text, at) + never, axis=-1, output_type=tf.int32))

    with quiet():
        signatures = dict(q_values=q_values, action=action)
        tf.saved_model.save(module, str(out), signatures=signatures)


def export_tflite(transformer, length, out, *, quantize=True):
    """Write the encoder for one text as TFLite: int32 [1, length] -> float32 [1, length, D].

    quantize: weights as 8-bit integers (dynamic range). Returns the file's size in bytes.
    """

    @traced(input_signature=[tf.TensorSpec([1, length], tf.int32, "text")])
    def encoder(text):
        return transformer(text)

    with quiet():
        functions = [encoder.get_concrete_function()]
        converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, transformer.bert)
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        content = converter.convert()
    with open(out, "wb") as file:
        file.write(content)
    return len(content)


def compare_tflite(transformer, texts, path, *, repeats=20):
    """How a TFLite encoder compares with the live one on texts [N, T].

    Dict of max_error, mean_error, cosine, and milliseconds of both. Errors are absolute, beside
    hidden states of about unit size; times are medians for one text on this machine.
    """
    with quiet():
        interpreter = tf.lite.Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
    (inputs,) = interpreter.get_input_details()
    (outputs,) = interpreter.get_output_details()
    compiled = traced(lambda text: transformer(text))

    def lite(text):
        interpreter.set_tensor(inputs["index"], text)
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    def live(text):
        return compiled(tf.constant(text)).numpy()

    def clock(function):
        function(texts[:1])
        taken = []
        for i in range(repeats):
            start = time.perf_counter()
            function(texts[i % len(texts)][None])
            taken.append(time.perf_counter() - start)
        return 1e3 * float(np.median(taken))

    ours = np.concatenate([lite(text[None]) for text in texts])
    theirs = np.concatenate([live(text[None]) for text in texts])
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosine = (ours * theirs).sum(-1) / (norms + 1e-12)
    error = abs(ours - theirs)
    return dict(
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        cosine=float(cosine.mean()),
        tflite_ms=clock(lite),
        live_ms=clock(live),
    )


def export_run(run_dir, out, tflite=None, checkpoint=None):
    """Write a text run as a SavedModel to the folder `out`, and say so.

    tflite: also write its encoder, weights as 8-bit integers, to this file, and compare the two.
    Raises UsageError for what can't be written.
    """
    run = load_text_run(run_dir, checkpoint)
    task = run.task
    cfg = run.settings["text"]
    scores = make_run_scores(run.transformer, run.head, cfg)
    if tflite:
        texts = _texts_of(task, scores, cfg)
        try:
            size = export_tflite(run.transformer, task.length, tflite)
        except OSError as error:
            raise UsageError(
                f"{tflite} can't be written ({error.strerror or error}); name another file."
            ) from None
        compared = compare_tflite(run.transformer, texts, tflite)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in compared.items())
        print(f"{tflite}: {size:,} bytes. {numbers}")
    try:
        export_text_model(task, run.transformer, run.head, scores, out)
    except (OSError, tf.errors.OpError) as error:
        raise UsageError(
            f"{out} can't be written ({getattr(error, 'strerror', None) or error}); name another "
            "folder."
        ) from None
    print(
        f"{out}: signatures q_values and action; inputs text [None, {task.length}] int32, at "
        "[None] int32."
    )


def _texts_of(task, scores, cfg, count=32):
    """Texts of a task as token ids, [count, length]; a run that writes needs no corpus for them."""
    if not task.writes:
        return task.samples(count)
    rows = task.written(scores, cfg, count, seed=0)
    return padded(task.tokenizer, rows, task.length)
