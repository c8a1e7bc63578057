"""The legacy PyTorch proof of concept computes what tfdqt computes: equal weights give equal Q-values, losses and updates.

PyTorch is not among tfdqt's requirements. The test runs where this python has it, or with the python of an environment made from
old_pytorch/requirements.txt: OLD_PYTORCH_PYTHON=.torch/bin/python python -m pytest tests/test_old_pytorch.py
"""

import csv
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
from test_scripts import refused, script

from tfdqt import dqn, gpt
from tfdqt.backend import keras, tf
from tfdqt.config import DQNConfig, NetworkConfig
from tfdqt.envs import EnvInfo
from tfdqt.networks import flatten_model
from tfdqt.replay import Steps

ROOT = Path(__file__).resolve().parent.parent
PYTHON = os.environ.get("OLD_PYTORCH_PYTHON") or (sys.executable if importlib.util.find_spec("torch") else None)
UPDATES = 10

OTHER_SIDE = """
import json, sys
import numpy as np, torch
from gpt_dqn import GPTQ, load_keras, make_update
folder, settings = sys.argv[1], json.loads(sys.argv[2])
torch.set_num_threads(1)
arrays = dict(np.load(folder + "/given.npz"))
online = GPTQ(arrays["obs"].shape[-1], settings["actions"], **settings["sizes"])
load_keras(online, arrays)
fields = [torch.from_numpy(arrays[name]) for name in ("obs", "action", "reward", "discount", "first")]
fields[1] = fields[1].long()
context = settings["sizes"]["context"]
with torch.no_grad():
    found = dict(q=online(fields[0][0][:, :context], fields[4][0][:, :context]).numpy())
update = make_update(online, settings["cfg"])
found["losses"] = [update([field[i] for field in fields])["loss"] for i in range(len(fields[0]))]
found.update({"w/" + name: value.detach().numpy() for name, value in online.named_parameters()})
np.savez(folder + "/found.npz", **found)
"""


@unittest.skipIf(PYTHON is None, "needs PyTorch; see old_pytorch/requirements.txt")
class TestOldPyTorch(tf.test.TestCase):

    def compare(self, info, **sizes):
        keras.utils.set_random_seed(0)
        network = NetworkConfig(**sizes)
        cfg = DQNConfig(total_steps=10 ** 6, learning_rate=1e-3, final_learning_rate=1e-3, gamma=0.9, n_step=2, target_tau=0.1,
                        max_grad_norm=1.0)
        networks = flatten_model(gpt.build_q(info, network))
        rng, shape = np.random.default_rng(0), (UPDATES, 8, network.context + cfg.n_step)
        obs = (rng.integers(0, 256, (*shape, *info.obs_shape), np.uint8) if info.obs_dtype == "uint8" else
               rng.normal(size=(*shape, *info.obs_shape)).astype(np.float32))
        steps = Steps(obs, rng.integers(0, info.num_actions, shape, np.int32), rng.normal(size=shape).astype(np.float32),
                      (rng.random(shape) > 0.1).astype(np.float32), rng.random(shape) < 0.2)
        model = networks.model
        weights = {f"{layer.name}/{variable.name}": variable.numpy() for layer in model.layers for variable in layer.weights}
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder, "given.npz"), **steps._asdict(), **weights)
            settings = dict(actions=info.num_actions, cfg=dataclasses.asdict(cfg),
                            sizes=dict({key: getattr(network, key) for key in ("context", "layers", "heads", "width")},
                                       tokens="steps" if network.tokens == "steps" else "bytes"))
            done = subprocess.run([PYTHON, "-c", OTHER_SIDE, folder, json.dumps(settings)], capture_output=True, text=True,
                                  env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
                                       "PYTHONPATH": str(ROOT / "old_pytorch")})
            self.assertEqual(done.returncode, 0, done.stderr)
            found = dict(np.load(Path(folder, "found.npz")))
        first = tf.nest.map_structure(lambda field: tf.constant(field[0]), steps)
        self.assertAllClose(networks.apply(networks.start, dqn.window_inputs(first, 0, network.context)), found["q"], atol=1e-5, rtol=1e-5)
        state, update, losses = dqn.first_state(networks), dqn.make_update(networks, cfg), []
        for i in range(UPDATES):
            state, diagnostics = update(state, tf.nest.map_structure(lambda field: tf.constant(field[i:i + 1]), steps))
            losses.append(float(diagnostics["loss"]))
        self.assertAllClose(losses, found["losses"], atol=1e-5, rtol=1e-4)
        kinds = dict(kernel="weight", bias="bias", gamma="weight", beta="bias", embeddings="weight")
        compared = 0
        for variable, value in zip(model.trainable_variables, networks.split(state.online)[0]):
            layer, kind = variable.path.split("/")[-2:]
            name = f"w/{layer.replace('_norm', '.norm').replace('_attention_', '.attention_').replace('_mlp_', '.mlp_')}.{kinds[kind]}"
            name = name.replace("block", "blocks.")
            theirs = found.pop(name)
            compared += 1
            turned = kind == "kernel" and layer != "embed_place"
            self.assertAllClose(value, theirs.T if turned else theirs, atol=1e-5, rtol=1e-4, msg=name)
        self.assertEqual([name for name in found if name.startswith("w/")], [])
        self.assertGreater(compared, 10)

    def test_a_token_a_step(self):
        self.compare(EnvInfo("Box", (4,), "float32", (), 2), context=3, layers=2, heads=2, width=16)

    def test_a_token_a_step_of_ram(self):
        self.compare(EnvInfo("RAM", (128,), "uint8", (), 4), context=4, layers=2, heads=4, width=32)

    def test_a_token_a_byte(self):
        self.compare(EnvInfo("RAM", (6,), "uint8", (), 4), context=2, layers=1, heads=2, width=16, tokens="features")

    def test_side_by_side(self):
        with tempfile.TemporaryDirectory() as folder:
            done = script("compare_pytorch", f"--torch-python={PYTHON}", "--seeds=1", "--total-steps=1280", f"--out={folder}/out")
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(Path(folder, "out", "pytorch.csv"), newline="") as file:
                rows = list(csv.DictReader(file))
            self.assertEqual([row["side"] for row in rows], ["tfdqt", "pytorch"])
            self.assertTrue(all(float(row["steps_per_second"]) > 0 and float(row["mean_return"]) >= 8 for row in rows), rows)
            self.assertGreater(Path(folder, "out", "pytorch.png").stat().st_size, 5_000)


class TestWithoutPyTorch(tf.test.TestCase):

    def test_no_python(self):
        self.tmp = None
        refused(self, "is no python; make one", "compare_pytorch", "--torch-python=nowhere/python")


if __name__ == "__main__":
    tf.test.main()
