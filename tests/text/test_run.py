"""The scripts on texts at toy size, as a user calls them, killed and resumed; and what they answer to bad input."""

import csv
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np
from test_resume import flat, log_without_time
from test_scripts import ROOT, call_alone, refused, script

from tfdqt.runs import checkpoints, load_checkpoint

TINY = ["--layers=1", "--heads=2", "--width=16", "--hidden", "16", "--batch-size=16"]
MAZE = ["--task=maze", "--episodes=30", "--new-items=256", "--epochs=4", "--checkpoint-every=16", "--games=25", *TINY]
VERSES = "the lord is good and his mercy is great . he shall destroy the wicked in his anger and love the meek .\n"


class TestTextScripts(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.tmp = Path(cls.folder.name)
        cls.run_dir = cls.tmp / "corpus"
        texts = cls.tmp / "texts"
        texts.mkdir()
        texts.joinpath("a.txt").write_text(VERSES * 60, encoding="utf-8")
        cls.trained = script("run_text", "--task=corpus", f"--corpus={texts}", "--vocabulary=30", "--window=6", "--new-items=64",
                             "--games=8", f"--run-dir={cls.run_dir}", *TINY)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_training_shows_one_line_and_no_noise(self):
        self.assertEqual(self.trained.returncode, 0, self.trained.stderr)
        for line in [line for line in re.split(r"[\r\n]+", self.trained.stderr) if line.strip()][1:]:
            self.assertRegex(line, r"^Epoch: \d+ \| \d+ \| [\d.nan]+ \| [-\d.nan]+ \| playing games: \d+/\d+: +\d+%\|.*\|")
        for noise in ("oneDNN", "WARNING", "Warning", "retracing", "huggingface"):
            self.assertNotIn(noise, self.trained.stderr + self.trained.stdout)
        self.assertRegex(self.trained.stdout, r"mean return -?[\d.]+ over 8 .* distinct1 [\d.]+")

    def test_write_evaluate_and_export(self):
        done = script("generate", self.run_dir, "--prompt=The lord", "--words=5", "--count=2", "--top-p=0.9")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertEqual([len(line.split()) for line in lines[:2]], [1 + 2 + 5] * 2)
        self.assertEqual(lines[0].split()[1:3], ["the", "lord"])

        done = script("evaluate", self.run_dir, "--episodes=4", "--best-of=2", "--beta=0")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"4 texts: mean [-\d.]+, std")
        perplexity = float(re.search(r"perplexity of the cloned policy: ([\d.]+)", done.stdout)[1])
        self.assertLess(1.0, perplexity)
        self.assertLess(perplexity, 30.0)  # better than a uniform guess among the words it knows
        played = self.run_dir / "evaluation.csv"
        older = played.read_text().replace("temperature,", "")  # a file from before there was that column
        played.write_text(re.sub(r"^(\d+,[^,]*),[^,]*,", r"\1,", older, flags=re.M))
        done = script("evaluate", self.run_dir, "--episodes=3", "--temperature=0")
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(played, newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([(row["temperature"], row["best_of"]) for row in rows], [("", "2")] * 4 + [("0", "1")] * 3)

        done = script("plot_pruning", self.run_dir, "--games=4", f"--out={self.tmp / 'pruning.png'}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"sparsity 0\.(2|19).* kernel_bytes \d+  gzip_bytes \d+\n")
        self.assertGreater((self.tmp / "pruning.png").stat().st_size, 5_000)
        table = self.tmp / "pruning.csv"
        found = table.read_text()
        done = script("plot_pruning", table, f"--out={self.tmp / 'again.png'}")
        self.assertEqual((done.returncode, done.stdout), (0, f"{self.tmp / 'again.png'}\n"), done.stderr)
        self.assertEqual((self.tmp / "again.csv").read_text(), found)
        refused(self, "would be written over", "plot_pruning", table, f"--out={self.tmp / 'pruning.png'}")
        table.write_text("seed,sparsity\n1,2\n")
        refused(self, "this script wrote", "plot_pruning", table, f"--out={self.tmp / 'two.png'}")
        table.write_text(found + found.splitlines()[1].replace("corpus", "maze") + "\n")
        self.assertEqual(script("plot_pruning", table, f"--out={self.tmp / 'two.png'}").returncode, 0)
        one, two = ((self.tmp / f"{name}.png").read_bytes() for name in ("again", "two"))
        self.assertGreater(int.from_bytes(two[16:20], "big"), 1.5 * int.from_bytes(one[16:20], "big"))  # a column more

        out, lite = self.tmp / "saved_model", self.tmp / "encoder.tflite"
        done = script("export", self.run_dir, out, f"--tflite={lite}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(float(re.search(r"cosine ([\d.]+)", done.stdout)[1]), 0.99)
        from tfdqt.backend import tf
        from tfdqt.text_runs import load_text_run, make_run_scores

        trained = load_text_run(self.run_dir)
        texts, at = np.array([[2, 3, 4, 5, 0, 0, 0], [2, 9, 8, 7, 6, 5, 4]], np.int32), np.array([3, 6], np.int32)
        saved = call_alone(self, out, "q", text=texts, at=at)
        x = tf.gather(trained.transformer(tf.constant(texts)), at, axis=1, batch_dims=1)
        np.testing.assert_allclose(saved["q"], trained.head(x), rtol=1e-4, atol=1e-5)
        scores = make_run_scores(trained.task, trained.transformer, trained.head, trained.settings["text"])
        np.testing.assert_array_equal(saved["a"], np.argmax(scores(tf.constant(texts), tf.constant(at)), axis=-1))

    def test_killed_and_resumed_equals_unbroken(self):
        whole, broken = self.tmp / "whole", self.tmp / "broken"
        command = [sys.executable, str(ROOT / "scripts" / "run_text.py"), *MAZE]
        first, second = (subprocess.Popen([*command, f"--run-dir={run}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                         for run in (whole, broken))
        deadline = time.monotonic() + 300
        while not checkpoints(broken) and second.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        second.send_signal(signal.SIGKILL)
        self.assertEqual(second.wait(), -signal.SIGKILL, second.stdout.read())
        self.assertEqual(first.wait(), 0, first.stdout.read())
        done = script("run_text", f"--resume={broken}")
        self.assertEqual(done.returncode, 0, done.stderr)
        one, two = flat(load_checkpoint(whole)[0]), flat(load_checkpoint(broken)[0])
        self.assertEqual(one.keys(), two.keys())
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], err_msg=key)
        self.assertEqual(log_without_time(whole), log_without_time(broken))
        for process in (first, second):
            process.stdout.close()

    def test_bad_input_gets_one_sentence(self):
        refused(self, "multiple of the heads", "run_text", "--width=30", "--heads=4")
        refused(self, "--pruning-amount", "run_text", "--pruning-amount=1")
        refused(self, "--cloning greater than 0", "run_text", "--beta=2")
        refused(self, "--method=q and --cloning", "run_text", "--plausible=0.3")
        refused(self, "leave out one", "run_text", "--task=wordle", "--advantage-learning=0.9")
        refused(self, "--method=q or implicit", "run_text", "--method=clone", "--actors=2")
        refused(self, "TF_CONFIG", "run_text", "--strategy=multiworker")
        refused(self, "does not exist", "run_text", "--task=corpus", "--corpus=nowhere")
        refused(self, "module:function", "run_text", "--task=corpus", f"--corpus={self.tmp / 'texts'}", "--reward=nothing",
                f"--run-dir={self.tmp / 'r1'}")
        refused(self, "words in a row", "run_text", "--task=corpus", f"--corpus={self.tmp / 'texts'}", "--window=9999",
                f"--run-dir={self.tmp / 'r2'}")
        refused(self, "tokenizer", "run_text", "--encoder=nowhere/nothing", f"--run-dir={self.tmp / 'r3'}")
        refused(self, "already holds a run", "run_text", f"--run-dir={self.run_dir}")
        refused(self, "leave out --layers", "run_text", f"--resume={self.run_dir}", "--layers=3")
        refused(self, "not a run of DQN", "run_dqn", f"--resume={self.run_dir}")
        for flag in ("--epsilon=0.05", "--video-steps=3", "--workers=0"):
            refused(self, "for gymnasium", "evaluate", self.run_dir, flag)
        refused(self, "temperature above 0", "generate", self.run_dir, "--temperature=0")
        refused(self, "There is no run", "generate", "nowhere")


if __name__ == "__main__":
    unittest.main()
