"""The scripts on a game of Atari, as a user calls them; and what they answer to bad input."""

import csv
import re
import tempfile
import unittest
from pathlib import Path

import numpy as np

from tests.helpers import call_alone, refused, script, succeeds
from tfdqt.games.flat import make_act, mean_q
from tfdqt.games.trained import load_run
from tfdqt.runs.checkpoint import load_checkpoint

TINY = ["--layers=1", "--heads=2", "--width=16", "--batch-size=8", "--learning-starts=256"]


class TestScripts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        made = tempfile.TemporaryDirectory()
        cls.addClassCleanup(made.cleanup)
        cls.tmp = Path(made.name)
        cls.run_dir = cls.tmp / "breakout"
        # In a process of its own, for what it says.
        cls.trained = script(
            "run_dqn",
            "--name=Breakout-ram-v0",
            "--total-steps=1024",
            f"--run-dir={cls.run_dir}",
            "--log-lines=10",
            "--n-step-if-steady",
            *TINY,
        )

    def test_training_shows_one_line_and_no_noise(self):
        self.assertEqual(self.trained.returncode, 0, self.trained.stderr)
        lines = [line for line in re.split(r"[\r\n]+", self.trained.stderr) if line.strip()]
        for line in lines[1:]:
            self.assertRegex(
                line,
                r"^Epoch: \d+ \| \d+ \| [\d.nan]+ \| [-\d.nan]+ \| playing games: \d+/\d+: +\d+%\|"
                r".*\| \d+/10$",
            )
        for noise in (
            "oneDNN",
            "Gym has been",
            "WARNING",
            "Warning",
            "A.L.E",
            "cuda",
            "InitializeLog",
        ):
            self.assertNotIn(noise, self.trained.stderr + self.trained.stdout)
        with open(self.run_dir / "log.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([int(row["epoch"]) for row in rows], list(range(1, 11)))
        self.assertTrue(list((self.run_dir / "tensorboard").glob("events*")))

    def test_the_network_is_built_and_told_once(self):
        told = re.findall(r"gpt network: ([\d,]+) weights", self.trained.stdout)
        self.assertEqual(len(told), 1, self.trained.stdout)
        count = load_run(self.run_dir).net.model.count_params()
        self.assertEqual(told, [f"{count:,}"])
        self.assertRegex(self.trained.stdout, r"\d+ features changed by 0.001 of their range")

    def test_how_many_rewards_are_summed_is_told(self):
        state, _ = load_checkpoint(self.run_dir)
        one_step = bool(state["learner"][-1])
        told = "differed: targets sum 1" if one_step else "were the same: targets sum 3"
        self.assertIn(f"Rewards before the first update {told} of them.", self.trained.stdout)

    def test_evaluate_films(self):
        done = succeeds(
            self,
            "evaluate",
            self.run_dir,
            "--episodes=3",
            "--epsilon=0.05",
            "--max-steps=200",
            "--workers=0",
            f"--video={self.tmp / 'film'}",
            "--video-steps=60",
        )
        self.assertRegex(done.stdout, r"3 games at epsilon 0.05: mean [\d.]+, std")
        self.assertEqual(len(list((self.tmp / "film").glob("*.mp4"))), 1)
        self.assertEqual(len(list((self.tmp / "film").glob("*.gif"))), 1)
        refused(self, "--beta is for text runs", "evaluate", self.run_dir, "--beta=0")
        (self.tmp / "file").write_text("")
        film = f"--video={self.tmp / 'file'}"
        refused(self, "can't be a folder .*name another", "evaluate", self.run_dir, film)

    def test_evaluate_searches(self):
        flags = ["--episodes=1", "--max-steps=6", "--simulations=3", "--avoid-repeats"]
        done = succeeds(self, "evaluate", self.run_dir, *flags)
        self.assertRegex(
            done.stdout,
            r"1 games by 3 simulations a move \([\d.]+ evaluations of the network, [\d.]+ ms\): me",
        )
        with open(self.run_dir / "evaluation.csv", newline="") as file:
            (row,) = [row for row in csv.DictReader(file) if row.get("simulations") == "3"]
        self.assertEqual((row["avoid_repeats"], row["leaves"], row["length"]), ("True", "1", "6"))
        self.assertLessEqual(6, int(row["evaluations"]))
        self.assertLessEqual(int(row["evaluations"]), 18)
        self.assertGreater(float(row["ms_a_move"]), 0)

    def test_a_search_that_can_not_be_gets_one_sentence(self):
        evaluate = ["evaluate", self.run_dir]
        refused(self, "--simulations must be at least 1", *evaluate, "--simulations=0")
        refused(self, "--leaves must be at least 1", *evaluate, "--simulations=2", "--leaves=0")
        refused(
            self, "--exploration must be 0 or", *evaluate, "--simulations=2", "--exploration=-1"
        )
        refused(
            self, "--exploration must be fin", *evaluate, "--simulations=2", "--exploration=inf"
        )
        refused(self, "--avoid-repeats is for a search; add", *evaluate, "--avoid-repeats")
        refused(self, "--leaves is for a search; add", *evaluate, "--leaves=2")
        for flag in ("--epsilon=0.1", "--sample", "--workers=2"):
            name = flag.partition("=")[0]
            words = f"{name} is for games without --simulations"
            refused(self, words, *evaluate, "--simulations=2", flag)

    def test_other_options_of_the_environment(self):
        evaluate = ["evaluate", self.run_dir]
        ends = '{"max_episode_steps": 5}'
        flags = [f"--env-options={ends}", "--episodes=2"]
        for more in (["--workers=0", f"--video={self.tmp / 'ends'}"], ["--simulations=2"]):
            done = succeeds(self, *evaluate, *flags, *more)
            self.assertIn(f" with {ends}: mean", done.stdout)
            self.assertIn("mean length 5", done.stdout)
            self.assertNotIn("were not over", done.stdout)
        with open(self.run_dir / "evaluation.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("env_options") == ends]
        self.assertEqual([row["length"] for row in rows], ["5"] * 4)
        for options, words in (
            ('{"full_action_space": true}', r"Discrete\(18\), not .*Discrete\(4\)\); leave out"),
            ('{"frameskip": 0}', "can't be made"),
            ("split=test", "is no JSON"),
        ):
            refused(self, words, *evaluate, f"--env-options={options}")

    def test_plot(self):
        picture = self.tmp / "curve.png"
        flags = [f"--out={picture}", "--column=loss", "--level", "human=31.8"]
        succeeds(self, "plot", self.run_dir, *flags)
        self.assertGreater(picture.stat().st_size, 5_000)
        refused(self, "no column 'los'", "plot", self.run_dir, "--column=los")
        refused(self, "LABEL=HEIGHT", "plot", self.run_dir, "--level", "human")
        refused(self, "LABEL=HEIGHT", "plot", self.run_dir, "--level", "human=nan")
        done = succeeds(self, "plot", self.run_dir, *flags[1:], f"--out={self.tmp / 'plain'}")
        self.assertEqual(done.stdout.strip(), str(self.tmp / "plain.png"))
        self.assertTrue((self.tmp / "plain.png").exists())

    def test_export(self):
        out = self.tmp / "saved_model"
        succeeds(self, "export", self.run_dir, out)
        trained = load_run(self.run_dir)
        rng = np.random.default_rng(0)
        inputs = dict(
            obs=rng.integers(0, 256, (5, 4, 128)).astype("uint8"),
            first=np.eye(4, dtype="int32")[[0, 1, 2, 3, 0]],
        )
        saved = call_alone(self, out, "q_values", **inputs)
        quantiles = trained.net.apply(trained.weights, {**inputs, "prev_action": None})
        live = mean_q(quantiles)[:, -1].numpy()
        np.testing.assert_allclose(saved["q"], live, rtol=1e-5, atol=1e-6)
        actions = make_act(trained.net)(trained.weights, inputs).numpy()
        np.testing.assert_array_equal(saved["a"], actions)
        means = np.mean(trained.net.model(inputs)[:, -1], axis=-1)  # of 16 quantiles
        np.testing.assert_allclose(means, live, rtol=1e-5, atol=1e-6)

    def test_an_exported_policy_plays_as_the_run_does(self):
        out = self.tmp / "policy"
        succeeds(self, "export", self.run_dir, out, "--policy")
        files = [file for file in out.rglob("*") if file.is_file()]
        self.assertLess(sum(file.stat().st_size for file in files), 1_000_000)
        trained = load_run(self.run_dir)
        exported = load_run(out)
        np.testing.assert_array_equal(exported.weights, trained.weights)
        self.assertEqual((exported.step, exported.info), (trained.step, trained.info))
        flags = ["--episodes=1", "--max-steps=4", "--workers=0"]
        said = succeeds(self, "evaluate", out, *flags).stdout
        self.assertEqual(said, succeeds(self, "evaluate", self.run_dir, *flags).stdout)
        refused(self, "no checkpoint", "run_dqn", f"--resume={out}")
        refused(self, "exists already", "export", self.run_dir, out, "--policy")

    def test_bad_input_gets_one_sentence(self):
        refused(self, "Breakout-ram-v0", "run_dqn", "--name=Brekout-ram-v0")
        refused(self, "images", "run_dqn", "--name=Breakout-v0")
        refused(self, "the folder that holds mine.py", "run_dqn", "--name=mine:Own-v0")
        refused(self, "give MODULE:NAME", "run_dqn", "--name=:Own-v0")
        refused(self, "DiscretizeAction", "run_dqn", "--name=Pendulum-v1")
        refused(self, "multiple of the heads", "run_dqn", "--width=30", "--heads=4")
        refused(self, "--context must be greater than 0", "run_dqn", "--context=0")
        refused(self, "--total-steps must be greater than 0", "run_dqn", "--total-steps=-5")
        refused(self, "whole number of updates", "run_dqn", "--updates-per-step=0.3")
        refused(self, "--log-lines must be at least 1", "run_pqn", "--log-lines=0")
        refused(self, "--seed must be less than 4294967296", "run_dqn", "--seed=4294967296")
        refused(self, "add --actors=N", "run_dqn", "--broadcast-every=8")
        refused(self, "give --evaluate-every too", "run_ppo", "--evaluate-episodes=8")
        refused(self, "--workers must be 0 or more", "run_ppo", "--workers=-1")
        refused(self, "--quantiles", "run_ppo", "--quantiles=8")
        refused(self, "--bins and --reward-units are for DQN", "run_pqn", "--quantiles=8")
        refused(self, "does not divide", "run_ppo", "--batch-size=100")
        refused(self, "does not divide", "run_pqn", "--batch-size=100")
        (self.tmp / "file").write_text("")
        refused(self, "can't be written", "run_dqn", f"--run-dir={self.tmp / 'file' / 'run'}")
        refused(self, "already holds a run", "run_dqn", f"--run-dir={self.run_dir}")
        refused(self, "There is no run", "run_dqn", "--resume=nowhere")
        resume = f"--resume={self.run_dir}"
        refused(self, "leave out --layers", "run_dqn", resume, "--layers=3")
        refused(self, "no more than the 1024 that", "run_dqn", resume, "--total-steps=1000")
        refused(self, "--workers must be 0 or more", "run_dqn", resume, "--workers=-1")
        refused(self, "give --resume=RUN too", "run_dqn", "--checkpoint=some")
        refused(self, "is not one of", "evaluate", self.run_dir, f"--checkpoint={self.tmp}")
        refused(self, "--max-steps must be at least 1", "evaluate", self.run_dir, "--max-steps=0")
        refused(self, "add --video=DIR", "evaluate", self.run_dir, "--video-steps=10")
        refused(self, "There is no run", "evaluate", "nowhere")
        refused(self, "There is no run", "plot", "nowhere")
        refused(self, "exists already", "export", self.run_dir, self.tmp)

    def test_a_process_ends_with_that_sentence(self):
        done = script("run_dqn", "--context=0", cwd=self.tmp)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertEqual(
            done.stderr, "error: --context must be greater than 0 and finite, not 0.\n"
        )

    def test_a_changed_network_is_refused_on_resume(self):
        config = self.run_dir / "config.json"
        before = config.read_text()
        self.addCleanup(config.write_text, before)
        config.write_text(before.replace('"width": 16', '"width": 32'))
        refused(self, "other sizes", "run_dqn", f"--resume={self.run_dir}")
        refused(self, "weights", "evaluate", self.run_dir)
        config.write_text(before.replace('"width": 16', '"widht": 16'))
        refused(self, "widht", "run_dqn", f"--resume={self.run_dir}")


if __name__ == "__main__":
    unittest.main()
