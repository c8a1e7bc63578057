"""Actors in processes of Ray: what a learner gets from them, and what happens when a part dies."""

import dataclasses
import functools
import importlib.util
import os
import runpy
import shutil
import signal
import subprocess
import unittest
import unittest.mock
from pathlib import Path

import numpy as np

from tests.helpers import ROOT, InFolder, end, slow, start, wait_for
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.algorithms import default_settings
from tfdqt.games.apex import apex
from tfdqt.games.envs import make_env
from tfdqt.games.networks import build_q
from tfdqt.runs.checkpoint import checkpoints, load_checkpoint
from tfdqt.runs.log import read_log
from tfdqt.scale import ray_pool

processes_of = runpy.run_path(str(ROOT / "benchmarks" / "scale" / "soak.py"))["processes_of"]
HAS_RAY = importlib.util.find_spec("ray") is not None
with_ray = unittest.skipUnless(HAS_RAY, "requirements-ray.txt is not installed")
SMALL = [
    "--name=CartPole-v1",
    "--actors=2",
    "--layers=1",
    "--heads=2",
    "--width=16",
    "--batch-size=8",
    "--learning-starts=256",
    "--threads=1",
    "--log-lines=2000",
]


def actors_of(pid):
    """The processes of a learner's actors."""
    children = processes_of(pid).items()
    return sorted(child for child, (line, _) in children if line.startswith("ray::Actor"))


def last_step(run):
    """The step of the last line of a run's log, 0 if there is none."""
    try:
        return int(read_log(run)["step"][-1])
    except UsageError:  # no log yet
        return 0


class TestLock(unittest.TestCase):
    def test_the_locks_agree(self):
        def pins(name):
            lines = (
                line.partition(";")[0].strip().split("==")
                for line in (ROOT / name).read_text().splitlines()
            )
            return dict(line for line in lines if len(line) == 2 and not line[0].startswith("#"))

        main, extra = pins("requirements.txt"), pins("requirements-ray.txt")
        self.assertIn("ray", extra)
        self.assertEqual(
            {name: main[name] for name in extra if name in main},
            {name: extra[name] for name in extra if name in main},
        )


class TestWithoutRay(unittest.TestCase):
    def test_who_has_none_is_told_how_to_get_it(self):
        with unittest.mock.patch.dict("sys.modules", ray=None):
            with self.assertRaisesRegex(UsageError, "requirements-ray.txt"):
                ray_pool.connect(2)

    @with_ray
    def test_a_cluster_that_is_not_there_is_refused(self):
        for address in ("127.0.0.1:1", "nowhere"):
            with self.assertRaisesRegex(UsageError, f"Nothing answers at --ray-address={address}"):
                ray_pool.connect(2, address)


def make_echo(share, seed):
    """An actor's collect: what it was given, and its process."""

    def collect(weights, step):
        if weights[0] < 0:
            raise EnvFailure("the robot fell over")
        return share, int(seed.generate_state(1)[0]), weights.sum(), step, os.getpid()

    return collect


@with_ray
class TestPool(unittest.TestCase):
    def taken(self, pool, enough):
        """The chunks that come until enough(chunks) is true."""
        chunks = []
        while not enough(chunks):
            chunk = pool.take(100)
            if chunk is not None:
                chunks.append(chunk)
        return chunks

    @slow("20 s: starts Ray")
    def test_chunks_come_from_all_and_who_dies_is_replaced(self):
        pool = ray_pool.make_pool(make_echo, ["a", "b"], [0, 1])
        self.addCleanup(pool.close)
        pool.broadcast(np.ones(3, np.float32), 7)
        chunks = self.taken(pool, lambda chunks: pool.counts()[0] == 2 and len(chunks) > 7)
        self.assertEqual({chunk.experience[0] for chunk in chunks}, {"a", "b"})
        self.assertEqual({chunk.experience[2:4] for chunk in chunks}, {(3.0, 100)})
        self.assertEqual({chunk.version for chunk in chunks}, {7})
        self.assertEqual(len({chunk.experience[1] for chunk in chunks}), 2)  # seeds of their own
        self.assertEqual(pool.counts(), (2, 0))

        # New weights come with the chunks that are asked for from then on.
        pool.broadcast(np.full(3, 2, np.float32), 8)
        chunks = self.taken(pool, lambda chunks: len(chunks) == 12)
        self.assertEqual(chunks[-1].experience[2:4], (6.0, 100))
        self.assertEqual(chunks[-1].version, 8)
        old = [chunk.version for chunk in chunks].count(7)
        self.assertLessEqual(old, 2 * ray_pool.AHEAD)

        before = {chunk.experience[-1] for chunk in chunks}
        os.kill(min(before), signal.SIGKILL)
        self.taken(pool, lambda chunks: pool.counts() == (2, 1))
        chunks = self.taken(pool, lambda chunks: len(chunks) == 12)
        self.assertEqual({chunk.experience[0] for chunk in chunks}, {"a", "b"})
        self.assertNotIn(min(before), {chunk.experience[-1] for chunk in chunks})

        pool.broadcast(np.full(3, -1, np.float32), 9)
        with self.assertRaisesRegex(EnvFailure, "the robot fell over"):
            self.taken(pool, lambda chunks: len(chunks) == 20)


@with_ray
class TestRuns(InFolder):
    @slow("60 s: Ray twice, with up to four actors")
    def test_a_killed_actor_is_replaced_and_a_killed_learner_goes_on(self):
        run = self.tmp / "run"
        # More steps than it will come to.
        endless = ["--total-steps=1000000", "--checkpoint-every=2000"]
        first = start("run_dqn", *SMALL, f"--run-dir={run}", *endless)
        wait_for(lambda: last_step(run) > 1_000, first)
        before = actors_of(first.pid)
        self.assertEqual(len(before), 2)
        listening = ""
        if shutil.which("ss"):
            listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout
        family = processes_of(first.pid)
        for line in listening.splitlines():
            if any(f"pid={pid}," in line for pid in family):
                local = line.split()[3]
                self.assertIn("127.0.0.1", local, "Ray listens to more than this machine")
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: len(now := actors_of(first.pid)) == 2 and now != before, first)
        wait_for(lambda: checkpoints(run), first)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        saved = load_checkpoint(run)[0]
        done = saved["progress"]["step"]
        self.assertEqual(saved["replay"]["seen"].sum(), done)

        steps = done + 6_000
        again = start("run_dqn", f"--resume={run}", "--actors=4", f"--total-steps={steps}")
        output = end(self, again)
        self.assertIn("each starts a fresh episode", output)
        log = read_log(run)
        self.assertGreaterEqual(log["step"][-1], steps)
        self.assertAlmostEqual(log["replay_ratio"][-1], 0.5, delta=0.01)
        self.assertAlmostEqual(log["updates"][-1] / (log["step"][-1] - 256), 0.5, delta=0.01)
        self.assertEqual(log["actors"][-1], 4)
        # A broadcast, two chunks of each actor, one more.
        self.assertLess(log["staleness"][-1], 64 + 32 * 2 * 4 + 32)

    @slow("60 s: Ray twice, on texts")
    def test_a_text_run_is_stopped_and_goes_on_with_another_number_of_actors(self):
        run = self.tmp / "run"
        first = start(
            "run_text",
            "--task=maze",
            "--actors=2",
            f"--run-dir={run}",
            "--layers=1",
            "--heads=2",
            "--width=16",
            "--hidden",
            "16",
            "--episodes=30",
            "--new-items=256",
            "--batch-size=16",
            "--threads=1",
            "--epochs=1000",
        )
        wait_for(lambda: last_step(run) >= 16, first)
        first.send_signal(signal.SIGTERM)
        end(self, first, 128 + signal.SIGTERM)
        place = load_checkpoint(run)[0]["place"]
        self.assertGreaterEqual(place["games"], 2 * 256)  # as much played as read

        second = start("run_text", f"--resume={run}", "--actors=1")
        wait_for(lambda: last_step(run) > place["step"], second)
        second.send_signal(signal.SIGTERM)
        end(self, second, 128 + signal.SIGTERM)
        log = read_log(run)
        self.assertEqual(log["actors"][-1], 1)
        self.assertTrue(-100 <= log["acted_return"][-1] <= -1, log["acted_return"][-1])
        self.assertLess(log["staleness"][-1], 64 + 3 * 8)


@with_ray
class TestFaults(InFolder):
    @slow("120 s: nine actors are replaced")
    def test_a_cluster_loses_actors_a_node_and_room(self):
        """All four actors are killed, one is frozen, the object stores fill up, a node goes."""
        import ray
        from ray.cluster_utils import Cluster

        room = 100 << 20
        head = dict(num_cpus=0, object_store_memory=room)
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.add_node(num_cpus=4, object_store_memory=room) for _ in range(2)]
        self.addCleanup(cluster.shutdown)
        self.addCleanup(ray.shutdown)
        network, cfg = default_settings("CartPole-v1")
        network = dataclasses.replace(network, layers=1, heads=2, width=16)
        cfg = dataclasses.replace(cfg, total_steps=1_000_000, epsilon_fraction=0.01, batch_size=8)
        rows = []
        kept = []

        def running():
            pids = actors_of(os.getpid())
            states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for pid in pids}
            return [pid for pid in pids if states[pid].split()[0] != "Z"]

        def kill_all():
            for pid in running():
                os.kill(pid, signal.SIGKILL)

        def freeze_one():
            kept.append(running()[0])
            os.kill(kept[0], signal.SIGSTOP)

        def fill_store():
            os.kill(kept[0], signal.SIGCONT)
            kept.extend(ray.put(np.full(40 << 20, i, np.uint8)) for i in range(4))

        def remove_node():
            cluster.remove_node(nodes[1], allow_graceful=False)

        plan = [
            (4_000, kill_all),
            (10_000, freeze_one),
            (16_000, fill_store),
            (22_000, remove_node),
        ]

        def log(metrics):
            rows.append(metrics)
            if plan and metrics.step >= plan[0][0]:
                plan.pop(0)[1]()

        def recovered():  # how many steps that takes depends on how long a new actor takes to start
            return not plan and rows[-1].replaced >= 5 and rows[-1].actors == 4

        state, _, progress = apex(
            functools.partial(make_env, "CartPole-v1"),
            functools.partial(build_q, cfg=network),
            cfg,
            actors=4,
            log=log,
            should_stop=recovered,
            make_pool=functools.partial(ray_pool.make_pool, address=cluster.address),
        )
        self.assertLess(progress.step, 1_000_000)
        ratio = cfg.updates_per_step
        self.assertAlmostEqual(rows[-1].replay_ratio, ratio, delta=0.02 * ratio)
        self.assertEqual(int(state.updates), rows[-1].updates)

    @slow("90 s: Ray twice")
    def test_a_run_outlives_rays_head_and_is_saved_when_its_node_goes(self):
        run = self.tmp / "run"
        endless = ["--total-steps=1000000", "--checkpoint-every=2000"]
        process = start("run_dqn", *SMALL, f"--run-dir={run}", *endless)
        wait_for(lambda: last_step(run) > 1_000, process)

        def kill(part):
            children = processes_of(process.pid).items()
            (pid,) = [child for child, (line, _) in children if f"/{part} " in line]
            os.kill(pid, signal.SIGKILL)
            return last_step(run)

        step = kill("gcs_server")
        wait_for(lambda: last_step(run) > step + 5_000, process)
        step = kill("raylet")
        process.communicate(timeout=120)
        self.assertNotEqual(process.returncode, 0)
        saved = load_checkpoint(run)[0]["progress"]["step"]
        self.assertGreaterEqual(saved, step - 2_000 - 64 * 2)
        end(self, start("run_dqn", f"--resume={run}", f"--total-steps={saved + 2_000}"))
        self.assertGreaterEqual(last_step(run), saved + 2_000)


if __name__ == "__main__":
    unittest.main()
