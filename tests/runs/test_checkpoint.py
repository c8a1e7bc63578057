"""A run's folder: checkpoints that survive a crash, the log, the progress line, and what a user sees of errors."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import tempfile
import unittest
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from tfdqt import runs
from tfdqt.config import DQNConfig, NetworkConfig, UsageError, load_config


class Metrics(NamedTuple):
    step: int
    games: int
    mean_return: float
    loss: float
    epsilon: float = 0.5


class InFolder(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def started(self, name="run"):
        return runs.start_run(self.folder / name, name="CartPole-v1", seed=0)


class Starting(InFolder):

    def test_settings_are_kept(self):
        run = runs.start_run(self.folder / "some" / "run", name="CartPole-v1", network=NetworkConfig(width=8), dqn=DQNConfig())
        self.assertEqual(runs.find_run(run), run)
        self.assertEqual(load_config(run / "config.json", network=NetworkConfig, dqn=DQNConfig),
                         dict(name="CartPole-v1", network=NetworkConfig(width=8), dqn=DQNConfig()))

    def test_existing_run_is_left_alone(self):
        run = self.started()
        before = (run / "config.json").read_bytes()
        with self.assertRaisesRegex(UsageError, f"--resume={re.escape(str(run))}"):
            runs.start_run(run, name="Breakout-ram-v0", seed=1)
        self.assertEqual((run / "config.json").read_bytes(), before)

    def test_folder_that_cannot_be_written(self):
        (self.folder / "file").write_text("I am no folder")
        for path in (self.folder / "file" / "run", self.folder / "file"):
            with self.assertRaisesRegex(UsageError, "can't be written"):
                runs.start_run(path, name="CartPole-v1")

    def test_no_run(self):
        with self.assertRaisesRegex(UsageError, "no run in"):
            runs.find_run(self.folder)
        with self.assertRaisesRegex(UsageError, "no run in"):
            runs.find_run(self.folder / "nowhere")


class Checkpoints(InFolder):

    def assertSame(self, found, expected):
        self.assertIs(type(found), type(expected))
        if isinstance(expected, np.ndarray):
            self.assertEqual((found.dtype, found.shape), (expected.dtype, expected.shape))
            np.testing.assert_array_equal(found, expected)
        elif isinstance(expected, dict):
            self.assertEqual(list(found), list(expected))
            for key, value in expected.items():
                self.assertSame(found[key], value)
        elif isinstance(expected, (list, tuple)):
            self.assertEqual(len(found), len(expected))
            for one, other in zip(found, expected):
                self.assertSame(one, other)
        else:
            self.assertEqual(found, expected)

    def saved(self, *steps):
        run = self.started()
        return run, [runs.save_checkpoint(run, step, dict(step=step, weights=np.arange(1_000.0))) for step in steps]

    def refused(self, run, *words, path=None):
        with self.assertRaises(UsageError) as caught:
            runs.load_checkpoint(run, path)
        for word in words:
            self.assertIn(word, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_round_trip(self):
        run = self.started()
        arrays = {name: (np.arange(6) % 2).reshape(2, 3).astype(name) for name in (
            "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
            "complex64", "complex128", "<U3", "S2")}
        tree = dict(
            arrays=arrays, zero_d=np.array(3.5), empty=np.zeros((0, 4), np.uint8), nan=np.array([np.nan, np.inf, -0.0]),
            fortran=np.asfortranarray(np.arange(12).reshape(3, 4)), part=np.arange(20)[::3], nothing=None, yes=True, no=False,
            pair=(1, (2.5, None), ()), several=[], mixed=[(1, "a"), {"b": [None]}], empty_dict={}, text='quotes " and\nlines, \u00e9',
            huge=2 ** 127 + 1, negative=-2 ** 70, tenth=0.1, infinite=float("inf"), rng=np.random.default_rng(3).bit_generator.state)
        path = runs.save_checkpoint(run, 12, tree)
        found, where = runs.load_checkpoint(run)
        self.assertEqual(where, path)
        self.assertSame(found, tree)
        rng = np.random.default_rng(99)
        rng.bit_generator.state = found["rng"]
        self.assertEqual(rng.random(), np.random.default_rng(3).random())

    def test_numpy_scalars_keep_their_value(self):
        run = self.started()
        runs.save_checkpoint(run, 1, dict(a=np.float32(0.1), b=np.int64(2 ** 62), c=np.bool_(True), d=np.uint8(7)))
        self.assertEqual(runs.load_checkpoint(run)[0], dict(a=float(np.float32(0.1)), b=2 ** 62, c=True, d=7))

    def test_what_it_cannot_hold(self):
        run, _ = self.saved(1)
        for tree in (dict(a=object()), dict(a={1, 2}), dict(a=np.array([None, "x"], object)), {1: "a key that is no text"}):
            with self.subTest(tree=tree), self.assertRaises(TypeError):
                runs.save_checkpoint(run, 2, tree)
        self.assertEqual(runs.load_checkpoint(run)[0]["step"], 1)

    def test_newest_two_are_kept(self):
        run, _ = self.saved(5, 50, 500, 5_000_000)
        self.assertEqual([path.name for path in runs.checkpoints(run)], ["step-000000000500", "step-000005000000"])
        self.assertEqual(runs.load_checkpoint(run)[0]["step"], 5_000_000)

    def test_older_one_by_name(self):
        run, paths = self.saved(1, 2)
        self.assertEqual(runs.load_checkpoint(run, str(paths[0]))[0]["step"], 1)

    def test_going_on_from_an_older_one_leaves_the_abandoned_one_behind(self):
        run, _ = self.saved(100, 200)
        runs.save_checkpoint(run, 150, dict(step=150))  # the run went on from 100
        self.assertEqual(runs.load_checkpoint(run)[0]["step"], 150)

    def test_new_one_is_never_the_one_that_goes(self):
        run, _ = self.saved(100, 200)
        path = runs.save_checkpoint(run, 50, dict(step=50))  # the run went on from a copy of one that is gone
        self.assertTrue(path.is_dir())

    def test_same_step_again(self):
        run, _ = self.saved(1, 2)
        runs.save_checkpoint(run, 2, dict(step="again"))
        self.assertEqual(runs.load_checkpoint(run)[0], dict(step="again"))
        self.assertEqual(len(runs.checkpoints(run)), 2)

    def test_none_yet(self):
        self.refused(self.started(), "no checkpoint yet")

    def test_damage_names_the_last_good_one(self):
        def truncated(path):
            data = (path / "arrays.npz").read_bytes()
            (path / "arrays.npz").write_bytes(data[:len(data) // 2])

        def changed_byte(path):
            data = bytearray((path / "arrays.npz").read_bytes())
            data[len(data) // 2] ^= 1
            (path / "arrays.npz").write_bytes(data)

        def changed_tree(path):
            text = (path / "tree.json").read_text()
            (path / "tree.json").write_text(text.replace('"step": 2', '"step": 3'))

        def foreign(path):
            manifest = json.loads((path / "manifest.json").read_text())
            (path / "manifest.json").write_text(json.dumps({**manifest, "format": "other-9"}))

        for damage, words in (
                (truncated, "bytes of"), (changed_byte, "contents of arrays.npz have changed"),
                (changed_tree, "contents of tree.json have changed"), (foreign, "not one of tfdqt's"),
                (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
                (lambda path: (path / "manifest.json").write_text("{"), "manifest.json"),
                (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json"),
                (lambda path: (path / "tree.json").unlink(), "tree.json is missing"),
                (lambda path: (path / "arrays.npz").unlink(), "arrays.npz is missing")):
            with self.subTest(words=words):
                run, (good, bad) = self.saved(1, 2)
                damage(bad)
                self.refused(run, words, str(bad), f"--checkpoint={good}")
                self.assertEqual(runs.last_good(run), good)
                self.assertEqual(runs.load_checkpoint(run, good)[0]["step"], 1)
                shutil.rmtree(run)

    def test_all_damaged(self):
        run, paths = self.saved(1, 2)
        for path in paths:
            (path / "manifest.json").unlink()
        self.assertIsNone(runs.last_good(run))
        self.refused(run, "no other one is whole")

    def test_path_that_is_no_checkpoint(self):
        run, (good,) = self.saved(1)
        self.refused(run, f"--checkpoint={good}", path=self.folder / "nowhere")
        self.refused(run, f"--checkpoint={good}", path=run / "config.json")

    def test_full_disk_leaves_the_others_whole(self):
        run, (_, good) = self.saved(1, 2)

        def full(file, **arrays):
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with mock.patch("numpy.savez", full), self.assertRaises(UsageError) as caught:
            runs.save_checkpoint(run, 3, dict(step=3, weights=np.arange(1_000.0)))
        for word in ("step 3", os.strerror(errno.ENOSPC), str(good), f"--resume={run}"):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(sorted(os.listdir(run / "checkpoints")), ["step-000000000001", "step-000000000002"])
        self.assertEqual(runs.load_checkpoint(run)[0]["step"], 2)
        runs.save_checkpoint(run, 3, dict(step=3))  # there is room again
        self.assertEqual(runs.load_checkpoint(run)[0]["step"], 3)

    def test_full_disk_before_the_first_one(self):
        run = self.started()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with mock.patch("numpy.savez", side_effect=full), self.assertRaisesRegex(UsageError, "none before it"):
            runs.save_checkpoint(run, 3, dict(step=3))
        self.assertEqual(os.listdir(run / "checkpoints"), [])

    def test_crash_while_writing(self):
        run, _ = self.saved(1, 2)
        with mock.patch("numpy.savez", side_effect=KeyboardInterrupt), contextlib.suppress(KeyboardInterrupt):
            runs.save_checkpoint(run, 3, dict(step=3))
        self.assertEqual(runs.load_checkpoint(run)[0]["step"], 2)
        runs.save_checkpoint(run, 4, dict(step=4))
        self.assertEqual(sorted(os.listdir(run / "checkpoints")), ["step-000000000002", "step-000000000004"])


class Saver(InFolder):

    def calls(self, save, *steps, last=None):
        made = []
        for step in steps:
            save(step, lambda: made.append(step) or dict(step=step), last=step == last)
        return made

    def test_every_so_often_and_at_the_end(self):
        save = runs.make_saver(self.started(), 100)
        self.assertEqual(self.calls(save, 32, 64, 96, 128, 160, 192, 224, 256, last=256), [128, 224, 256])

    def test_end_that_is_saved_already(self):
        save = runs.make_saver(self.started(), 100)
        self.assertEqual(self.calls(save, 50, 100), [100])
        self.assertEqual(self.calls(save, 100, last=100), [])

    def test_resumed(self):
        save = runs.make_saver(self.started(), 100, resume_step=128)
        self.assertEqual(self.calls(save, 160, 192, 224, 330, last=330), [224, 330])


class Log(InFolder):

    fields = ("step", "games", "mean_return", "loss", "epsilon")

    def setUp(self):
        super().setUp()
        self.shown = io.StringIO()
        self.enterContext(contextlib.redirect_stderr(self.shown))

    def logger(self, run, total_steps, epochs, **options):
        return runs.make_logger(run, self.fields, total_steps, epochs, **options)

    def rows(self, run):
        with open(run / "log.csv", newline="") as file:
            return list(csv.DictReader(file))

    def test_one_row_an_epoch(self):
        run = self.started()
        log, close = self.logger(run, 100, 5, show=False)
        for step in range(8, 105, 8):
            log(Metrics(step, step // 10, step / 4, float("nan") if step < 30 else 1 / 3))
        close()
        # An epoch is 20 steps; its row is that of the first step in it.
        self.assertEqual([(row["epoch"], row["step"]) for row in self.rows(run)],
                         [("1", "24"), ("2", "40"), ("3", "64"), ("4", "80"), ("5", "104")])
        read = runs.read_log(run)
        self.assertEqual(list(read), ["epoch", "seconds", *self.fields])
        np.testing.assert_array_equal(read["mean_return"], [6, 10, 16, 20, 26])
        np.testing.assert_allclose(read["loss"], [np.nan, 1 / 3, 1 / 3, 1 / 3, 1 / 3], rtol=1e-5)
        self.assertTrue(list((run / "tensorboard").glob("events.*")))
        self.assertFalse((run / "log.writing").exists())

    def test_resume_drops_what_comes_again(self):
        run = self.started()
        log, close = self.logger(run, 100, 10, show=False)
        for step in range(10, 81, 10):
            log(Metrics(step, step, 1.0, 1.0))
        close()
        with open(run / "log.csv", "a") as file:
            file.write("9,0.5,9")  # the crash came here
        before = self.rows(run)
        log, close = self.logger(run, 100, 10, resume_step=50, show=False)
        self.assertEqual([row["step"] for row in self.rows(run)], ["10", "20", "30", "40", "50"])
        for step in (55, 60, 70):
            log(Metrics(step, step, 2.0, 2.0))
        close()
        rows = self.rows(run)
        self.assertEqual([row["step"] for row in rows], ["10", "20", "30", "40", "50", "60", "70"])
        self.assertEqual(rows[:5], before[:5])
        self.assertEqual([row["mean_return"] for row in rows[5:]], ["2", "2"])
        seconds = [float(row["seconds"]) for row in rows]
        self.assertEqual(seconds, sorted(seconds))

    def test_resume_of_a_run_without_a_log(self):
        run = self.started()
        log, close = self.logger(run, 100, 10, resume_step=50, show=False)
        log(Metrics(60, 3, 1.0, 1.0))
        close()
        self.assertEqual([row["step"] for row in self.rows(run)], ["60"])

    def test_progress_line(self):
        run = self.started()
        log, close = self.logger(run, 1_024_000, 1_000)
        log(Metrics(224_300, 917, 130.0, 0.5))  # epoch 219 begins
        log(Metrics(225_387, 1_024, 135.5424, 0.02149))
        close()
        # 107 games are new since the last epoch.
        self.assertRegex(self.shown.getvalue().split("\r")[-1].rstrip(),
                         r"^Epoch: 220 \| 225387 \| 0\.021 \| 135\.542 \| playing games: 107/1024:  22%\|.*\| 220/1000$")

    def test_progress_line_before_the_first_update(self):
        log, close = self.logger(self.started(), 1_000, 10)
        log(Metrics(8, 0, float("nan"), float("nan")))
        close()
        self.assertIn("Epoch: 0 | 8 | nan | nan | playing games: 0/0:   0%|", self.shown.getvalue())

    def test_progress_line_goes_on(self):
        run = self.started()
        log, close = self.logger(run, 1_000, 10, show=False)
        log(Metrics(500, 30, 1.0, 1.0))
        close()
        log, close = self.logger(run, 1_000, 10, resume_step=500)
        log(Metrics(600, 34, 1.0, 1.0))
        close()
        self.assertRegex(self.shown.getvalue(), r"playing games: 4/34:  60%\|.*\| 6/10")

    def test_no_rows_yet(self):
        run = self.started()
        with self.assertRaisesRegex(UsageError, "log.csv"):
            runs.read_log(run)
        self.logger(run, 100, 10, show=False)[1]()
        with self.assertRaisesRegex(UsageError, "no rows yet"):
            runs.read_log(run)

    def test_half_a_row_is_left_out(self):
        run = self.started()
        log, close = self.logger(run, 100, 10, show=False)
        log(Metrics(10, 1, 1.0, 1.0))
        close()
        with open(run / "log.csv", "a") as file:
            file.write("2,0.5,20")  # the crash came here
        np.testing.assert_array_equal(runs.read_log(run)["step"], [10])


class Scripts(unittest.TestCase):

    def ended(self, main):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), self.assertRaises(SystemExit) as caught:
            runs.run_main(main)
        return caught.exception.code, said.getvalue()

    def test_usage_error_is_one_line_and_code_2(self):
        def main():
            raise UsageError("The width can't be divided; choose another.")

        self.assertEqual(self.ended(main), (2, "error: The width can't be divided; choose another.\n"))

    def test_code_is_passed_on(self):
        self.assertEqual(self.ended(lambda: 130), (130, ""))
        self.assertEqual(self.ended(lambda: 0), (0, ""))

    def test_other_errors_are_not_hidden(self):
        with self.assertRaises(ZeroDivisionError):
            runs.run_main(lambda: 1 / 0)


class Signals(unittest.TestCase):

    def test_first_asks_second_ends(self):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        for number in (signal.SIGINT, signal.SIGTERM):
            with runs.stop_on_signals() as stop:
                self.assertFalse(stop())
                os.kill(os.getpid(), number)
                self.assertTrue(stop())
                self.assertEqual(stop.signal, number)
                with self.assertRaises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            self.assertEqual((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)), before)


if __name__ == "__main__":
    unittest.main()
