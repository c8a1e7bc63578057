"""Every algorithm of the table, by its script: trained, gone on with, evaluated, exported, drawn.

A new one is tested by these without a line more.
"""

import csv
import functools
import json
import shutil
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

import tfdqt
from tests.helpers import (
    assert_same_tree,
    call,
    call_alone,
    log_without_time,
    refused,
    succeeds,
)
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.envs import make_env
from tfdqt.games.evaluate import load_run, play_episodes
from tfdqt.games.flat import make_act
from tfdqt.games.window import make_window, network_inputs, push
from tfdqt.runs.checkpoint import checkpoints, load_checkpoint
from tfdqt.runs.cli import read_settings
from tfdqt.runs.log import read_log

# A dense network is compiled soonest.
TINY = ["--network=dense", "--hidden", "16", "--context=2", "--num-envs=8", "--workers=0"]
STEPS = 2_048


@functools.cache
def folder():
    """A folder for the runs of all tests here; it goes when the process ends."""
    made = tempfile.TemporaryDirectory()
    folder.keep = made
    return Path(made.name)


@functools.cache
def trained(algorithm):
    """A run of an algorithm on CartPole at toy size: -> (folder, what its script said)."""
    run = folder() / algorithm
    done = call(
        f"run_{algorithm}",
        "--name=CartPole-v1",
        f"--run-dir={run}",
        f"--total-steps={STEPS}",
        "--checkpoint-every=512",
        "--log-lines=8",
        *TINY,
    )
    return run, done


def for_each(test):
    """A test that is called with the name of every algorithm, its record and its run."""

    @functools.wraps(test)
    def tests(self):
        for name, algorithm in ALGORITHMS.items():
            with self.subTest(algorithm=name):
                test(self, name, algorithm, trained(name)[0])

    return tests


class EachAlgorithm(unittest.TestCase):
    tmp = property(lambda self: folder())  # for call_alone

    @for_each
    def test_trains(self, name, algorithm, run):
        done = trained(name)[1]
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(f"Done at step {STEPS}", done.stdout)
        self.assertIn(f"evaluate.py {run}", done.stdout)
        self.assertRegex(done.stderr, rf"Epoch: 8 \| {STEPS} \| ")
        log = read_log(run)
        self.assertEqual(tuple(log), ("epoch", "seconds", *algorithm.metrics._fields))
        self.assertEqual(list(log["epoch"]), list(range(1, 9)))
        self.assertEqual(log["step"][-1], STEPS)
        self.assertTrue(np.isfinite(log["loss"][-1]))
        settings = json.loads((run / "config.json").read_text())
        self.assertEqual((settings["algorithm"], settings["log_lines"]), (name, 8))
        self.assertEqual(settings[name]["total_steps"], STEPS)

    @for_each
    def test_goes_on_to_the_same_bits(self, name, algorithm, run):
        again = folder() / f"{name}-again"
        shutil.copytree(run, again)
        older, newest = checkpoints(again)
        shutil.rmtree(newest)
        done = succeeds(self, f"run_{name}", f"--resume={again}", "--workers=0")
        self.assertIn(f"Going on from {older}", done.stdout)
        assert_same_tree(self, load_checkpoint(run)[0], load_checkpoint(again)[0])
        self.assertEqual(log_without_time(run), log_without_time(again))

    def test_goes_on_beyond_its_end(self):
        run = folder() / "longer"
        shutil.copytree(trained("pqn")[0], run)
        more = STEPS + 512
        flags = [f"--resume={run}", f"--total-steps={more}", "--workers=0"]
        done = succeeds(self, "run_pqn", *flags)
        self.assertIn(f"Done at step {more}", done.stdout)
        self.assertEqual(read_settings(run)["pqn"]["total_steps"], more)

    @for_each
    def test_is_evaluated(self, name, algorithm, run):
        flags = ["--episodes=3", "--workers=0", "--max-steps=30"]
        done = succeeds(self, "evaluate", run, *flags)
        self.assertRegex(done.stdout, rf"after {STEPS} steps: 3 games at epsilon 0: mean [\d.]+")
        if algorithm.is_policy:
            done = succeeds(self, "evaluate", run, *flags, "--sample")
            self.assertIn("3 games with actions drawn from the policy: mean", done.stdout)
        else:
            refused(self, "--sample draws from the policy", "evaluate", run, "--sample")
        with open(run / "evaluation.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 6 if algorithm.is_policy else 3)
        policy = tfdqt.load_policy(run, seed=1_000)
        env_fn = functools.partial(make_env, "CartPole-v1")
        returns, _ = play_episodes(env_fn, policy, episodes=3, seed=1_000, max_steps=30)
        self.assertEqual([float(row["return"]) for row in rows[:3]], list(returns))

    @for_each
    def test_is_usable_in_three_lines(self, name, algorithm, run):
        policy = tfdqt.load_policy(run)
        policy.reset()
        env = make_env("CartPole-v1")
        obs, _ = env.reset(seed=0)
        run_of = load_run(run)
        window = make_window(run_of.info, 1, run_of.net.context)
        act = make_act(run_of.net, algorithm.scores)
        action = -1
        for step in range(5):
            push(window, obs[None], np.array([step == 0]), np.array([action]))
            action = policy(obs)
            self.assertEqual(action, int(act(run_of.weights, network_inputs(window))[0]))
            obs = env.step(action)[0]

    @for_each
    def test_is_exported(self, name, algorithm, run):
        rng = np.random.default_rng(0)
        inputs = dict(
            obs=rng.normal(size=(5, 2, 4)).astype("float32"),
            first=np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]], "int32"),
        )
        out = folder() / f"{name}-exported"
        done = succeeds(self, "export", run, out)
        signature, values = (
            ("policy", "policy") if algorithm.is_policy else ("q_values", "q_values")
        )
        self.assertIn(f"{out}: signatures {signature} and action; inputs obs", done.stdout)
        run_of = load_run(run)
        scores = algorithm.scores(run_of.net.apply(run_of.weights, inputs))[:, -1].numpy()
        if algorithm.is_policy:
            expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            alone = call_alone(self, out, signature, signature=signature, **inputs)
            given, action = alone["q"], alone["a"]
        else:  # test_scripts does the same in a process with TensorFlow alone
            expected = scores
            model = tf.saved_model.load(str(out))
            tensors = {key: tf.constant(value) for key, value in inputs.items()}
            given = model.signatures[signature](**tensors)[signature].numpy()
            action = model.signatures["action"](**tensors)["action"].numpy()
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(action, scores.argmax(axis=1))
        refused(self, "--tflite is for text runs", "export", run, folder() / "no", "--tflite=x")

    def test_all_are_drawn_in_one_picture(self):
        runs = [trained(name)[0] for name in ALGORITHMS]
        picture = folder() / "all.png"
        done = succeeds(self, "plot", *runs, f"--out={picture}", "--x=seconds")
        self.assertEqual(done.stdout.strip(), str(picture))
        self.assertGreater(picture.stat().st_size, 5_000)

    def test_only_its_own_script_goes_on_with_it(self):
        names = list(ALGORITHMS)
        for name, other in zip(names, names[1:] + names[:1]):
            run = trained(name)[0]
            refused(self, f"not a run of {other.upper()}", f"run_{other}", f"--resume={run}")

    def test_an_unknown_one_is_refused(self):
        run = folder() / "unknown"
        shutil.copytree(trained("dqn")[0], run)
        path = run / "config.json"
        path.write_text(path.read_text().replace('"algorithm": "dqn"', '"algorithm": "sarsa"'))
        refused(self, "not a run of DQN", "run_dqn", f"--resume={run}")
        for name, *flags in (
            ("evaluate", run),
            ("plot", run),
            ("export", run, folder() / "nothing"),
        ):
            with self.subTest(script=name):
                refused(self, "sarsa, which is not known here; .*dqn, ppo, pqn", name, *flags)
        with self.assertRaisesRegex(UsageError, "sarsa, which is not known here"):
            tfdqt.load_policy(run)

    def test_nothing_to_draw_from_is_refused(self):
        with self.assertRaisesRegex(UsageError, "--sample draws from the policy"):
            tfdqt.load_policy(trained("dqn")[0], sample=True)
        with self.assertRaisesRegex(UsageError, "without --epsilon"):
            tfdqt.load_policy(trained("ppo")[0], sample=True, epsilon=0.1)


class OldRuns(unittest.TestCase):
    """Runs of 0.1.0: the log's lines were called `epochs`, ScaleConfig `far`; later fields miss."""

    def old(self, **more):
        """A run whose config.json is as 0.1.0 wrote it."""
        run = folder() / f"old-{len(list(folder().iterdir()))}"
        shutil.copytree(trained("dqn")[0], run)
        now = json.loads((run / "config.json").read_text())
        network = {key: value for key, value in now["network"].items() if key != "layer_norm"}
        settings = dict(
            version="0.1.0",
            algorithm="dqn",
            name="CartPole-v1",
            seed=0,
            epochs=8,
            checkpoint_every=512,
            network=network,
            dqn=now["dqn"],
            **more,
        )
        (run / "config.json").write_text(json.dumps(settings, indent=2))
        return run

    def test_they_go_on(self):
        far = dict(actors=0, ray_address=None, broadcast_every=64, strategy="none")
        run = self.old(far=far)
        shutil.rmtree(checkpoints(run)[-1])
        done = succeeds(self, "run_dqn", f"--resume={run}", "--workers=0")
        self.assertRegex(done.stderr, rf"Epoch: 8 \| {STEPS} \| .*\| 8/8")
        whole = trained("dqn")[0]
        assert_same_tree(self, load_checkpoint(whole)[0], load_checkpoint(run)[0])
        self.assertEqual(log_without_time(whole), log_without_time(run))

    def test_with_more_steps_they_keep_what_they_are(self):
        run = self.old()
        succeeds(self, "run_dqn", f"--resume={run}", f"--total-steps={STEPS + 64}", "--workers=0")
        settings = read_settings(run)
        self.assertEqual(settings["dqn"]["total_steps"], STEPS + 64)
        self.assertEqual(settings["epochs"], 8)

    def test_they_are_evaluated_drawn_and_exported(self):
        run = self.old(far=dict(actors=0, broadcast_every=64, strategy="none"))
        self.assertEqual(read_settings(run)["scale"].broadcast_every, 64)
        succeeds(self, "evaluate", run, "--episodes=1", "--workers=0", "--max-steps=9")
        picture = folder() / "old.png"
        # Settings that came later are as by default: it is drawn as one kind with the new one.
        with mock.patch("tfdqt.runs.plots.plot_learning") as drawn:
            succeeds(self, "plot", run, trained("dqn")[0], f"--out={picture}")
        ((label, logs),) = drawn.call_args[0][0].items()
        self.assertEqual((label, len(logs)), ("CartPole-v1 DQN dense", 2))
        succeeds(self, "export", run, folder() / "old-exported")

    def test_a_run_with_actors_goes_on_with_actors(self):
        run = self.old(far=dict(actors=2, ray_address=None, broadcast_every=9, strategy="none"))
        self.assertEqual(read_settings(run)["scale"].actors, 2)
        refused(self, "started with --actors", "run_dqn", f"--resume={run}", "--actors=0")


if __name__ == "__main__":
    unittest.main()
