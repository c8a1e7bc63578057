"""Every script at toy size, as a user calls it; and what they answer to bad input."""

import csv
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--layers=1", "--heads=2", "--width=16", "--batch-size=8", "--learning-starts=256", "--epochs=10"]


def script(name, *flags, cwd=None):
    return subprocess.run([sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, flags)], capture_output=True, text=True,
                          cwd=cwd, timeout=600, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def refused(test, message, name, *flags):
    """The script answers in one sentence, with exit code 2."""
    done = script(name, *flags, cwd=test.tmp)
    test.assertEqual(done.returncode, 2, done.stdout + done.stderr)
    test.assertNotIn("Traceback", done.stderr)
    test.assertRegex(done.stderr.strip(), message)
    test.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)


def call_alone(test, saved_model, values, *, signature="q_values", **inputs):
    """What a SavedModel gives in a process with TensorFlow alone: q, by the name `values`, and a, the actions."""
    np.savez(test.tmp / "inputs.npz", **inputs)
    code = ("import numpy as np, tensorflow as tf, sys\n"
            "model = tf.saved_model.load(sys.argv[1]); x = {k: tf.constant(v) for k, v in np.load(sys.argv[2]).items()}\n"
            f"q, a = model.signatures['{signature}'](**x)['{values}'], model.signatures['action'](**x)['action']\n"
            "assert not any(name.startswith('tfdqt') for name in sys.modules)\n"
            "np.savez(sys.argv[3], q=q, a=a)\n")
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")}
    alone = subprocess.run([sys.executable, "-c", code, str(saved_model), str(test.tmp / "inputs.npz"), str(test.tmp / "q.npz")],
                           capture_output=True, text=True, env=env, cwd=test.tmp)
    test.assertEqual(alone.returncode, 0, alone.stderr)
    return np.load(test.tmp / "q.npz")


class TestScripts(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.tmp = Path(cls.folder.name)
        cls.run_dir = cls.tmp / "breakout"
        cls.trained = script("run_dqn", "--name=Breakout-ram-v0", "--total-steps=1024", f"--run-dir={cls.run_dir}", *TINY)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_training_shows_one_line_and_no_noise(self):
        self.assertEqual(self.trained.returncode, 0, self.trained.stderr)
        lines = [line for line in re.split(r"[\r\n]+", self.trained.stderr) if line.strip()]
        for line in lines[1:]:
            self.assertRegex(line, r"^Epoch: \d+ \| \d+ \| [\d.nan]+ \| [-\d.nan]+ \| playing games: \d+/\d+: +\d+%\|.*\| \d+/10$")
        for noise in ("oneDNN", "Gym has been", "WARNING", "Warning", "A.L.E", "cuda", "InitializeLog"):
            self.assertNotIn(noise, self.trained.stderr + self.trained.stdout)
        with open(self.run_dir / "log.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([int(row["epoch"]) for row in rows], list(range(1, 11)))
        self.assertTrue(list((self.run_dir / "tensorboard").glob("events*")))

    def test_evaluate_plot_and_export(self):
        done = script("evaluate", self.run_dir, "--episodes=3", "--epsilon=0.05", "--max-steps=200", "--workers=0",
                      f"--video={self.tmp / 'film'}", "--video-steps=60")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"3 games at epsilon 0.05: mean [\d.]+, std")
        self.assertEqual(len(list((self.tmp / "film").glob("*.mp4"))), 1)
        self.assertEqual(len(list((self.tmp / "film").glob("*.gif"))), 1)

        picture = self.tmp / "curve.png"
        done = script("plot", self.run_dir, f"--out={picture}", "--column=loss", "--level", "human=30.5")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(picture.stat().st_size, 5_000)

        out = self.tmp / "saved_model"
        done = script("export", self.run_dir, out)
        self.assertEqual(done.returncode, 0, done.stderr)
        from tfdqt.evaluate import load_run
        from tfdqt.networks import make_act

        trained = load_run(self.run_dir)
        rng = np.random.default_rng(0)
        inputs = dict(obs=rng.integers(0, 256, (5, 4, 128)).astype("uint8"), first=np.eye(4, dtype="int32")[[0, 1, 2, 3, 0]])
        saved = call_alone(self, out, "q_values", **inputs)
        live = trained.networks.apply(trained.weights, {**inputs, "prev_action": None})[:, -1].numpy()
        np.testing.assert_allclose(saved["q"], live, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(saved["a"], make_act(trained.networks)(trained.weights, inputs).numpy())
        np.testing.assert_allclose(np.mean(trained.networks.model(inputs)[:, -1], axis=-1), live, rtol=1e-5, atol=1e-6)  # quantiles

    def test_ppo_trains_evaluates_plots_and_exports(self):
        run = self.tmp / "ppo"
        done = script("run_ppo", "--total-steps=1024", "--width=16", f"--run-dir={run}", "--workers=0", "--epochs=4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"Epoch: 4 \| 1024 \| ")
        for flags, how in ((["--sample"], "with actions drawn from the policy"), ([], "at epsilon 0")):
            done = script("evaluate", run, "--episodes=3", "--workers=0", *flags)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertRegex(done.stdout, rf"after 1024 steps: 3 games {how}: mean [\d.]+")
        done = script("plot", run, self.run_dir, f"--out={self.tmp / 'two.png'}", "--column=loss")
        self.assertEqual(done.returncode, 0, done.stderr)

        out = self.tmp / "policy"
        done = script("export", run, out)
        self.assertEqual(done.returncode, 0, done.stderr)
        from tfdqt.evaluate import load_run

        trained = load_run(run)
        inputs = dict(obs=np.random.default_rng(0).normal(size=(5, 4, 4)).astype("float32"),
                      first=np.eye(4, dtype="int32")[[0, 1, 2, 3, 0]])
        saved = call_alone(self, out, "policy", signature="policy", **inputs)
        logits = trained.networks.apply(trained.weights, inputs)[:, -1].numpy()
        p = np.exp(logits)
        np.testing.assert_allclose(saved["q"], p / p.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(saved["a"], logits.argmax(axis=1))
        refused(self, "not a run of DQN", "run_dqn", f"--resume={run}")
        refused(self, "--sample draws from the policy of a PPO run", "evaluate", self.run_dir, "--sample")
        refused(self, "--beta is for text runs", "evaluate", self.run_dir, "--beta=0")
        refused(self, "--quantiles", "run_ppo", "--quantiles=8")
        refused(self, "does not divide", "run_ppo", "--batch-size=100")

    def test_bad_input_gets_one_sentence(self):
        refused(self, "Breakout-ram-v0", "run_dqn", "--name=Brekout-ram-v0")
        refused(self, "images", "run_dqn", "--name=Breakout-v0")
        refused(self, "Discrete actions", "run_dqn", "--name=Pendulum-v1")
        refused(self, "multiple of the heads", "run_dqn", "--width=30", "--heads=4")
        refused(self, "--context must be greater than 0", "run_dqn", "--context=0")
        refused(self, "--total-steps must be greater than 0", "run_dqn", "--total-steps=-5")
        refused(self, "whole number of updates", "run_dqn", "--updates-per-step=0.3")
        (self.tmp / "file").write_text("")
        refused(self, "can't be written", "run_dqn", f"--run-dir={self.tmp / 'file' / 'run'}")
        refused(self, "already holds a run", "run_dqn", f"--run-dir={self.run_dir}")
        refused(self, "There is no run", "run_dqn", "--resume=nowhere")
        refused(self, "leave out --layers", "run_dqn", f"--resume={self.run_dir}", "--layers=3")
        refused(self, "There is no run", "evaluate", "nowhere")
        refused(self, "There is no run", "plot", "nowhere")
        refused(self, "exists already", "export", self.run_dir, self.tmp)

    def test_a_changed_network_is_refused_on_resume(self):
        config = self.run_dir / "config.json"
        before = config.read_text()
        try:
            config.write_text(before.replace('"width": 16', '"width": 32'))
            refused(self, "other sizes", "run_dqn", f"--resume={self.run_dir}")
            refused(self, "weights", "evaluate", self.run_dir)
            config.write_text(before.replace('"width": 16', '"widht": 16'))
            refused(self, "widht", "run_dqn", f"--resume={self.run_dir}")
        finally:
            config.write_text(before)


if __name__ == "__main__":
    unittest.main()
