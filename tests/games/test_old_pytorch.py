"""The legacy PyTorch proof of concept computes what tfdqt computes.

Equal weights give equal Q-values, losses and updates. PyTorch is not among tfdqt's requirements.
The test runs where this python has it, or with that of an environment made from
old_pytorch/requirements.txt:

    OLD_PYTORCH_PYTHON=.torch/bin/python python -m pytest tests/games/test_old_pytorch.py
"""

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

from tests.helpers import ROOT
from tfdqt.backend import keras, tf
from tfdqt.games import dqn
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.flat import flatten_q, mean_q
from tfdqt.games.networks import build_q
from tfdqt.games.spaces import EnvInfo
from tfdqt.replay import Steps

HAS_TORCH = importlib.util.find_spec("torch") is not None
PYTHON = os.environ.get("OLD_PYTORCH_PYTHON") or (sys.executable if HAS_TORCH else None)
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
names = ("obs", "action", "reward", "discount", "first")
fields = [torch.from_numpy(arrays[name]) for name in names]
fields[1] = fields[1].long()
context = settings["sizes"]["context"]
with torch.no_grad():
    said = dict(q=online(fields[0][0][:, :context], fields[4][0][:, :context]).numpy())
update = make_update(online, settings["cfg"])
said["losses"] = [update([field[i] for field in fields])["loss"] for i in range(len(fields[0]))]
said.update({"w/" + name: value.detach().numpy() for name, value in online.named_parameters()})
np.savez(folder + "/said.npz", **said)
"""


@unittest.skipIf(PYTHON is None, "needs PyTorch; see old_pytorch/requirements.txt")
class TestOldPyTorch(tf.test.TestCase):
    def compare(self, info, **sizes):
        keras.utils.set_random_seed(0)
        network = NetworkConfig(**sizes)
        cfg = DQNConfig(
            total_steps=10**6,
            learning_rate=1e-3,
            final_learning_rate=1e-3,
            gamma=0.9,
            n_step=2,
            target_tau=0.1,
            max_grad_norm=1.0,
        )
        net = flatten_q(build_q(info, network), info)
        steps = self.steps(info, (UPDATES, 8, network.context + cfg.n_step))
        theirs = self.other_side(net, network, cfg, info, steps)

        first = tf.nest.map_structure(lambda field: tf.constant(field[0]), steps)
        q = mean_q(net.apply(net.start, dqn.replay_inputs(first, 0, network.context)))
        self.assertAllClose(q, theirs.pop("q"), atol=1e-5, rtol=1e-5)
        state = dqn.first_state(net)
        update = dqn.make_update(net, cfg)
        losses = []
        for i in range(UPDATES):
            batch = tf.nest.map_structure(lambda field: tf.constant(field[i : i + 1]), steps)
            state, diagnostics = update(state, batch)
            losses.append(float(diagnostics["loss"]))
        self.assertAllClose(losses, theirs.pop("losses"), atol=1e-5, rtol=1e-4)
        self.compare_weights(net, state.online, theirs)

    def steps(self, info, shape):
        """Random steps."""
        rng = np.random.default_rng(0)
        if info.obs_dtype == "uint8":
            obs = rng.integers(0, 256, (*shape, *info.obs_shape), np.uint8)
        else:
            obs = rng.normal(size=(*shape, *info.obs_shape)).astype(np.float32)
        return Steps(
            obs,
            rng.integers(0, info.num_actions, shape, np.int32),
            rng.normal(size=shape).astype(np.float32),
            (rng.random(shape) > 0.1).astype(np.float32),
            rng.random(shape) < 0.2,
        )

    def other_side(self, net, network, cfg, info, steps):
        """What PyTorch makes of the same weights and steps: arrays by name."""
        weights = {
            f"{layer.name}/{variable.name}": variable.numpy()
            for layer in net.model.layers
            for variable in layer.weights
        }
        sizes = {key: getattr(network, key) for key in ("context", "layers", "heads", "width")}
        sizes["tokens"] = "steps" if network.tokens == "steps" else "bytes"
        settings = dict(actions=info.num_actions, cfg=dataclasses.asdict(cfg), sizes=sizes)
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder, "given.npz"), **steps._asdict(), **weights)
            done = subprocess.run(
                [PYTHON, "-c", OTHER_SIDE, folder, json.dumps(settings)],
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT / "old_pytorch")},
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            return dict(np.load(Path(folder, "said.npz")))

    def compare_weights(self, net, online, theirs):
        """All weights after the updates are those of PyTorch, none left over."""
        kinds = dict(kernel="weight", bias="bias", gamma="weight", beta="bias", embeddings="weight")
        compared = 0
        for variable, value in zip(net.model.trainable_variables, net.unflatten(online)[0]):
            layer, kind = variable.path.split("/")[-2:]
            name = layer.replace("_norm", ".norm")
            name = name.replace("_attention_", ".attention_").replace("_mlp_", ".mlp_")
            name = f"w/{name.replace('block', 'blocks.')}.{kinds[kind]}"
            expected = theirs.pop(name)
            compared += 1
            turned = kind == "kernel" and layer != "embed_place"
            if turned:
                expected = expected.T
            self.assertAllClose(value, expected, atol=1e-5, rtol=1e-4, msg=name)
        self.assertEqual([name for name in theirs if name.startswith("w/")], [])
        self.assertGreater(compared, 10)

    def test_a_token_a_step(self):
        self.compare(EnvInfo("Box", (4,), "float32", (), 2), context=3, layers=2, heads=2, width=16)

    def test_a_token_a_step_of_ram(self):
        self.compare(EnvInfo("RAM", (128,), "uint8", (), 4), context=4, layers=2, heads=4, width=32)

    def test_a_token_a_byte(self):
        self.compare(
            EnvInfo("RAM", (6,), "uint8", (), 4),
            context=2,
            layers=1,
            heads=2,
            width=16,
            tokens="features",
        )


if __name__ == "__main__":
    tf.test.main()
