"""Actors in processes of Ray: what the learner gets from them, and what happens when a part dies."""

import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np
import pytest

from tfdqt.backend import tf
from tfdqt.envs import EnvInfo
from tfdqt.policy import epsilon_ladder
from tfdqt.replay import Steps, make_add_to, make_sampler, make_uneven_replay, replay_arrays, restore_replay, steps_spec, stored_obs
from tfdqt.runs import checkpoints, load_checkpoint, read_log

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from soak import processes_of  # noqa: E402

INFO = EnvInfo("Counter", (2,), "int32", (), 5)
SMALL = ["--name=CartPole-v1", "--actors=2", "--layers=1", "--heads=2", "--width=16", "--batch-size=8", "--learning-starts=256",
         "--threads=1", "--epochs=2000"]


def counted(row, begin, end):
    """Steps [S, 1] of stream `row`, told apart by row and time."""
    time = np.arange(begin, end)[:, None]
    return Steps(np.stack([np.full_like(time, row), time], axis=-1).astype(np.int32), (time % 5).astype(np.int32),
                 (100 * row + time).astype(np.float32), np.ones(time.shape, np.float32), time % 4 == 0)


class TestUnevenReplay(tf.test.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.replay = make_uneven_replay(steps_spec(INFO), 4, 40)
        add = make_add_to(cls.replay)
        for row, begin, end in ((2, 0, 5), (0, 0, 7), (0, 7, 14), (0, 14, 23), (3, 0, 3)):  # row 1 has nothing, row 3 less than a window
            add(counted(row, begin, end), tf.constant([row], tf.int64))
        cls.sample = staticmethod(make_sampler(cls.replay, 4))

    def test_every_whole_window_is_as_likely(self):
        draw = tf.function(lambda: self.sample(9_000, tf.constant([3, 4], tf.int64)))
        windows = tf.nest.map_structure(lambda field: field.numpy(), draw())
        row, time = windows.obs[..., 0], windows.obs[..., 1]
        self.assertAllEqual(np.diff(row), np.zeros((9_000, 3)))
        self.assertAllEqual(np.diff(time), np.ones((9_000, 3)))
        self.assertAllEqual(windows.reward, 100 * row + time)
        places, counts = np.unique(windows.obs[:, 0], axis=0, return_counts=True)
        self.assertAllEqual(places, [[0, begin] for begin in range(13, 20)] + [[2, 0], [2, 1]])  # of row 0, steps 13 to 22 are left
        self.assertAllInRange(counts, 850, 1150)  # 1,000 expected, standard deviation 30

    def test_it_comes_back_from_its_arrays(self):
        other = make_uneven_replay(steps_spec(INFO), 4, 40)
        restore_replay(other, replay_arrays(self.replay))
        again = make_sampler(other, 4)
        for mine, theirs in zip(self.sample(50, tf.constant([0, 1], tf.int64)), again(50, tf.constant([0, 1], tf.int64))):
            self.assertAllEqual(mine, theirs)
        self.assertEqual(len(stored_obs(other)[0]), 5 + 10 + 3)

    def test_the_ladder_of_epsilons(self):
        self.assertAllClose(epsilon_ladder(8)[[0, 7]], [0.4, 0.4 ** 8])
        self.assertAllClose(epsilon_ladder(3), [0.4, 0.4 ** 4.5, 0.4 ** 8])


class TestLock(unittest.TestCase):

    def test_the_locks_agree(self):
        def pins(name):
            lines = (line.partition(";")[0].strip().split("==") for line in (ROOT / name).read_text().splitlines())
            return dict(line for line in lines if len(line) == 2 and not line[0].startswith("#"))

        main, extra = pins("requirements.txt"), pins("requirements-ray.txt")
        self.assertIn("ray", extra)
        self.assertEqual({name: main[name] for name in extra if name in main}, {name: extra[name] for name in extra if name in main})


def actors_of(pid):
    return sorted(child for child, (line, _) in processes_of(pid).items() if line.startswith("ray::Actor"))


def start(*flags, script="run_dqn"):
    return subprocess.Popen([sys.executable, str(ROOT / "scripts" / f"{script}.py"), *flags], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"it never came to that:\n{process.stdout.read()}")
        time.sleep(0.1)


def last_step(run):
    try:
        return int(read_log(run)["step"][-1])
    except ValueError:  # no log yet
        return 0


class WithRay(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        pytest.importorskip("ray", reason="requirements-ray.txt is not installed")

    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp, ignore_errors=True)

    def finish(self, process):
        output, _ = process.communicate(timeout=400)
        self.assertEqual(process.returncode, 0, output)
        return output


class TestActors(WithRay):

    def test_a_killed_actor_is_replaced_and_a_killed_learner_goes_on(self):
        run = self.tmp / "run"
        first = start(*SMALL, f"--run-dir={run}", "--total-steps=1000000", "--checkpoint-every=2000")  # more than it will come to
        wait_for(lambda: last_step(run) > 1_000, first)
        before = actors_of(first.pid)
        self.assertEqual(len(before), 2)
        listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout if shutil.which("ss") else ""
        family = processes_of(first.pid)
        for line in listening.splitlines():
            if any(f"pid={pid}," in line for pid in family):
                self.assertIn("127.0.0.1", line.split()[3], "Ray listens to more than this machine")
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: len(found := actors_of(first.pid)) == 2 and found != before, first)
        wait_for(lambda: checkpoints(run), first)
        first.send_signal(signal.SIGKILL)
        first.wait()
        saved = load_checkpoint(run)[0]
        done, rows = saved["progress"]["step"], saved["replay"]["seen"]
        self.assertEqual(rows.sum(), done)

        steps = done + 6_000
        output = self.finish(start(f"--resume={run}", "--actors=4", f"--total-steps={steps}"))
        self.assertIn("each starts a fresh episode", output)
        log = read_log(run)
        self.assertGreaterEqual(log["step"][-1], steps)
        self.assertAlmostEqual(log["replay_ratio"][-1], 0.5, delta=0.01)
        self.assertAlmostEqual(log["updates"][-1] / (log["step"][-1] - 256), 0.5, delta=0.01)
        self.assertEqual(log["actors"][-1], 4)
        self.assertLess(log["staleness"][-1], 64 + 32 * 2 * 4 + 32)  # a broadcast, two chunks of each actor, one more


class TestTexts(WithRay):

    def test_a_text_run_is_stopped_and_goes_on_with_another_number_of_actors(self):
        run = self.tmp / "run"
        first = start("--task=maze", "--actors=2", f"--run-dir={run}", "--layers=1", "--heads=2", "--width=16", "--hidden", "16",
                      "--episodes=30", "--new-items=256", "--batch-size=16", "--threads=1", "--epochs=1000", script="run_text")
        wait_for(lambda: last_step(run) >= 16, first)
        first.send_signal(signal.SIGTERM)
        output, _ = first.communicate(timeout=120)
        self.assertEqual(first.returncode, 143, output)
        place = load_checkpoint(run)[0]["place"]
        self.assertGreaterEqual(place["games"], 2 * 256)  # as much played as read

        second = start(f"--resume={run}", "--actors=1", script="run_text")
        wait_for(lambda: last_step(run) > place["step"], second)
        second.send_signal(signal.SIGTERM)
        output, _ = second.communicate(timeout=120)
        self.assertEqual(second.returncode, 143, output)
        log = read_log(run)
        self.assertEqual(log["actors"][-1], 1)
        self.assertBetween(log["acted_return"][-1], -100, -1)
        self.assertLess(log["staleness"][-1], 64 + 3 * 8)

    def assertBetween(self, value, low, high):
        self.assertTrue(low <= value <= high, value)


@pytest.mark.slow
class TestFaults(WithRay):

    def test_a_cluster_loses_actors_a_node_and_room(self):
        """All four actors are killed, one is frozen, the object stores fill up, a node with at least one actor goes."""
        import ray
        from ray.cluster_utils import Cluster

        from tfdqt import actors, gpt
        from tfdqt.apex import apex
        from tfdqt.config import default_config
        from tfdqt.envs import make_env

        cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, object_store_memory=100 << 20))
        nodes = [cluster.add_node(num_cpus=4, object_store_memory=100 << 20) for _ in range(2)]
        self.addCleanup(cluster.shutdown)
        self.addCleanup(ray.shutdown)
        network, cfg = default_config("CartPole-v1")
        network = dataclasses.replace(network, layers=1, heads=2, width=16)
        cfg = dataclasses.replace(cfg, total_steps=1_000_000, epsilon_fraction=0.01, batch_size=8)
        env_fn, q_fn = functools.partial(make_env, "CartPole-v1"), functools.partial(gpt.build_q, cfg=network)
        rows, kept = [], []

        def running():
            return [pid for pid in actors_of(os.getpid()) if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]

        def kill_all():
            for pid in running():
                os.kill(pid, signal.SIGKILL)

        def freeze_one():
            kept.append(running()[0])
            os.kill(kept[0], signal.SIGSTOP)

        def fill_store():
            os.kill(kept[0], signal.SIGCONT)
            kept.extend(ray.put(np.full(40 << 20, i, np.uint8)) for i in range(4))

        plan = [(4_000, kill_all), (10_000, freeze_one), (16_000, fill_store),
                (22_000, lambda: cluster.remove_node(nodes[1], allow_graceful=False))]

        def log(metrics):
            rows.append(metrics)
            if plan and metrics.step >= plan[0][0]:
                plan.pop(0)[1]()

        def recovered():  # how many steps that takes depends on how long a new actor takes to start
            return not plan and rows[-1].replaced >= 5 and rows[-1].actors == 4

        state, _, progress = apex(env_fn, q_fn, cfg, actors=4, log=log, should_stop=recovered, make_pool=functools.partial(
            actors.make_game_pool, env_fn, q_fn, cfg, actors=4, address=cluster.address))
        self.assertLess(progress.step, 1_000_000)
        self.assertAlmostEqual(rows[-1].replay_ratio, cfg.updates_per_step, delta=0.02 * cfg.updates_per_step)
        self.assertEqual(int(state.updates), rows[-1].updates)

    def test_a_run_outlives_rays_head_and_is_saved_when_its_node_goes(self):
        run = self.tmp / "run"
        process = start(*SMALL, f"--run-dir={run}", "--total-steps=1000000", "--checkpoint-every=2000")
        wait_for(lambda: last_step(run) > 1_000, process)

        def kill(part):
            pid, = [child for child, (line, _) in processes_of(process.pid).items() if f"/{part} " in line]
            os.kill(pid, signal.SIGKILL)
            return last_step(run)

        step = kill("gcs_server")
        wait_for(lambda: last_step(run) > step + 5_000, process)
        step = kill("raylet")
        process.communicate(timeout=120)
        self.assertNotEqual(process.returncode, 0)
        saved = load_checkpoint(run)[0]["progress"]["step"]
        self.assertGreaterEqual(saved, step - 2_000 - 64 * 2)
        self.finish(start(f"--resume={run}", f"--total-steps={saved + 2_000}"))
        self.assertGreaterEqual(last_step(run), saved + 2_000)


if __name__ == "__main__":
    unittest.main()
