"""Several devices, and several processes, learn what one learns from the whole batch; what happens when one of them dies."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy as np
from test_dqn import CFG, Corridor
from test_scripts import ROOT

from tfdqt import distribute, dqn, gpt, text
from tfdqt.backend import set_threads, tf
from tfdqt.checks import cluster_place
from tfdqt.config import NetworkConfig, TextConfig, UsageError
from tfdqt.envs import env_info
from tfdqt.networks import flatten_model
from tfdqt.replay import Episode, Steps
from tfdqt.runs import checkpoints, load_checkpoint

SHARED_CFG = dataclasses.replace(CFG, batch_size=8, advantage_learning=0.5, target_epsilon=0.1)


def cluster(ports, index):
    """What TF_CONFIG is for one of the learners on this machine."""
    return json.dumps(dict(cluster=dict(worker=[f"127.0.0.1:{port}" for port in ports]), task=dict(type="worker", index=index)))


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def toy():
    """A network and five batches [5, 8, ...] in whose halves unequally many steps count."""
    info = env_info(Corridor())
    tf.keras.utils.set_random_seed(0)
    networks = flatten_model(gpt.build_q(info, NetworkConfig(context=3, layers=1, heads=2, width=8)))
    rng, shape = np.random.default_rng(0), (5, 8, networks.context + CFG.n_step)
    steps = Steps(tf.constant(rng.integers(2, size=(*shape, *info.obs_shape)), info.obs_dtype),
                  tf.constant(rng.integers(2, size=shape), tf.int32),
                  tf.constant(rng.normal(size=shape), tf.float32), tf.constant(rng.random(shape) > 0.1, tf.float32),
                  tf.constant(rng.random(shape) > 0.8))
    return networks, steps


def compare(strategy, mine):
    """Update by the strategy on steps[:, mine] and alone on all of them, and compare."""
    networks, steps = toy()
    state = dqn.first_state(networks)
    alone, said = dqn.make_update(networks, SHARED_CFG)(state, steps)
    together, also = dqn.make_update(networks, SHARED_CFG, strategy)(state, tf.nest.map_structure(lambda field: field[:, mine], steps))
    assert abs(alone.online - state.online).numpy().max() > 1e-4
    for one, other in zip(tf.nest.flatten(alone), tf.nest.flatten(together)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    for name in said:
        np.testing.assert_allclose(said[name], also[name], rtol=1e-4, err_msg=name)
    with unittest.TestCase().assertRaisesRegex(UsageError, "--batch-size=7"):
        dqn.make_update(networks, dataclasses.replace(SHARED_CFG, batch_size=7), strategy)


TEXT_CFGS = [TextConfig(conservative=0.3, advantage_learning=0.9), TextConfig(method="implicit", cloning=0.7, advantage_weighting=3.0)]


def compare_texts(strategy):
    """Five updates of the text networks by the strategy and alone, and compare."""
    from test_text import networks  # it makes tensors, before which TensorFlow must know its devices

    rng = np.random.default_rng(0)
    decides = rng.random((8, 3)) > 0.4
    decides[0] = True
    decides[4:6] = False  # whole texts that decide nothing, all in one share
    batch = Episode(*(tf.constant(field.astype("int32" if field.dtype.kind == "i" else "float32")) for field in (
        rng.integers(2, 8, (8, 4)), np.tile(np.arange(4), (8, 1)), rng.integers(3, size=(8, 3)), rng.normal(size=(8, 3)),
        rng.integers(2, size=(8, 3)) * 1.0, decides)))
    for cfg in TEXT_CFGS:
        cfg, found = dataclasses.replace(cfg, batch_size=8), []
        for each in (None, strategy):
            pair = networks(length=4, actions=3, causal=True)
            before, targets = pair[0].bert.weights[0].numpy(), (pair[0].copy(), pair[1].copy())
            update = text.make_text_update(*pair, *targets, tf.keras.optimizers.SGD(0.1), cfg, each)
            said = [update(batch) for _ in range(5)][-1]
            assert abs(pair[0].bert.weights[0].numpy() - before).max() > 1e-3
            found.append(([variable.numpy() for network in (*pair, *targets) for variable in network.weights],
                          {name: float(value) for name, value in said.items()}))
        for one, other in zip(*(weights for weights, _ in found)):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert found[0][1].keys() == found[1][1].keys()
        for name, value in found[0][1].items():
            np.testing.assert_allclose(value, found[1][1][name], rtol=1e-4, err_msg=name)
    with unittest.TestCase().assertRaisesRegex(UsageError, "--batch-size=7"):
        text.make_text_update(*pair, *targets, tf.keras.optimizers.Adam(), dataclasses.replace(cfg, batch_size=7), strategy)


def two_devices():
    """In a process of its own, because TensorFlow must learn of two devices before it starts."""
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    assert distribute.make_team(strategy) is distribute.ALONE
    compare(strategy, slice(None))
    compare_texts(strategy)


def one_of_two(ports, index):
    """One of two processes, each of which is given half of every batch."""
    os.environ["TF_CONFIG"] = cluster(ports, index)
    set_threads(1)
    strategy = distribute.make_strategy("multiworker")
    team = distribute.make_team(strategy)
    assert (team.size, team.index) == (2, index)
    np.testing.assert_array_equal(team.total([2.0 ** 40 + index, 1]), [2.0 ** 41 + 1, 2])
    distribute.check_same(team, "same", np.arange(3))
    with unittest.TestCase().assertRaisesRegex(UsageError, "different settings"):
        distribute.check_same(team, f"learner {index}")
    compare(strategy, slice(4 * index, 4 * index + 4))
    compare_texts(strategy)
    own = distribute.own_share(dataclasses.replace(SHARED_CFG, num_envs=6, replay_size=600, learning_starts=25), team)
    assert (own.num_envs, own.batch_size, own.replay_size, own.learning_starts) == (3, 4, 300, 13)
    with unittest.TestCase().assertRaisesRegex(UsageError, "--num-envs=3 "):
        distribute.own_share(dataclasses.replace(SHARED_CFG, num_envs=3), team)


class TestShared(unittest.TestCase):

    def test_two_devices_learn_what_one_learns(self):
        self.run_all([(two_devices, ())])

    def test_two_processes_learn_what_one_learns(self):
        ports = free_ports(2)
        self.run_all([(one_of_two, (ports, index)) for index in range(2)])

    def run_all(self, calls):
        processes = [multiprocessing.get_context("spawn").Process(target=target, args=args) for target, args in calls]
        for process in processes:
            process.start()
        for process in processes:
            process.join(600)
        self.assertEqual([process.exitcode for process in processes], [0] * len(calls))

    def test_a_cluster_that_is_not_named_is_refused(self):
        self.assertEqual(cluster_place(dict(TF_CONFIG=cluster([1, 2], 1))), (1, ["127.0.0.1:1", "127.0.0.1:2"]))
        for wrong in ({}, dict(TF_CONFIG="{"), dict(TF_CONFIG="[]"), dict(TF_CONFIG=cluster([1, 2], 2)), dict(TF_CONFIG='{"cluster": {}}')):
            with self.assertRaisesRegex(UsageError, "TF_CONFIG='"):
                cluster_place(wrong)


class TestMeeting(unittest.TestCase):

    def test_who_does_not_come_or_can_not_listen_is_named(self):
        first, second = free_ports(2)
        addresses = [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]
        with self.assertRaisesRegex(UsageError, f"Learner 1 at 127.0.0.1:{second} did not come within 1 seconds .*refused"):
            distribute.meet(0, addresses, patience=1)
        with socket.create_server(("", second)), self.assertRaisesRegex(UsageError, f"Learner 1 can't listen at 127.0.0.1:{second}"):
            distribute.meet(1, addresses, patience=1)
        with self.assertRaisesRegex(UsageError, "Learner 0 can't listen at here"):
            distribute.meet(0, ["here", "there"], patience=1)

    def test_who_comes_is_found(self):
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        threads = [threading.Thread(target=distribute.meet, args=(index, addresses, 30)) for index in range(1, 3)]
        for thread in threads:
            thread.start()
        distribute.meet(0, addresses, 30)
        for thread in threads:
            thread.join(30)
            self.assertFalse(thread.is_alive())


class TestLearners(unittest.TestCase):

    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp, ignore_errors=True)

    def start(self, ports, *flags, script="run_dqn.py"):
        """Two learners of a run; flags may differ: (first's, second's)."""
        learners = []
        for index in range(2):
            own = [flag[index] if isinstance(flag, tuple) else flag for flag in flags]
            env = {**os.environ, "TF_CONFIG": cluster(ports, index)}
            learners.append(subprocess.Popen([sys.executable, str(ROOT / "scripts" / script), *own], text=True, env=env,
                                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        self.addCleanup(lambda: [learner.kill() for learner in learners])
        return learners

    def finish(self, learners):
        outputs = [learner.communicate(timeout=600)[0] for learner in learners]
        self.assertEqual([learner.returncode for learner in learners], [0, 0], "\n".join(outputs))
        return outputs

    def test_one_is_killed_and_both_go_on_to_equal_weights(self):
        run = self.tmp / "run"
        small = ["--layers=1", "--heads=2", "--width=16", "--batch-size=8", "--learning-starts=256", "--threads=1"]
        first, second = self.start(free_ports(2), "--name=CartPole-v1", "--strategy=multiworker", f"--run-dir={run}", *small,
                                   "--total-steps=1000000", "--checkpoint-every=1000", "--epochs=2000")
        own = (run, run / "learner-1")
        deadline = time.monotonic() + 600
        while not all(checkpoints(each) for each in own):
            self.assertIsNone(first.poll(), "the first learner ended by itself")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        second.send_signal(signal.SIGKILL)
        output, _ = first.communicate(timeout=300)
        self.assertEqual(first.returncode, 2, output)
        self.assertRegex(output.splitlines()[-1], "^error: This learner lost another one .* --resume.$")

        newest = max(set.intersection(*({path.name for path in checkpoints(each)} for each in own)))
        steps = int(newest.removeprefix("step-")) + 1_000
        outputs = self.finish(self.start(free_ports(2), tuple(f"--resume={each}" for each in own), f"--total-steps={steps}"))
        for output in outputs:
            self.assertIn(newest, re.search("Going on from (.*)[.]", output)[1])
        saved = [load_checkpoint(each)[0] for each in own]
        self.assertEqual(saved[0]["progress"]["step"], saved[1]["progress"]["step"])
        for one, other in zip(saved[0]["learner"], saved[1]["learner"]):
            np.testing.assert_array_equal(one, other)
        name = "TFUniformReplayBuffer/table/obs"
        one, other = (next(value for key, value in each["replay"].items() if key.endswith("obs")) for each in saved)
        self.assertEqual(one.shape, other.shape, name)
        self.assertEqual(len(one), 4)  # of eight environments
        self.assertFalse(np.array_equal(one, other))  # what they played is not the same

    def test_texts_are_learned_as_by_one_and_a_signal_to_one_stops_both(self):
        run, alone = self.tmp / "run", self.tmp / "alone"
        tiny = ["--layers=1", "--heads=2", "--width=16", "--episodes=16", "--new-items=64", "--epochs=1", "--games=25", "--threads=1",
                "--max-grad-norm=100"]
        self.finish(self.start(free_ports(2), "--strategy=multiworker", f"--run-dir={run}", *tiny, script="run_text.py"))
        done = subprocess.run([sys.executable, str(ROOT / "scripts" / "run_text.py"), f"--run-dir={alone}", *tiny], capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        own = (run, run / "learner-1")
        one, other, single = (load_checkpoint(each)[0] for each in (*own, alone))
        self.assertGreaterEqual(one["place"]["step"], 8)
        for mine, theirs, whole in zip(one["weights"], other["weights"], single["weights"]):
            np.testing.assert_array_equal(mine, theirs)
            np.testing.assert_allclose(mine, whole, atol=1e-3)

        learners = self.start(free_ports(2), tuple(f"--resume={each}" for each in own), "--epochs=100000", "--checkpoint-every=20",
                              script="run_text.py")
        begun, deadline = checkpoints(run)[-1], time.monotonic() + 600
        while checkpoints(run)[-1] == begun:
            self.assertIsNone(learners[0].poll(), "the first learner ended by itself")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        learners[0].send_signal(signal.SIGTERM)
        for learner in learners:
            output, _ = learner.communicate(timeout=300)
            self.assertEqual(learner.returncode, 128 + signal.SIGTERM, output)
            self.assertRegex(output.splitlines()[-1], "^Stopped. Go on with: .* --resume=")
        self.assertEqual(*(checkpoints(each)[-1].name for each in own))
        one, other = (load_checkpoint(each)[0] for each in own)
        for mine, theirs in zip(one["weights"], other["weights"]):
            np.testing.assert_array_equal(mine, theirs)


if __name__ == "__main__":
    unittest.main()
