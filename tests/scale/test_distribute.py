"""Several devices, and several processes, learn what one learns from the whole batch."""

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import socket
import threading
import unittest

import numpy as np

from tests.games.corridor import Corridor
from tests.helpers import InFolder, end, slow, start, wait_for
from tfdqt.backend import set_threads, tf
from tfdqt.errors import UsageError
from tfdqt.games import dqn
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.envs import env_info
from tfdqt.games.flat import flatten_q
from tfdqt.games.networks import build_q
from tfdqt.replay import Steps
from tfdqt.runs.checkpoint import checkpoints, load_checkpoint
from tfdqt.scale import distribute
from tfdqt.scale.config import ScaleConfig, check_scale, cluster_member, resumed_scale
from tfdqt.scale.distribute import SINGLE, ProcessGroup

CFG = DQNConfig(
    total_steps=1_000,
    num_envs=2,
    chunk=4,
    updates_per_step=0.5,
    batch_size=8,
    replay_size=400,
    learning_starts=16,
    gamma=0.5,
    n_step=2,
    huber_delta=1e6,
    advantage_learning=0.5,
    target_epsilon=0.1,
)


def cluster(ports, index):
    """What TF_CONFIG is for one of the learners on this machine."""
    addresses = [f"127.0.0.1:{port}" for port in ports]
    task = dict(type="worker", index=index)
    return json.dumps(dict(cluster=dict(worker=addresses), task=task))


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run_all(test, calls):
    """Each of `calls`, (function, arguments), in a process of its own; all must end well."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=args) for target, args in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    test.assertEqual([process.exitcode for process in processes], [0] * len(calls))


# -------------------------------------------------------------------------------------------------
# What runs in processes of their own, because TensorFlow must learn of its devices before it starts


def toy():
    """A network and five batches [5, 8, ...] in whose halves unequally many steps count."""
    info = env_info(Corridor())
    tf.keras.utils.set_random_seed(0)
    network = NetworkConfig(network="dense", context=3, hidden=(8,), every_step=True)
    net = flatten_q(build_q(info, network), info)
    rng = np.random.default_rng(0)
    shape = (5, 8, net.context + CFG.n_step)
    steps = Steps(
        tf.constant(rng.integers(2, size=(*shape, *info.obs_shape)), info.obs_dtype),
        tf.constant(rng.integers(2, size=shape), tf.int32),
        tf.constant(rng.normal(size=shape), tf.float32),
        tf.constant(rng.random(shape) > 0.1, tf.float32),
        tf.constant(rng.random(shape) > 0.8),
    )
    return net, steps


def compare(strategy, mine):
    """Update by the strategy on steps[:, mine] and alone on all of them, and compare."""
    net, steps = toy()
    state = dqn.first_state(net)
    alone, said = dqn.make_update(net, CFG)(state, steps)
    own_steps = tf.nest.map_structure(lambda field: field[:, mine], steps)
    shared, also = dqn.make_update(net, CFG, strategy)(state, own_steps)
    assert abs(alone.online - state.online).numpy().max() > 1e-4
    for one, other in zip(tf.nest.flatten(alone), tf.nest.flatten(shared)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    for name in said:
        np.testing.assert_allclose(said[name], also[name], rtol=1e-4, err_msg=name)
    with unittest.TestCase().assertRaisesRegex(UsageError, "--batch-size=7"):
        dqn.make_update(net, dataclasses.replace(CFG, batch_size=7), strategy)


def two_devices():
    """The strategy of two devices in one process."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    assert distribute.make_group(strategy) is SINGLE
    return strategy


def one_of_two(ports, index):
    """The strategy of one of two processes, and its group."""
    os.environ["TF_CONFIG"] = cluster(ports, index)
    set_threads(1)
    strategy = distribute.make_strategy("multiworker")
    group = distribute.make_group(strategy)
    assert (group.size, group.rank) == (2, index)
    return strategy, group


def compare_two_devices():
    compare(two_devices(), slice(None))


def compare_one_of_two(ports, index):
    """One of two processes, each of which is given half of every batch."""
    strategy, group = one_of_two(ports, index)
    sums = group.all_sum([2.0**40 + index, 1])
    np.testing.assert_array_equal(sums, [2.0**41 + 1, 2])
    distribute.check_same(group, "same", np.arange(3))
    with unittest.TestCase().assertRaisesRegex(UsageError, "different settings"):
        distribute.check_same(group, f"learner {index}")
    compare(strategy, slice(4 * index, 4 * index + 4))


class TestShared(unittest.TestCase):
    @slow("15 s: trains on one device and on two")
    def test_two_devices_learn_what_one_learns(self):
        run_all(self, [(compare_two_devices, ())])

    @slow("20 s: two processes")
    def test_two_processes_learn_what_one_learns(self):
        ports = free_ports(2)
        run_all(self, [(compare_one_of_two, (ports, index)) for index in range(2)])


# -------------------------------------------------------------------------------------------------
# What needs one process alone


class TestShares(unittest.TestCase):
    first = ProcessGroup(2, 0, None)
    second = ProcessGroup(2, 1, None)

    def test_settings_are_shared(self):
        cfg = dataclasses.replace(CFG, num_envs=6, learning_starts=25)
        even = ("num_envs", "batch_size")
        own = distribute.share_settings(cfg, self.first, even=even, uneven=("learning_starts",))
        self.assertEqual(
            own, dataclasses.replace(cfg, num_envs=3, batch_size=4, learning_starts=13)
        )
        self.assertIs(distribute.share_settings(cfg, SINGLE, even=even), cfg)
        odd = dataclasses.replace(cfg, num_envs=3)
        with self.assertRaisesRegex(UsageError, "--num-envs=3 "):
            distribute.share_settings(odd, self.second, even=even)

    def test_a_learner_has_its_share_of_everything(self):
        q_fn = lambda info: build_q(info, NetworkConfig(network="dense", context=2))  # noqa: E731
        cfg = dataclasses.replace(CFG, num_envs=6, replay_size=600, learning_starts=25)
        learner = dqn.make_learner(Corridor, q_fn, cfg, 0, group=self.second)
        own = learner.own
        self.assertEqual((own.num_envs, own.batch_size, own.replay_size), (3, 4, 300))
        self.assertEqual((own.learning_starts, learner.needed), (13, 13))
        self.assertEqual((learner.replay.rows, learner.replay.length), (3, 100))

    def test_seeds_are_of_their_own(self):
        seeds = [distribute.share_seed(5, group) for group in (SINGLE, self.first, self.second)]
        self.assertEqual(seeds[:2], [5, 5])
        self.assertNotEqual(seeds[2], 5)

    def test_a_batch_is_cut_in_slices(self):
        batch = dict(a=tf.range(6), b=tf.reshape(tf.range(12), [6, 2]))
        part = distribute.slice_batch(batch, tf.constant(1), 3)
        np.testing.assert_array_equal(part["a"], [2, 3])
        np.testing.assert_array_equal(part["b"], [[4, 5], [6, 7]])
        self.assertEqual(part["b"].shape, (2, 2))

    def test_means_of_devices_are_weighed(self):
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")

        def share(weight, part, parts):
            self.assertEqual(parts, 1)
            return [(weight, tf.constant([1.0, 5.0])), (tf.constant(0.0), tf.constant([7.0]))]

        means = distribute.make_means(strategy, share, least=2.0)
        # A weight of 1 counts as at least 2, and one of 0 gives zeros.
        for weight, expected in ((4.0, [1, 5]), (1.0, [0.5, 2.5])):
            full, empty = means(tf.constant(weight))
            np.testing.assert_allclose(full, expected)
            np.testing.assert_allclose(empty, [0])

    def test_one_process_is_a_group_by_itself(self):
        np.testing.assert_array_equal(SINGLE.all_sum([1, 2]), [1.0, 2.0])
        self.assertIs(distribute.make_group(None), SINGLE)
        distribute.check_same(SINGLE, "anything", np.ones(3))
        self.assertIsNone(distribute.make_strategy("none"))

    def test_a_lost_learner_ends_the_run_of_several(self):
        lost = tf.errors.UnavailableError(None, None, "gone")
        with self.assertRaisesRegex(UsageError, "lost another one .UnavailableError.*--resume"):
            with distribute.lost_learner_ends_run(2):
                raise lost
        with self.assertRaises(tf.errors.UnavailableError), distribute.lost_learner_ends_run(1):
            raise lost


class TestSettings(unittest.TestCase):
    def test_a_cluster_that_is_not_named_is_refused(self):
        addresses = ["127.0.0.1:1", "127.0.0.1:2"]
        self.assertEqual(cluster_member(dict(TF_CONFIG=cluster([1, 2], 1))), (1, addresses))
        outside = cluster([1, 2], 2)
        first = dict(type="worker", index=0)
        for wrong in (
            {},
            dict(TF_CONFIG="{"),
            dict(TF_CONFIG="[]"),
            dict(TF_CONFIG=outside),
            dict(TF_CONFIG='{"cluster": {}}'),
            dict(TF_CONFIG=cluster([1, 2], 1).replace('worker": [', 'worker": [1, ')),
            dict(TF_CONFIG=json.dumps(dict(cluster=dict(worker=dict(a=1)), task=first))),
        ):
            with self.assertRaisesRegex(UsageError, "TF_CONFIG='"):
                cluster_member(wrong)

    def test_actors_that_can_not_be(self):
        check_scale(ScaleConfig(actors=4), 8)
        for fault, words in (
            (dict(actors=-1), "--actors must be 0 or more"),
            (dict(broadcast_every=0), "--broadcast-every at least 1"),
            (dict(actors=3), "such as --num-envs=9"),
            (dict(ray_address="auto"), "--actors too"),
            (dict(actors=4, strategy="multiworker"), "--strategy=mirrored"),
        ):
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, words):
                check_scale(ScaleConfig(**fault), 8)

    def test_what_may_change_when_a_run_goes_on(self):
        saved = ScaleConfig(actors=2, broadcast_every=9)
        given = ScaleConfig(actors=4, strategy="mirrored")
        flags = ["resume", "actors", "total-steps"]
        self.assertEqual(resumed_scale("run", saved, given, flags), ScaleConfig(4, None, 9))
        self.assertEqual(resumed_scale("run", saved, given, []), saved)
        with self.assertRaisesRegex(UsageError, "started with --actors"):
            resumed_scale("run", saved, ScaleConfig(), ["actors"])
        with self.assertRaisesRegex(UsageError, "started without --actors"):
            resumed_scale("run", ScaleConfig(), given, ["actors"])
        several = ScaleConfig(strategy="multiworker")
        with self.assertRaisesRegex(UsageError, "started without --strategy=multiworker"):
            resumed_scale("run", ScaleConfig(), several, ["strategy"])


class TestStart(unittest.TestCase):
    """Learners wait for each other."""

    def test_who_does_not_come_or_can_not_listen_is_named(self):
        # The first port can be listened at, the second is taken, and at the third nobody is.
        first, free = free_ports(2)
        addresses = [f"127.0.0.1:{first}", f"127.0.0.1:{free}"]
        late = f"Learner 1 at 127.0.0.1:{free} did not come within 1 seconds .*refused"
        with self.assertRaisesRegex(UsageError, late):
            distribute.wait_for_learners(0, addresses, seconds=1)
        with socket.create_server(("", 0)) as taken:
            port = taken.getsockname()[1]
            addresses = [f"127.0.0.1:{first}", f"127.0.0.1:{port}"]
            busy = f"Learner 1 can't listen at 127.0.0.1:{port}"
            with self.assertRaisesRegex(UsageError, busy):
                distribute.wait_for_learners(1, addresses, seconds=1)
        with self.assertRaisesRegex(UsageError, "Learner 0 can't listen at here"):
            distribute.wait_for_learners(0, ["here", "there"], seconds=1)

    def test_who_comes_is_met(self):
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        threads = [
            threading.Thread(target=distribute.wait_for_learners, args=(index, addresses, 30))
            for index in range(1, 3)
        ]
        for thread in threads:
            thread.start()
        distribute.wait_for_learners(0, addresses, 30)
        for thread in threads:
            thread.join(30)
            self.assertFalse(thread.is_alive())


# -------------------------------------------------------------------------------------------------
# Whole runs


def start_learners(test, script, *flags):
    """Two learners of a run; flags may differ: (first's, second's). -> two processes."""
    ports = free_ports(2)
    learners = []
    for index in range(2):
        own = [flag[index] if isinstance(flag, tuple) else flag for flag in flags]
        learners.append(start(script, *own, TF_CONFIG=cluster(ports, index)))
    test.addCleanup(lambda: [learner.kill() for learner in learners])
    return learners


class TestLearners(InFolder):
    @slow("60 s: two learners play CartPole twice")
    def test_one_is_killed_and_both_go_on_to_equal_weights(self):
        run = self.tmp / "run"
        own = (run, run / "learner-1")
        small = ["--layers=1", "--heads=2", "--width=16", "--batch-size=8"]
        first, second = start_learners(
            self,
            "run_dqn",
            "--name=CartPole-v1",
            "--strategy=multiworker",
            f"--run-dir={run}",
            "--learning-starts=256",
            "--threads=1",
            "--total-steps=1000000",
            "--checkpoint-every=1000",
            "--log-lines=2000",
            *small,
        )
        wait_for(lambda: all(checkpoints(each) for each in own), first, second)
        second.send_signal(signal.SIGKILL)
        output = end(self, first, 2)
        lost = "^error: This learner lost another one .* --resume.$"
        self.assertRegex(output.splitlines()[-1], lost)

        kept = ({path.name for path in checkpoints(each)} for each in own)
        newest = max(set.intersection(*kept))
        steps = int(newest.removeprefix("step-")) + 1_000
        resume = tuple(f"--resume={each}" for each in own)
        learners = start_learners(self, "run_dqn", resume, f"--total-steps={steps}")
        for learner in learners:
            output = end(self, learner)
            self.assertIn(newest, re.search("Going on from (.*)[.]", output)[1])
        saved = [load_checkpoint(each)[0] for each in own]
        self.assertEqual(saved[0]["progress"]["step"], saved[1]["progress"]["step"])
        for one, other in zip(saved[0]["learner"], saved[1]["learner"]):
            np.testing.assert_array_equal(one, other)
        one, other = (
            next(value for key, value in each["replay"].items() if key.endswith("obs"))
            for each in saved
        )
        self.assertEqual(one.shape, other.shape)
        self.assertEqual(len(one), 4)  # of eight environments
        self.assertFalse(np.array_equal(one, other))  # what they played is not the same


if __name__ == "__main__":
    unittest.main()
