"""Decoders of LLaMA's kind: equal to PyTorch's, read from whole, split and half-precision files."""

import importlib.util
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import safetensors.numpy

from tests.helpers import InFolder
from tfdqt import memory
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.text.config import TextNetworkConfig
from tfdqt.text.encoder import (
    PrunedTransformerModel,
    dense_kernels,
    language_head,
    load_encoder,
    sparsity,
)
from tfdqt.text.head import build_text_networks
from tfdqt.text.llama import frequencies

import transformers  # isort: skip  (behind tfdqt, which sets the Keras it uses)

HAS_TORCH = importlib.util.find_spec("torch") is not None
PYTHON = os.environ.get("OLD_PYTORCH_PYTHON") or (sys.executable if HAS_TORCH else None)
SMALL = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
)
STRETCHED = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
# name -> class of the config, what differs from SMALL
MODELS = {
    "llama2": ("Llama", {}),
    "llama3": (
        "Llama",
        dict(
            num_key_value_heads=2,
            rope_theta=500_000.0,
            rope_scaling=STRETCHED,
            tie_word_embeddings=True,
        ),
    ),
    "mistral": ("Mistral", dict(num_key_value_heads=2)),
    "qwen2": ("Qwen2", dict(num_key_value_heads=2)),
    "qwen3": ("Qwen3", dict(num_key_value_heads=2, head_dim=16)),
    "gemma": ("Gemma", dict(num_key_value_heads=1, head_dim=16)),
}
# Runs where PyTorch is, with the transformers of this environment.
OTHER_SIDE = """
import json, os, sys
os.environ.update(USE_TF="0", USE_JAX="0")
folder, models, small, packages = sys.argv[1:]
sys.path.append(packages)
import numpy as np, torch, transformers
for name, (kind, more) in json.loads(models).items():
    torch.manual_seed(0)
    config = getattr(transformers, kind + "Config")(**json.loads(small), **more)
    model = getattr(transformers, kind + "ForCausalLM")(config).eval()
    for weight in model.parameters():
        if weight.ndim == 1:  # else norms are all one, and biases zero
            weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(f"{folder}/{name}", max_shard_size="20KB")
    ids = torch.randint(3, config.vocab_size, (2, 9))
    with torch.no_grad():
        logits = model(ids).logits.numpy()
    np.savez(f"{folder}/{name}.npz", ids=ids.numpy(), logits=logits)
"""


def config_of(name, **more):
    kind, differs = MODELS[name]
    return getattr(transformers, f"{kind}Config")(**{**SMALL, **differs, **more})


class TestDecoder(InFolder):
    @unittest.skipIf(PYTHON is None, "needs PyTorch; see old_pytorch/requirements.txt")
    def test_equal_to_transformers_in_pytorch(self):
        """From split files that PyTorch wrote, every kind's words are worth the same."""
        packages = str(Path(transformers.__file__).parents[1])
        given = (str(self.tmp), json.dumps(MODELS), json.dumps(SMALL), packages)
        subprocess.run([PYTHON, "-c", OTHER_SIDE, *given], check=True, capture_output=True)
        for name in MODELS:
            with self.subTest(name):
                said = np.load(self.tmp / f"{name}.npz")
                source = str(self.tmp / name)
                encoder = load_encoder(source)
                hidden = encoder(input_ids=tf.constant(said["ids"], tf.int32)).last_hidden_state
                logits = hidden.numpy() @ language_head(source, encoder)
                np.testing.assert_allclose(logits, said["logits"], atol=1e-5)

    def test_what_is_written_is_read_again(self):
        text = tf.constant([[3, 7, 9, 4]])
        for name in ("llama3", "qwen2", "qwen3", "gemma"):
            with self.subTest(name):
                model = PrunedTransformerModel(config_of(name), 0.5)
                self.assertTrue(model.causal)
                self.assertEqual((model.context, model.vocabulary), (64, 50))
                self.assertEqual(len(dense_kernels(model.bert)), 2 * 7)
                model.save_pretrained(self.tmp / name)
                again = PrunedTransformerModel(str(self.tmp / name), 0.0)
                np.testing.assert_array_equal(again(text), model(text))
                self.assertAlmostEqual(sparsity(again), 0.5, delta=0.01)
                np.testing.assert_array_equal(model.copy()(text), model(text))
                self.assertIsNone(language_head(str(self.tmp / name), again.bert))  # it has none

    def test_padding_behind_a_text_changes_nothing_in_it(self):
        config = config_of("llama3", pad_token_id=0)
        model = PrunedTransformerModel(config, 0.2)
        texts = tf.constant([[3, 7, 9, 0], [3, 7, 9, 8]])
        self.assertLess(np.abs(np.subtract(*model(texts)[:, :3])).max(), 1e-6)

    def test_keys_and_values_that_were_kept(self):
        model = load_encoder(config_of("llama3"))
        text = tf.constant([[3, 7, 9, 4, 6]])
        whole = model(input_ids=text).last_hidden_state
        first = model(input_ids=text[:, :3], use_cache=True)
        self.assertEqual(first.past_key_values[0][0].shape, (1, 2, 3, 8))
        rest = model(input_ids=text[:, 3:], past_key_values=first.past_key_values)
        np.testing.assert_allclose(rest.last_hidden_state, whole[:, 3:], atol=1e-6)

    def test_half_precision_and_a_head_of_its_own(self):
        model = load_encoder(config_of("llama2"))
        model.save_pretrained(self.tmp)
        arrays = safetensors.numpy.load_file(self.tmp / "model.safetensors")
        rng = np.random.default_rng(0)
        arrays["lm_head.weight"] = rng.normal(size=(50, 32))
        half = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
        safetensors.numpy.save_file(half, self.tmp / "model.safetensors")
        again = load_encoder(str(self.tmp))
        text = tf.constant([[3, 7, 9]])
        np.testing.assert_allclose(
            again(input_ids=text).last_hidden_state,
            model(input_ids=text).last_hidden_state,
            atol=0.02,
        )
        head = language_head(str(self.tmp), again)
        np.testing.assert_array_equal(head, half["lm_head.weight"].astype(np.float32).T)

    def test_the_cloned_policy_begins_as_the_language_model(self):
        config = config_of("llama2", architectures=["LlamaForCausalLM"], tie_word_embeddings=True)
        load_encoder(config).save_pretrained(self.tmp)
        config.save_pretrained(self.tmp)  # whose language model is tied to its embeddings
        sizes = dict(vocabulary=50, length=9, num_actions=48, causal=True)
        for asked in (True, False):
            network = TextNetworkConfig(encoder=str(self.tmp), language_head=asked)
            transformer, head = build_text_networks(network, **sizes)
            x = transformer(tf.constant([[3, 7, 9]]))
            embeddings = transformer.bert.get_input_embeddings().weights[0][:48]
            same = np.allclose(head.prior(x), tf.matmul(x, embeddings, transpose_b=True), atol=1e-5)
            self.assertEqual(same, asked)
            np.testing.assert_array_equal(head.copy().prior(x), head.prior(x))

    def test_places_that_are_stretched(self):
        plain = frequencies(config_of("llama2"), 8)
        np.testing.assert_allclose(plain, [1, 0.1, 0.01, 0.001], rtol=1e-6)
        halved = config_of("llama2", rope_scaling=dict(rope_type="linear", factor=2.0))
        np.testing.assert_allclose(frequencies(halved, 8), plain / 2, rtol=1e-6)
        # Of 16 tokens at first: less than one turn in them is slowed, four and more are kept.
        turns = frequencies(transformers.LlamaConfig(**SMALL, rope_scaling=STRETCHED), 8)
        rounds = 16 / (2 * np.pi)  # of the first pair: between 1 and 4
        kept = (rounds - 1) / 3
        np.testing.assert_allclose(turns[0], kept + (1 - kept) / 8, rtol=1e-6)
        np.testing.assert_allclose(turns[1:], plain[1:] / 8, rtol=1e-6)

    def test_what_can_not_be_is_said_in_a_sentence(self):
        yarn = config_of("llama2", rope_scaling=dict(rope_type="yarn", factor=2.0))
        with self.assertRaisesRegex(UsageError, "scaled by yarn"):
            load_encoder(yarn)
        with self.assertRaisesRegex(UsageError, "activation relu"):
            load_encoder(config_of("llama2", hidden_act="relu"))
        folder = self.tmp / "one"
        config_of("llama2").save_pretrained(folder)
        with self.assertRaisesRegex(UsageError, "no model.safetensors"):
            load_encoder(str(folder))
        load_encoder(config_of("llama2")).save_pretrained(folder)
        file = folder / "model.safetensors"
        arrays = safetensors.numpy.load_file(file)
        config_of("llama2", num_key_value_heads=2).save_pretrained(folder)
        with self.assertRaisesRegex(UsageError, "do not fit. Its layers.0.self_attn.k_proj.weight"):
            load_encoder(str(folder))
        config_of("llama2").save_pretrained(folder)
        arrays.pop("norm.weight")
        safetensors.numpy.save_file(arrays, file)
        with self.assertRaisesRegex(UsageError, "has no norm.weight"):
            load_encoder(str(folder))
        with mock.patch.object(memory, "available", lambda: 1_000):
            with self.assertRaisesRegex(UsageError, "five times as much.* at most 50 weights"):
                load_encoder(str(folder))
        load_encoder(config_of("llama2")).save_pretrained(folder)
        layers = config_of("llama2").num_hidden_layers
        config_of("llama2", num_hidden_layers=layers - 1).save_pretrained(folder)
        said = f"They have .*layers.{layers - 1}.*says {layers - 1} layers"
        with self.assertRaisesRegex(UsageError, said):
            load_encoder(str(folder))

    def test_sizes_that_are_none_are_refused(self):
        for name in ("num_hidden_layers", "intermediate_size", "rms_norm_eps", "rope_theta"):
            for value in ("x", 0):
                config = config_of("llama2")
                setattr(config, name, value)
                with self.subTest(name=name, value=value):
                    with self.assertRaisesRegex(UsageError, f"has {name} {value!r}; give a number"):
                        load_encoder(config)

    def test_weights_that_would_be_taken_for_others_are_refused(self):
        folder = str(self.tmp)
        file = self.tmp / "model.safetensors"
        load_encoder(config_of("llama2")).save_pretrained(folder)
        arrays = safetensors.numpy.load_file(file)
        name = "layers.0.self_attn.q_proj.weight"
        size = arrays[name].shape

        def said(sentence, **changed):
            safetensors.numpy.save_file({**arrays, **changed}, file)
            with self.assertRaisesRegex(UsageError, sentence):
                load_encoder(folder)

        for kind in ("int8", "uint8"):
            said(f"holds {name} quantised, as {kind}; give", **{name: np.ones(size, kind)})
        said(f"{name} with numbers that are not finite", **{name: np.full(size, np.nan, "f")})
        bias = name.replace("weight", "bias")
        said(f"They have {bias}, the config says of no", **{bias: np.ones(size[:1], "f")})
        # What is worked out anew may stand there.
        turns = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, "f")}
        safetensors.numpy.save_file({**arrays, **turns}, file)
        load_encoder(folder)
        config_of("llama2", quantization_config=dict(quant_method="gptq")).save_pretrained(folder)
        with self.assertRaisesRegex(UsageError, "are quantised; give the model in float32"):
            load_encoder(folder)

    def test_a_file_that_the_index_names_is_missing(self):
        config_of("llama2").save_pretrained(self.tmp)
        index = self.tmp / "model.safetensors.index.json"
        index.write_text(json.dumps(dict(weight_map={"norm.weight": "model-1.safetensors"})))
        with self.assertRaisesRegex(UsageError, "lacks model-1.safetensors"):
            load_encoder(str(self.tmp))
        index.write_text("[]")
        with self.assertRaisesRegex(UsageError, "no index"):
            load_encoder(str(self.tmp))


if __name__ == "__main__":
    unittest.main()
