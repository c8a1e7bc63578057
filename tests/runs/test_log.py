"""A run's log: log.csv, TensorBoard and the progress line."""

import contextlib
import csv
import errno
import io
import os
import unittest
from typing import NamedTuple
from unittest import mock

import numpy as np

from tests.helpers import InFolder
from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import save_checkpoint
from tfdqt.runs.evaluation import read_games, read_returns
from tfdqt.runs.folder import start_run
from tfdqt.runs.log import add_row, make_logger, read_csv, read_log, read_rows, write_rows


class Metrics(NamedTuple):
    step: int
    games: int
    mean_return: float
    loss: float
    epsilon: float = 0.5


class TextMetrics(NamedTuple):
    step: int
    samples: int
    mean_return: float
    loss: float


class Log(InFolder):
    def started(self, name="run"):
        return start_run(self.tmp / name, name="CartPole-v1", seed=0)

    fields = ("step", "games", "mean_return", "loss", "epsilon")

    def setUp(self):
        super().setUp()
        self.shown = io.StringIO()
        self.enterContext(contextlib.redirect_stderr(self.shown))

    def logger(self, run, total_steps, lines, **options):
        return make_logger(run, self.fields, total_steps, lines, **options)

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
        self.assertEqual(
            [(row["epoch"], row["step"]) for row in self.rows(run)],
            [("1", "24"), ("2", "40"), ("3", "64"), ("4", "80"), ("5", "104")],
        )
        read = read_log(run)
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

    def test_an_evaluation_has_a_row(self):
        run = self.started()
        fields = (*self.fields, "evaluation")
        log, close = make_logger(run, fields, 100, 2, show=False)
        for step in range(10, 101, 10):
            log(Metrics(step, step, 1.0, 1.0), **(dict(evaluation=step / 2) if step == 70 else {}))
        close()
        rows = [(row["epoch"], row["step"], row["evaluation"]) for row in self.rows(run)]
        self.assertEqual(rows, [("1", "50", ""), ("1", "70", "35"), ("2", "100", "")])
        np.testing.assert_array_equal(read_log(run)["evaluation"], [np.nan, 35, np.nan])

        # Made again, it is there already; and it stays when there are no more of them.
        before = self.rows(run)[:2]
        for more in (fields, self.fields):
            log, close = make_logger(run, more, 100, 2, resume_step=70, show=False)
            log(Metrics(70, 70, 1.0, 1.0), evaluation=35.0)
            close()
            self.assertEqual(self.rows(run), before)

    def test_numbers_beyond_32_bits(self):
        log, close = self.logger(self.started(), 10, 1, show=False)
        log(Metrics(10, 2**40, 5e38, -5e38))
        close()

    def test_a_run_that_goes_on_for_longer_counts_on(self):
        run = self.started()
        log, close = self.logger(run, 100, 10, show=False)
        for step in range(10, 101, 10):
            log(Metrics(step, step, 1.0, 1.0))
        close()
        log, close = self.logger(run, 200, 10, resume_step=100, show=False)
        for step in range(110, 161, 10):
            log(Metrics(step, step, 1.0, 1.0))
        close()
        # A part has 20 steps now. It was killed at step 160, its last checkpoint is of step 140.
        log, close = self.logger(run, 200, 10, resume_step=140)
        for step in range(150, 201, 10):
            log(Metrics(step, step, 1.0, 1.0))
        close()
        rows = [(int(row["epoch"]), int(row["step"])) for row in self.rows(run)]
        self.assertEqual(
            rows[9:], [(10, 100), (11, 120), (12, 140), (13, 160), (14, 180), (15, 200)]
        )
        self.assertIn("15/15", self.shown.getvalue())

    def test_resume_of_a_run_without_a_log(self):
        run = self.started()
        log, close = self.logger(run, 100, 10, resume_step=50, show=False)
        log(Metrics(60, 3, 1.0, 1.0))
        close()
        self.assertEqual([row["step"] for row in self.rows(run)], ["60"])

    def test_a_damaged_log_is_put_aside(self):
        for damage in (b"\xff\x00\xfe,\n", b"step,games\n1,2\n", b"step\nfew\n"):
            run = self.started(f"run{len(damage)}")
            (run / "log.csv").write_bytes(damage)
            log, close = self.logger(run, 100, 10, resume_step=50, show=False)
            log(Metrics(60, 1, 1.0, 0.0))
            close()
            self.assertEqual([row["step"] for row in self.rows(run)], ["60"])
            self.assertEqual((run / "log.csv.damaged").read_bytes(), damage)
            self.assertIn("log.csv.damaged now", self.shown.getvalue())

    def test_a_full_disk_is_one_sentence(self):
        run = self.started()
        log, close = self.logger(run, 100, 10, show=False)
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            mock.patch("csv.DictWriter.writerow", side_effect=full),
            self.assertRaisesRegex(UsageError, "can't be written .*No space .*make room"),
        ):
            log(Metrics(60, 1, 1.0, 0.0))
        close()
        save_checkpoint(run, 50, {})
        log, close = self.logger(run, 100, 10, show=False)
        with (
            mock.patch("csv.DictWriter.writerow", side_effect=full),
            self.assertRaisesRegex(UsageError, "make room, then go on with --resume=.*run.*\\.$"),
        ):
            log(Metrics(60, 1, 1.0, 0.0))
        close()

    def test_progress_line(self):
        run = self.started()
        log, close = self.logger(run, 1_024_000, 1_000)
        log(Metrics(224_300, 917, 130.0, 0.5))  # epoch 219 begins
        log(Metrics(225_387, 1_024, 135.5424, 0.02149))
        close()
        # 107 games are new since the last epoch.
        self.assertRegex(
            self.shown.getvalue().split("\r")[-1].rstrip(),
            r"^Epoch: 220 \| 225387 \| 0\.021 \| 135\.542 \| playing games: 107/1024:  22%\|"
            r".*\| 220/1000$",
        )

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
            read_log(run)
        self.logger(run, 100, 10, show=False)[1]()
        with self.assertRaisesRegex(UsageError, "no rows yet"):
            read_log(run)

    def test_half_a_row_is_left_out(self):
        run = self.started()
        log, close = self.logger(run, 100, 10, show=False)
        log(Metrics(10, 1, 1.0, 1.0))
        close()
        with open(run / "log.csv", "a") as file:
            file.write("2,0.5,20")  # the crash came here
        np.testing.assert_array_equal(read_log(run)["step"], [10])

    def test_samples_instead_of_games(self):
        run = self.started()
        log, close = make_logger(run, TextMetrics._fields, 100, 10)
        log(TextMetrics(10, 160, 1.0, 0.5))
        log(TextMetrics(20, 320, 1.0, 0.5), last=True)
        close()
        line = self.shown.getvalue().split("\r")[-1].rstrip()
        self.assertRegex(line, r"\| reading samples: 160/320:  20%")
        np.testing.assert_array_equal(read_log(run)["samples"], [160, 320])

    def test_a_log_of_texts_that_counted_games_goes_on(self):
        run = self.started()
        (run / "log.csv").write_text(
            "epoch,seconds,step,games,mean_return,loss\n1,0.5,10,160,1,0.5\n2,1,20,320,1,0.5\n"
        )
        log, close = make_logger(run, TextMetrics._fields, 100, 10, resume_step=10, show=False)
        log(TextMetrics(20, 320, 2.0, 0.5))
        close()
        rows = read_log(run)
        self.assertEqual(list(rows), ["epoch", "seconds", *TextMetrics._fields])
        np.testing.assert_array_equal(rows["samples"], [160, 320])
        np.testing.assert_array_equal(rows["mean_return"], [1, 2])


class Tables(InFolder):
    def test_a_column_for_every_key(self):
        path = self.tmp / "rows.csv"
        write_rows(path, [dict(a=1, b=1 / 3), dict(a=2, c="x")])
        self.assertEqual(path.read_text(), "a,b,c\n1,0.333333,\n2,,x\n")

    def test_a_column_that_came_later_is_empty_before(self):
        path = self.tmp / "rows.csv"
        path.write_text("a,b\n1,\n2,3\n")
        table = read_csv(path)
        np.testing.assert_array_equal(table["a"], [1, 2])
        np.testing.assert_array_equal(table["b"], [np.nan, 3])

    def test_what_can_not_be_read(self):
        with self.assertRaisesRegex(UsageError, "can't be read"):
            read_csv(self.tmp / "nothing.csv")
        (self.tmp / "words.csv").write_text("step\n1\nx\n")
        with self.assertRaisesRegex(UsageError, "a cell that is no number .*'x'"):
            read_csv(self.tmp / "words.csv")

    def test_what_is_no_csv_is_one_sentence(self):
        path = self.tmp / "evaluation.csv"
        for damage, words in ((b"\xff\xfe", "is no CSV"), (b"a,b\n1,2\n", "are no games")):
            path.write_bytes(damage)
            for read in (read_returns, read_games):
                with self.assertRaisesRegex(UsageError, f"evaluation.csv .*{words}.*; move it"):
                    read(self.tmp)
        path.write_text("return\n1.5\n")  # as a peer's run has it
        self.assertEqual(read_returns(self.tmp), [1.5])

    def test_rows_of_before_are_there_until_all_of_now_are(self):
        path = self.tmp / "rows.csv"
        add_row(path, dict(a=1))

        with mock.patch("csv.DictWriter.writerows", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                add_row(path, dict(a=2))
        self.assertEqual(read_rows(path), [dict(a="1")])


if __name__ == "__main__":
    unittest.main()
