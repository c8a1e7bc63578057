"""A text run as a user has it: trained, stopped, gone on with, written with, evaluated, exported.

Its script is called in a process of its own where that proves something, otherwise in this one.
"""

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import types
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

import tfdqt
from tests.helpers import (
    InFolder,
    assert_same_tree,
    call,
    call_alone,
    end,
    log_without_time,
    refused,
    script,
    slow,
    start,
    succeeds,
    wait_for,
)
from tests.text.helpers import (
    MAZE,
    TINY,
    corpus_run,
    eager,
    folder,
    maze_run,
    texts,
    without_xla,
)
from tfdqt.backend import tf
from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import checkpoints, load_checkpoint
from tfdqt.runs.cli import old_run
from tfdqt.text.config import TextConfig, check_text
from tfdqt.text.evaluate import load_text_run
from tfdqt.text.export import export_text_model
from tfdqt.text.generation import make_run_scores
from tfdqt.text.tasks.table import make_task


class WithoutXLA(unittest.TestCase):
    def setUp(self):
        super().setUp()
        stack = without_xla()
        self.addCleanup(stack.close)


class TestTraining(unittest.TestCase):
    def test_training_shows_one_line_and_no_noise(self):
        _, done = corpus_run()
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
        for line in lines[1:]:
            self.assertRegex(
                line,
                r"^Epoch: \d+ \| \d+ \| [\d.nan]+ \| [-\d.nan]+ \| reading samples: \d+/\d+: "
                r"+\d+%\|.*\|",
            )
        for noise in ("oneDNN", "WARNING", "Warning", "retracing", "huggingface"):
            self.assertNotIn(noise, done.stderr + done.stdout)
        self.assertRegex(done.stdout, r"mean return -?[\d.]+ over 8 .* distinct1 [\d.]+")

    @slow("15 s: a training")
    def test_the_log_counts_samples(self):
        run_dir = maze_run()
        with open(run_dir / "log.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(int(rows[-1]["step"]), load_checkpoint(run_dir)[0]["place"]["step"])
        self.assertEqual(int(rows[-1]["samples"]), 2 * _maze_samples(run_dir))
        self.assertNotIn("games", rows[-1])


def _maze_samples(run_dir):
    """Transitions in the data of a maze run."""
    settings = load_text_run(run_dir).settings
    batches, _ = make_task("maze").load_data(settings)
    return len(batches.order)


class TestResume(WithoutXLA):
    def test_gone_on_with_from_an_older_checkpoint_equals_unbroken(self):
        whole = maze_run()
        again = folder() / "again"
        shutil.copytree(whole, again)
        older, newest = checkpoints(again)[-2:]
        done = call("run_text", f"--resume={again}", f"--checkpoint={older}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"Going on from {older}", done.stdout)
        assert_same_tree(self, load_checkpoint(whole)[0], load_checkpoint(again)[0])
        self.assertEqual(log_without_time(whole), log_without_time(again))

    @slow("10 s: two trainings")
    def test_a_run_of_0_1_goes_on(self):
        """Its settings call the scale far, its log the samples games."""
        whole = maze_run()
        old = folder() / "old"
        shutil.copytree(whole, old)
        config = json.loads((old / "config.json").read_text())
        config["far"] = config.pop("scale")
        (old / "config.json").write_text(json.dumps(config))
        log = (old / "log.csv").read_text()
        (old / "log.csv").write_text(log.replace("samples", "games", 1))
        older = checkpoints(old)[-2]
        done = call("run_text", f"--resume={old}", f"--checkpoint={older}")
        self.assertEqual(done.returncode, 0, done.stderr)
        assert_same_tree(self, load_checkpoint(whole)[0], load_checkpoint(old)[0])
        self.assertEqual(log_without_time(whole), log_without_time(old))

    @slow("15 s: two processes; test_resume has it of games")
    def test_a_signal_saves_and_tells_how_to_go_on(self):
        run_dir = folder() / "stopped"

        def signalled(*args, **how):
            signal.raise_signal(signal.SIGTERM)
            return np.zeros(1)

        with mock.patch("tfdqt.text.tasks.play.play_games", signalled):
            done = call(
                "run_text", *MAZE, "--episodes=8", "--evaluate-every=10", f"--run-dir={run_dir}"
            )
        self.assertEqual(done.returncode, 128 + signal.SIGTERM, done.stderr)
        self.assertIn(
            f"Stopped. Go on with: python scripts/run_text.py --resume={run_dir}", done.stdout
        )
        self.assertEqual(load_checkpoint(run_dir)[0]["place"]["step"], 16)  # two batches of 8
        done = call("run_text", f"--resume={run_dir}", "--epochs=1")
        self.assertEqual(done.returncode, 0, done.stderr)
        progress = load_checkpoint(run_dir)[0]["place"]
        self.assertEqual((progress["epoch"], progress["games"]), (1, _maze_samples(run_dir)))
        self.assertEqual(json.loads((run_dir / "config.json").read_text())["epochs"], 1)

    @slow("15 s: three trainings")
    def test_a_finished_run_says_so_and_its_log_stays(self):
        """Unless it was killed before its last evaluation, which is then made up for."""
        whole = maze_run()
        for name, missing in (("finished", 0), ("unevaluated", 1)):
            again = folder() / name
            shutil.copytree(whole, again)
            lines = (again / "log.csv").read_text().splitlines(keepends=True)
            (again / "log.csv").write_text("".join(lines[: len(lines) - missing]))
            played = np.full(25, float(list(csv.DictReader(lines))[-1]["mean_return"]))
            with mock.patch("tfdqt.text.tasks.play.play_games", return_value=played):
                done = call("run_text", f"--resume={again}")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("Nothing is left to learn, for all 2 epochs are done", done.stdout)
            self.assertEqual(log_without_time(whole), log_without_time(again))

    @slow("40 s: three processes")
    def test_killed_and_resumed_equals_unbroken(self):
        whole = folder() / "whole"
        broken = folder() / "broken"
        flags = [*MAZE, "--epochs=4"]
        first = start("run_text", *flags, f"--run-dir={whole}")
        second = start("run_text", *flags, f"--run-dir={broken}")
        wait_for(lambda: checkpoints(broken), second)
        time.sleep(0.1)  # somewhere between two checkpoints
        second.send_signal(signal.SIGKILL)
        end(self, second, -signal.SIGKILL)
        end(self, first)
        done = script("run_text", f"--resume={broken}")
        self.assertEqual(done.returncode, 0, done.stderr)
        assert_same_tree(self, load_checkpoint(whole)[0], load_checkpoint(broken)[0])
        self.assertEqual(log_without_time(whole), log_without_time(broken))


class TestReward(InFolder):
    @slow("20 s: trains and is gone on with")
    def test_sys_exit_in_a_reward_loses_nothing(self):
        self.addCleanup(os.chdir, os.getcwd())
        self.addCleanup(sys.path.__setitem__, slice(None), list(sys.path))
        self.addCleanup(sys.modules.pop, "reward_that_ends", None)
        os.chdir(self.tmp)
        module = self.tmp / "reward_that_ends.py"
        module.write_text(
            "import sys\nasked = []\n"
            "def score(text):\n"
            "    asked.append(text)\n"
            "    return sys.exit(7) if len(asked) > 200 else 1.0\n"
        )
        run_dir = self.tmp / "a run"
        flags = [
            "--task=corpus",
            f"--corpus={texts()}",
            "--reward=reward_that_ends:score",
            "--vocabulary=30",
            "--window=6",
            "--new-items=32",
            "--games=4",
            "--epochs=1",
            "--updates-per-batch=1",
            *TINY,
        ]
        with eager():
            done = call("run_text", *flags, f"--run-dir={run_dir}")
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertRegex(
            done.stderr.strip().splitlines()[-1],
            r"^error: --reward=reward_that_ends:score fails on the text '.*' \(SystemExit: 7\); "
            "what was learned is saved",
        )
        self.assertEqual(load_checkpoint(run_dir)[0]["place"]["batch"], 1)

        def go_on(code):
            module.write_text(code)
            del sys.modules["reward_that_ends"]
            importlib.invalidate_caches()
            shutil.rmtree(self.tmp / "__pycache__", ignore_errors=True)  # of the same second
            with eager():
                return call("run_text", f"--resume={run_dir}")

        done = go_on("def score(text):\n    return 1.0\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"scripts/evaluate.py '{run_dir}'", done.stdout)
        # Ctrl-C while what it says at its end is played: behind the four games of the log.
        done = go_on(
            "asked = []\n"
            "def score(text):\n"
            "    asked.append(text)\n"
            "    if len(asked) > 4:\n"
            "        raise KeyboardInterrupt\n"
            "    return 1.0\n"
        )
        self.assertEqual(done.returncode, 130, done.stderr)
        self.assertRegex(done.stdout, f"all is learned. Evaluate with: .*evaluate.py '{run_dir}'")

    def test_a_run_that_diverges_says_what_is_kept(self):
        flags = ["--task=corpus", f"--corpus={texts()}", "--vocabulary=30", "--window=6", *TINY]
        flags += ["--new-items=32", "--games=4", "--updates-per-batch=1", "--epochs=1"]
        flags += ["--learning-rate=1e30", "--final-learning-rate=1e30"]
        for every, said in ((1_000, "; nothing of the run is kept"), (1, "its last checkpoint is")):
            run_dir = self.tmp / f"every-{every}"
            with eager():
                done = call(
                    "run_text", *flags, f"--checkpoint-every={every}", f"--run-dir={run_dir}"
                )
            self.assertEqual(done.returncode, 2, done.stderr)
            line = done.stderr.strip().splitlines()[-1]
            self.assertRegex(line, f"^error: Learning diverged at update .*--learning-rate.*{said}")
            self.assertEqual(len(checkpoints(run_dir)) > 0, every == 1)


class TestWriter(WithoutXLA):
    def test_a_corpus_run_writes_in_three_lines(self):
        run_dir, done = corpus_run()
        self.assertEqual(done.returncode, 0, done.stderr)
        writer = tfdqt.load_writer(run_dir)
        self.assertEqual((writer([]), writer.write([])), ([], []))
        for write in (writer, writer.write):
            with self.assertRaisesRegex(UsageError, "list of texts is asked for"):
                write("The lord")
            with self.assertRaisesRegex(UsageError, "must be a string, not 3"):
                write([3])
        first, second = writer(["The lord", "and the"], words=5)
        self.assertEqual(first.split()[:2], ["the", "lord"])
        self.assertEqual([len(first.split()), len(second.split())], [2 + 5] * 2)
        self.assertEqual(writer(["The lord", "and the"], words=5), [first, second])
        self.assertNotEqual(writer(["The lord", "and the"], words=5, seed=1), [first, second])
        self.assertGreater(writer.reward("a good and joyful heart"), 0.5)
        once = writer((each for each in ("The lord", "and the")), words=5)
        self.assertEqual(once, [first, second])
        with self.assertRaisesRegex(UsageError, "something of type dict"):
            writer({"text": ["The lord"]})
        for texts_of_many in (["a good heart"], None):
            with self.assertRaisesRegex(UsageError, "reward takes one text, not"):
                writer.reward(texts_of_many)
        with self.assertRaisesRegex(UsageError, "learned to write"):
            writer.act(["the lord"])
        with self.assertRaisesRegex(UsageError, "temperature must be"):
            tfdqt.load_writer(run_dir, temperature=float("nan"))

    def test_a_run_of_before_keeps_its_words(self):
        run_dir, _ = corpus_run()
        old = folder() / "old_words"
        shutil.copytree(run_dir, old)
        config = json.loads((old / "config.json").read_text())
        self.assertEqual(config.pop("words"), "unicode")
        (old / "config.json").write_text(json.dumps(config))
        writer = tfdqt.load_writer(old)
        self.assertEqual(writer.task.rule, "plain")
        expected = tfdqt.load_writer(run_dir)(["The lord"], words=5)
        self.assertEqual(writer(["The lord"], words=5), expected)

    def test_a_maze_run_moves_as_it_is_evaluated(self):
        player = tfdqt.load_writer(maze_run())
        (text,) = player.show_samples()
        self.assertTrue(text.startswith("goal is at 8 6 . you are at"))
        task = player.task
        boards = task.start(25, np.random.default_rng(0))
        returns = np.zeros(25)
        ids = task.show(boards)[0]
        situations = [task.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        best = np.argmax(player.scores(ids, np.zeros(25, np.int32)), axis=-1)
        self.assertEqual(player.act(situations), [task.actions[i] for i in best])
        while not boards["done"].all():
            shown = task.show(boards)[0]
            texts = [task.tokenizer.decode(row, skip_special_tokens=True) for row in shown]
            moves = player.act(texts)
            returns += task.step(boards, np.array([task.actions.index(move) for move in moves]))
        np.testing.assert_array_equal(player.evaluate(25, seed=0)[0], returns)
        with self.assertRaisesRegex(UsageError, "shows no text such as 'you are lost'"):
            player.act(["you are lost"])
        with self.assertRaisesRegex(UsageError, "learned to play maze, not to write"):
            player(["the lord"])

    def test_generate(self):
        run_dir, _ = corpus_run()
        flags = ["--prompt=The lord", "--words=5", "--count=2", "--top-p=0.9"]
        lines = succeeds(self, "generate", run_dir, *flags).stdout.splitlines()
        self.assertEqual([len(line.split()) for line in lines[:2]], [2 + 5 + 1] * 2)
        self.assertEqual(lines[0].split()[:2], ["the", "lord"])
        self.assertRegex(lines[0], r"  \[-?[01]\.\d{3}\]$")  # what it is worth
        self.assertNotEqual(lines[0], lines[1])
        self.assertRegex(lines[2], r"distinct1 [\d.]+, distinct2")
        self.assertNotIn("Note", succeeds(self, "generate", run_dir, *flags).stderr)
        flags[0] = "--prompt=the Zyx lord \ufeffQqq"
        said = succeeds(self, "generate", run_dir, *flags).stderr
        self.assertIn(
            "Note: of the prompt these words are not known, and left out: zyx, qqq.", said
        )
        self.assertEqual(said.count("Note"), 1)
        refused(self, "temperature must be above 0", "generate", run_dir, "--temperature=0")
        said = "words must be a whole number of at least 1, not 0"
        refused(self, said, "generate", run_dir, "--words=0")
        for flag in ("--temperature=nan", "--temperature=inf", "--top-p=nan"):
            refused(self, "must be above 0 and .*, not (nan|inf)", "generate", run_dir, flag)
        for beta in ("nan", "-1", "-inf"):
            refused(self, "beta must be", "generate", run_dir, f"--beta={beta}")
        refused(self, "There is no run", "generate", "nowhere")
        refused(self, "not to write", "generate", maze_run())

    def test_of_several_texts_the_best_is_written(self):
        run_dir, _ = corpus_run()
        writer = tfdqt.load_writer(run_dir)
        prompts = ["the", "and"]
        texts = writer([prompt for prompt in prompts for _ in range(4)], words=6, seed=3)
        best = [max(texts[:4], key=writer.reward), max(texts[4:], key=writer.reward)]
        self.assertNotEqual(best, texts[::4])
        self.assertEqual(writer(prompts, words=6, seed=3, best_of=4), best)
        written = writer.write(prompts, words=6, seed=3, best_of=4)
        self.assertEqual([each.text for each in written], best)
        flags = ["--words=6", "--best-of=4", "--count=1", "--seed=3", "--prompt=the"]
        (alone,) = writer(["the"], words=6, seed=3, best_of=4)
        line = f"{alone}  [{writer.reward(alone):.3f}]"
        self.assertEqual(succeeds(self, "generate", run_dir, *flags).stdout.splitlines()[0], line)
        refused(self, "only with --method=sample", "generate", run_dir, *flags, "--method=beam")
        with self.assertRaisesRegex(UsageError, "best_of must be a whole number of at least 1"):
            writer(prompts, best_of=0)
        with self.assertRaisesRegex(UsageError, "only with --method=sample"):
            writer.write(prompts, best_of=2, method="greedy")

    def test_generate_as_json_from_a_file_of_prompts(self):
        run_dir, _ = corpus_run()
        with tempfile.TemporaryDirectory() as folder:
            prompts = Path(folder, "prompts.txt")
            prompts.write_text("\ufeffThe lord\r\n\r\nand\n", encoding="utf-8")
            flags = [f"--prompts={prompts}", "--json", "--words=8", "--count=1", "--beta=2"]
            printed = succeeds(self, "generate", run_dir, *flags).stdout.splitlines()
            prompts.write_text("\n", encoding="utf-8")
            refused(self, "holds no prompts", "generate", run_dir, f"--prompts={prompts}")
            refused(self, "give one of them", "generate", run_dir, *flags, "--prompt=and")
            refused(self, "can't be read", "generate", run_dir, f"--prompts={folder}")
        lines = list(map(json.loads, printed))
        self.assertEqual([line["prompt"] for line in lines], ["The lord", "and"])
        for line, known in zip(lines, (3, 2)):  # [CLS] and the prompt's words
            self.assertEqual(len(line["words"]), known + 8)
            for key in ("values", "log_probabilities"):
                self.assertEqual(line[key][:known], [None] * known)
                self.assertEqual([isinstance(x, float) for x in line[key][known:]], [True] * 8)
            total = sum(line["log_probabilities"][known:])
            self.assertAlmostEqual(line["log_probability"], total)
        # What a word was worth, and how likely it was, by the scores of what stands before it.
        writer = tfdqt.load_writer(run_dir, beta=2)
        line = lines[1]
        ids = writer.task.tokenizer.convert_tokens_to_ids(line["words"])
        for i in (3, 9):  # within the seven tokens that are seen, and beyond them
            seen = ids[max(0, i - 7) : i]
            logits = writer.scores(tf.constant([seen]), tf.constant([len(seen) - 1]))[0].numpy()
            logits[writer.task.tokenizer.all_special_ids] = -np.inf  # are never written
            log_p = tf.nn.log_softmax(logits)[ids[i]]
            self.assertAlmostEqual(line["log_probabilities"][i], float(log_p), places=4)

    def test_a_film_that_explains_is_of_games(self):
        run_dir, _ = corpus_run()
        flags = ["--video=film", "--explain"]
        refused(self, "is for gymnasium environments", "evaluate", run_dir, *flags)

    @unittest.skipUnless(
        importlib.util.find_spec("vl_convert"), "needs: pip install -r requirements-report.txt"
    )
    def test_a_report_colours_each_word_by_its_value(self):
        run_dir, _ = corpus_run()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "report.html")
            succeeds(self, "report", run_dir, f"--out={out}", "--texts=2")
            head = out.read_text(encoding="utf-8").split("<script")[0]
        self.assertEqual(head.count('<p class="sample">'), 2)
        self.assertRegex(head, r'<span title="-?\d+\.\d{3}" style="background')
        self.assertNotIn("[CLS]", head)


class TestEvaluate(WithoutXLA):
    def test_evaluate(self):
        run_dir, _ = corpus_run()
        refused(self, "beta must be", "evaluate", run_dir, "--beta=nan")
        done = succeeds(self, "evaluate", run_dir, "--episodes=4", "--best-of=2", "--beta=0")
        self.assertRegex(done.stdout, r"4 texts: mean [-\d.]+, std")
        said = re.search(r"perplexity of the cloned policy: ([\d.]+)", done.stdout)
        self.assertLess(1.0, float(said[1]))
        self.assertLess(float(said[1]), 30.0)  # better than a uniform guess among its words
        played = run_dir / "evaluation.csv"
        older = played.read_text().replace("temperature,", "")  # from before that column
        played.write_text(re.sub(r"^(\d+,[^,]*),[^,]*,", r"\1,", older, flags=re.M))
        succeeds(self, "evaluate", run_dir, "--episodes=3", "--temperature=0")
        with open(played, newline="") as file:
            rows = list(csv.DictReader(file))
        how = [(row["temperature"], row["best_of"]) for row in rows]
        self.assertEqual(how, [("", "2")] * 4 + [("0", "1")] * 3)

    def test_a_game_is_evaluated_beside_what_is_published(self):
        done = succeeds(self, "evaluate", maze_run(), "--episodes=25")
        self.assertRegex(done.stdout, r"25 games: mean -[\d.]+, .*Published: optimum -6.84")

    def test_flags_that_say_nothing_of_a_text_run(self):
        for flag in (
            "--epsilon=0.05",
            "--video-steps=3",
            "--workers=0",
            "--simulations=2",
            "--env-options={}",
        ):
            refused(self, "for gymnasium", "evaluate", maze_run(), flag)
        refused(self, "for texts that are written", "evaluate", maze_run(), "--best-of=2")
        run_dir, _ = corpus_run()
        refused(self, "texts that are drawn", "evaluate", run_dir, "--temperature=0", "--best-of=2")


class TestExport(WithoutXLA, InFolder):
    def test_export(self):
        from tfdqt.backend import tf

        run_dir = self.tmp / "run"
        shutil.copytree(corpus_run()[0], run_dir)
        config = run_dir / "config.json"
        gone = dict(json.loads(config.read_text()), corpus=str(self.tmp / "gone"))
        config.write_text(json.dumps(gone))  # for which no text of the corpus is needed
        out = self.tmp / "saved_model"
        lite = self.tmp / "encoder.tflite"
        done = succeeds(self, "export", run_dir, out, f"--tflite={lite}")
        self.assertGreater(float(re.search(r"cosine ([\d.]+)", done.stdout)[1]), 0.99)
        run = load_text_run(run_dir)
        texts = np.array([[2, 3, 4, 5, 0, 0, 0], [2, 9, 8, 7, 6, 5, 4]], np.int32)
        at = np.array([3, 6], np.int32)
        saved = call_alone(self, out, "q", text=texts, at=at)
        x = tf.gather(run.transformer(tf.constant(texts)), at, axis=1, batch_dims=1)
        np.testing.assert_allclose(saved["q"], run.head(x), rtol=1e-4, atol=1e-5)
        scores = make_run_scores(run.transformer, run.head, run.settings["text"])
        best = np.argmax(scores(tf.constant(texts), tf.constant(at)), axis=-1)
        np.testing.assert_array_equal(saved["a"], best)
        tokenizer = run.task.tokenizer
        (pad, known) = tokenizer.pad_token_id, len(tokenizer) - 1

        def padding_is_best(text, at):
            worth = 2 * tf.one_hot(pad, len(tokenizer)) + tf.one_hot(known, len(tokenizer))
            return worth + 0 * scores(text, at)

        out = self.tmp / "of_words"
        export_text_model(run.task, run.transformer, run.head, padding_is_best, out)
        saved = tf.saved_model.load(str(out)).signatures["action"]
        written = saved(text=tf.constant(texts), at=tf.constant(at))["action"]
        np.testing.assert_array_equal(written, [known, known])


class TestBadInput(unittest.TestCase):
    def refused(self, message, *flags):
        refused(self, message, "run_text", *flags)

    def test_settings_that_can_not_be(self):
        self.refused("multiple of the heads", "--width=30", "--heads=4")
        self.refused("--pruning-amount", "--pruning-amount=1")
        self.refused("--cloning greater than 0", "--beta=2")
        self.refused("--method=q and --cloning", "--plausible=0.3")
        self.refused("leave out one", "--task=wordle", "--advantage-learning=0.9")
        self.refused("--method=q or implicit", "--method=clone", "--actors=2")
        self.refused("TF_CONFIG", "--strategy=multiworker")
        self.refused("--seed must be 0 or more", "--seed=-1")
        self.refused("--seed must be less", "--seed=5000000000")
        self.refused("--beta must be", "--beta=nan", "--cloning=1")
        self.refused("--cloning must be finite", "--cloning=inf")
        for flag in ("--corpus=.", "--reward=my:own", "--window=8", "--vocabulary=9"):
            self.refused(f"{flag.split('=')[0]} is for --task=corpus", flag)
        self.refused("--reward-at is for --task=corpus", "--reward-at=end")
        self.refused("--no-greedy", "--task=corpus", "--greedy", "--actors=2")

    def test_values_of_another_type(self):
        for settings, said in (
            (dict(method="IQL"), "--method must be one of q, implicit"),
            (dict(reward_at="words"), "--reward-at must be one of word, end"),
            (dict(batch_size=8.5), "--batch-size can't be 8.5; it takes int"),
        ):
            with self.assertRaisesRegex(UsageError, said):
                check_text(TextConfig(**settings))

    def test_texts_and_encoders_that_are_not_there(self):
        corpus = ["--task=corpus", f"--corpus={texts()}"]
        where = [f"--run-dir={folder() / 'refused'}"]  # given back each time
        self.refused("does not exist", "--task=corpus", "--corpus=nowhere")
        self.refused("module:function", *corpus, "--reward=nothing", *where)
        self.refused("words in a row", *corpus, "--window=9999", *TINY, *where)
        few = ["--episodes=1", "--epochs=1", "--new-items=4096", *TINY]
        late = ["--pruning-schedule=polynomial", "--pruning-end=5000"]
        self.refused("zero no weight in the 8 updates", *few, *late, *where)
        self.refused("can't be found here or on the", "--encoder=nowhere/nothing", *where)
        self.refused("There is no folder ./nowhere", "--encoder=./nowhere", *where)
        empty = folder() / "empty"
        empty.mkdir()
        self.refused("has no config.json", f"--encoder={empty}", *where)
        for odd in ("[]", "{", '{"model_type": "nothing"}'):
            (empty / "config.json").write_text(odd)
            self.refused("config.json of .* is none of an encoder", f"--encoder={empty}", *where)

    def test_runs_that_can_not_be_gone_on_with(self):
        run_dir = maze_run()
        self.refused("already holds a run", f"--run-dir={run_dir}")
        self.refused("leave out --layers", f"--resume={run_dir}", "--layers=3")
        with self.assertRaisesRegex(UsageError, "not a run of DQN"):
            old_run(types.SimpleNamespace(resume=run_dir), [], "dqn", None)
        game = folder() / "game"
        game.mkdir()
        (game / "config.json").write_text('{"algorithm": "dqn"}')
        self.refused("not a run of TEXT", f"--resume={game}")
        with self.assertRaisesRegex(UsageError, "run on games; load_policy opens it"):
            tfdqt.load_writer(game)
        refused(self, "exists already", "export", run_dir, folder())

    def test_a_refused_resume_leaves_the_run_as_it_is(self):
        run_dir, _ = corpus_run()
        other = folder() / "other_texts"
        shutil.copytree(run_dir, folder() / "refused_resume")
        run_dir = folder() / "refused_resume"
        shutil.copytree(texts(), other)
        (other / "b.txt").write_text("and the sun", encoding="utf-8")
        config = json.loads((run_dir / "config.json").read_text())
        (run_dir / "config.json").write_text(json.dumps(dict(config, corpus=str(other))))
        before = (run_dir / "config.json").read_text()
        self.refused("are not those that the run", f"--resume={run_dir}", "--epochs=9")
        shutil.rmtree(other)
        gone = "other_texts, the corpus of the run, is gone; put it back"
        self.refused(gone, f"--resume={run_dir}", "--epochs=9")
        self.assertEqual((run_dir / "config.json").read_text(), before)
        other.mkdir()
        done = succeeds(self, "evaluate", run_dir, "--episodes=2")
        self.assertIn(f"There is no corpus in {other} any more", done.stdout)

    def test_a_run_that_lost_its_words_is_refused(self):
        run_dir = folder() / "no_words"
        shutil.copytree(corpus_run()[0], run_dir)
        shutil.rmtree(run_dir / "tokenizer")
        self.refused("lost its folder tokenizer", f"--resume={run_dir}", "--epochs=9")
        refused(self, "lost its folder tokenizer", "generate", run_dir)
        self.assertFalse((run_dir / "tokenizer").exists())

    def test_a_run_whose_words_are_damaged_is_refused(self):
        for name, content, said in (
            ("tokenizer.json", "not json{", "put back what the run wrote there"),
            ("tokenizer_config.json", None, "put back what the run wrote there"),
            ("corpus.crc32", "", "corpus.crc32, which tells the run's texts from others"),
        ):
            with self.subTest(name), tempfile.TemporaryDirectory() as made:
                run_dir = Path(made, "gpt2")  # a name by which transformers would guess
                shutil.copytree(corpus_run()[0], run_dir)
                file = run_dir / "tokenizer" / name
                file.unlink() if content is None else file.write_text(content)
                self.refused(said, f"--resume={run_dir}", "--epochs=9")
                refused(self, said, "generate", run_dir)


if __name__ == "__main__":
    unittest.main()
