"""Texts are learned by several devices and several processes as by one."""

import dataclasses
import signal
import unittest

import numpy as np

from tests.helpers import InFolder, call, end, slow, wait_for
from tests.scale.test_distribute import free_ports, one_of_two, run_all, start_learners, two_devices
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import checkpoints, load_checkpoint
from tfdqt.text import learn
from tfdqt.text.config import TextConfig
from tfdqt.text.replay import Episode

CFGS = [
    TextConfig(batch_size=8, conservative=0.3, advantage_learning=0.9),
    TextConfig(batch_size=8, method="implicit", cloning=0.7, advantage_weighting=3.0),
]


def episodes():
    """A batch of eight texts."""
    rng = np.random.default_rng(0)
    decides = rng.random((8, 3)) > 0.4
    decides[0] = True
    decides[4:6] = False  # whole texts that decide nothing, all in one share
    fields = (
        rng.integers(2, 8, (8, 4)),
        np.tile(np.arange(4), (8, 1)),
        rng.integers(3, size=(8, 3)),
        rng.normal(size=(8, 3)),
        rng.integers(2, size=(8, 3)) * 1.0,
        decides,
        rng.integers(2, size=8) * 1.0,
    )
    kinds = ["int32" if field.dtype.kind == "i" else "float32" for field in fields]
    return Episode(*(tf.constant(field.astype(kind)) for field, kind in zip(fields, kinds)))


def compare(strategy):
    """Five updates of the text networks by the strategy and alone, and compare."""
    # It makes tensors, before which TensorFlow must know its devices.
    from tests.text.test_learn import networks

    batch = episodes()
    for cfg in CFGS:
        results = []
        for each in (None, strategy):
            pair = networks(length=4, actions=3, causal=True)
            before = pair[0].bert.weights[0].numpy()
            targets = (pair[0].copy(), pair[1].copy())
            optimizer = tf.keras.optimizers.SGD(0.1)
            update = learn.make_text_update(*pair, *targets, optimizer, cfg, each)
            said = [update(batch) for _ in range(5)][-1]
            assert abs(pair[0].bert.weights[0].numpy() - before).max() > 1e-3
            weights = [
                variable.numpy() for network in (*pair, *targets) for variable in network.weights
            ]
            results.append((weights, {name: float(value) for name, value in said.items()}))
        (weights, said), (shared_weights, shared_said) = results
        for one, other in zip(weights, shared_weights):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert said.keys() == shared_said.keys()
        for name, value in said.items():
            np.testing.assert_allclose(value, shared_said[name], rtol=1e-4, err_msg=name)
    with unittest.TestCase().assertRaisesRegex(UsageError, "--batch-size=7"):
        odd = dataclasses.replace(cfg, batch_size=7)
        learn.make_text_update(*pair, *targets, tf.keras.optimizers.Adam(), odd, strategy)


def compare_two_devices():
    compare(two_devices())


def compare_one_of_two(ports, index):
    compare(one_of_two(ports, index)[0])


class TestShared(unittest.TestCase):
    @slow("50 s: compiles four updates")
    def test_two_devices_learn_what_one_learns(self):
        run_all(self, [(compare_two_devices, ())])

    @slow("60 s: two processes compile four updates each")
    def test_two_processes_learn_what_one_learns(self):
        ports = free_ports(2)
        run_all(self, [(compare_one_of_two, (ports, index)) for index in range(2)])


class TestLearners(InFolder):
    @slow("90 s: five processes learn the maze")
    def test_texts_are_learned_as_by_one_and_a_signal_to_one_stops_both(self):
        run = self.tmp / "run"
        alone = self.tmp / "alone"
        own = (run, run / "learner-1")
        tiny = [
            "--layers=1",
            "--heads=2",
            "--width=16",
            "--episodes=16",
            "--new-items=64",
            "--epochs=1",
            "--games=25",
            "--threads=1",
            "--max-grad-norm=100",
        ]
        several = ["--strategy=multiworker", f"--run-dir={run}"]
        for learner in start_learners(self, "run_text", *several, *tiny):
            end(self, learner)
        done = call("run_text", f"--run-dir={alone}", *tiny)
        self.assertEqual(done.returncode, 0, done.stderr)
        one, other, single = (load_checkpoint(each)[0] for each in (*own, alone))
        self.assertGreaterEqual(one["place"]["step"], 8)
        for mine, theirs, whole in zip(one["weights"], other["weights"], single["weights"]):
            np.testing.assert_array_equal(mine, theirs)
            np.testing.assert_allclose(mine, whole, atol=1e-3)

        resume = tuple(f"--resume={each}" for each in own)
        endless = ["--epochs=100000", "--checkpoint-every=20"]
        learners = start_learners(self, "run_text", resume, *endless)
        begun = checkpoints(run)[-1]
        wait_for(lambda: checkpoints(run)[-1] != begun, *learners)
        learners[0].send_signal(signal.SIGTERM)
        for learner in learners:
            output = end(self, learner, 128 + signal.SIGTERM)
            self.assertRegex(output.splitlines()[-1], "Go on with: .* --resume=")
        self.assertEqual(*(checkpoints(each)[-1].name for each in own))
        one, other = (load_checkpoint(each)[0] for each in own)
        for mine, theirs in zip(one["weights"], other["weights"]):
            np.testing.assert_array_equal(mine, theirs)


if __name__ == "__main__":
    unittest.main()
