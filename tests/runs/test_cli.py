"""What every training script does: its command line, old runs, sessions, signals, failures."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import unittest
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

from tests.helpers import InFolder
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.runs import cli
from tfdqt.runs.checkpoint import load_checkpoint, save_checkpoint
from tfdqt.runs.cli import Run, given_flags, given_value, run_main, stop_on_signals
from tfdqt.runs.folder import start_run, unlock_runs
from tfdqt.runs.log import read_log
from tfdqt.scale.config import ScaleConfig


class Metrics(NamedTuple):
    step: int
    games: int
    mean_return: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Settings:
    width: int = 8


class Scripts(unittest.TestCase):
    def ended(self, main):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), self.assertRaises(SystemExit) as caught:
            run_main(main)
        return caught.exception.code, said.getvalue()

    def test_usage_error_is_one_line_and_code_2(self):
        def main():
            raise UsageError("The width can't be divided; choose another.")

        self.assertEqual(
            self.ended(main), (2, "error: The width can't be divided; choose another.\n")
        )

    def test_code_is_passed_on(self):
        self.assertEqual(self.ended(lambda: 130), (130, ""))
        self.assertEqual(self.ended(lambda: 0), (0, ""))

    def test_a_failing_environment_is_one_line_and_ctrl_c_a_word(self):
        def fail():
            raise EnvFailure("the robot fell over\nTraceback: here")

        self.assertEqual(self.ended(fail), (2, "error: the robot fell over\n"))

        def interrupt():
            raise KeyboardInterrupt

        self.assertEqual(self.ended(interrupt), (130, "Stopped.\n"))

    def test_a_reader_that_leaves_ends_it_quietly(self):
        code = (
            "from tfdqt.runs.cli import run_main\n"
            "run_main(lambda: [print('h\\u00e9' * 99) for _ in range(9_999)] and 0)\n"
        )
        env = dict(os.environ, PYTHONIOENCODING="ascii")
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.assertTrue(child.stdout.readline().startswith("h\\xe9h"))
        child.stdout.close()
        self.assertEqual(child.stderr.read(), "")
        child.stderr.close()
        self.assertEqual(child.wait(), 128 + signal.SIGPIPE)

    def test_other_errors_are_not_hidden(self):
        with self.assertRaises(ZeroDivisionError):
            run_main(lambda: 1 / 0)


class CommandLine(unittest.TestCase):
    def test_flags_that_are_given(self):
        argv = ["--total_steps=5", "--name", "Pong", "--no-double", "runs/x", "--seed=1"]
        self.assertEqual(given_flags(argv), ["total-steps", "name", "no-double", "seed"])

    def test_the_value_that_is_given_last(self):
        argv = ["--name=a", "--name", "b", "--named=c"]
        self.assertEqual(given_value(argv, "name", "d"), "b")
        self.assertEqual(given_value(argv, "seed", "d"), "d")
        self.assertEqual(given_value(["--name"], "name", "d"), "")

    def test_flags_beside_resume(self):
        cli.check_resume_flags(["resume", "checkpoint", "total-steps", "actors"], {"total-steps"})
        cli.check_resume_flags(["seed", "layers"], set())  # a new run
        with self.assertRaisesRegex(UsageError, "--checkpoint says where --resume goes on"):
            cli.check_resume_flags(["checkpoint"], set())
        with self.assertRaisesRegex(UsageError, "leave out --seed"):
            cli.check_resume_flags(["resume", "seed"], {"total-steps"})

    def test_a_run_that_goes_on_has_more_to_do(self):
        cli.check_goes_on(10, 11, "--total-steps")
        with self.assertRaisesRegex(UsageError, "--total-steps=10 is no more than the 10"):
            cli.check_goes_on(10, 10, "--total-steps")

    def test_settings_are_shown_and_a_scale_that_says_something(self):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            cli.show_settings(Settings(), ScaleConfig())
            cli.show_settings(ScaleConfig(actors=2))
        one, two = said.getvalue().splitlines()
        self.assertEqual(one, "width=8")
        self.assertIn("actors=2", two)


class OldRuns(InFolder):
    def written(self, **settings):
        (self.tmp / "config.json").write_text(json.dumps(settings))
        return self.tmp

    def test_settings_of_how_it_is_spread_are_read_by_both_their_names(self):
        for key in ("scale", "far"):
            run = self.written(algorithm="dqn", **{key: dict(actors=3)}, part=dict(width=9))
            settings = cli.read_settings(run, part=Settings)
            self.assertEqual(
                settings,
                dict(algorithm="dqn", part=Settings(9), scale=ScaleConfig(actors=3)),
            )
        settings = cli.read_settings(self.written(algorithm="dqn"))
        self.assertEqual(settings, dict(algorithm="dqn", scale=ScaleConfig()))

    def test_they_are_read_strictly(self):
        for key in ("scale", "far"):
            with self.assertRaisesRegex(UsageError, "ScaleConfig has unknown fields: actor"):
                cli.read_settings(self.written(**{key: dict(actor=3)}))

    def test_a_run_of_another_algorithm_is_refused(self):
        args = SimpleNamespace(resume=str(self.written(algorithm="ppo")), checkpoint=None)
        with self.assertRaisesRegex(UsageError, "not a run of DQN"):
            cli.old_run(args, [], "dqn", None)

    def test_a_value_that_every_run_has_is_missing(self):
        whole = dict(algorithm="dqn", name="x", seed=0, checkpoint_every=5, log_lines=7)
        self.addCleanup(unlock_runs)
        for name in ("name", "seed", "checkpoint_every", "log_lines"):
            settings = {key: value for key, value in whole.items() if key != name}
            args = SimpleNamespace(resume=str(self.written(**settings)), checkpoint=None)
            with self.assertRaisesRegex(UsageError, f"has no {name}; put back"):
                cli.old_run(args, [], "dqn", None)

    def test_a_run_without_a_checkpoint_has_nothing_to_go_on_from(self):
        run = start_run(
            self.tmp / "run", algorithm="dqn", name="x", seed=0, checkpoint_every=5, log_lines=7
        )
        self.addCleanup(unlock_runs)
        args = SimpleNamespace(resume=str(run), checkpoint=None)
        with self.assertRaisesRegex(UsageError, "nothing to go on from; start the run again"):
            cli.old_run(args, [], "dqn", lambda settings, scale: None)

    def test_a_run_that_is_still_going_is_left_alone(self):
        args = SimpleNamespace(resume=str(self.written(algorithm="dqn")), checkpoint=None)
        busy = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        with mock.patch("fcntl.lockf", side_effect=busy):
            with self.assertRaisesRegex(UsageError, "is in use"):
                cli.old_run(args, [], "dqn", None)


class Sessions(InFolder):
    def session(self, run=None, **more):
        folder = run or start_run(self.tmp / "run", name="CartPole-v1", seed=0)
        self.enterContext(contextlib.redirect_stderr(io.StringIO()))
        run = Run(folder, {}, ScaleConfig(), None, None)
        return folder, cli.session(run, Metrics._fields, 100, 10, 50, **more)

    def test_logs_and_saves(self):
        run, session = self.session()
        with session as (log, save, stop):
            for step in (25, 50, 75):
                log(Metrics(step, 1, 1.0, 1.0))
                save(step, lambda step=step: dict(step=step), last=step == 75)
            self.assertFalse(stop())
        self.assertEqual(list(read_log(run)["step"]), [25, 50, 75])
        self.assertEqual(load_checkpoint(run)[0], dict(step=75))

    def test_a_failing_environment_becomes_a_sentence_and_a_file(self):
        run, session = self.session()
        sentence = f"^the robot fell over; what was learned is saved, go on with --resume={run}"
        with self.assertRaisesRegex(UsageError, sentence) as caught, session as (_, save, _):
            save(1, lambda: dict(step=1), last=True)
            raise EnvFailure("the robot fell over\nTraceback: here")
        self.assertNotIn("\n", str(caught.exception))
        self.assertIn(str(run / "failure.txt"), str(caught.exception))
        self.assertIn("Traceback: here", (run / "failure.txt").read_text())

    def test_what_asks_for_the_end_of_the_process_becomes_one_too(self):
        run, session = self.session()
        sentence = f"^Something called sys.exit.0.; what was learned is saved, .* --resume={run} "
        with self.assertRaisesRegex(UsageError, sentence), session as (_, save, _):
            save(1, lambda: dict(step=1), last=True)
            sys.exit(0)
        self.assertIn("in test_what_asks", (run / "failure.txt").read_text())

    def test_a_session_is_the_one_writer_while_it_lasts(self):
        run, session = self.session()
        with mock.patch.object(cli, "unlock_runs") as unlocked, session:
            unlocked.assert_not_called()
        unlocked.assert_called_once_with()

    def test_one_that_fails_before_anything_is_learned_gives_the_folder_back(self):
        run, session = self.session()
        again = "^the robot did not stand up; nothing was learned yet, start again"
        with self.assertRaisesRegex(UsageError, again), session:
            raise EnvFailure("the robot did not stand up")
        self.assertFalse((run / "config.json").exists())

    def test_a_stopped_run_says_how_to_go_on(self):
        run = start_run(self.tmp / "run", name="CartPole-v1", seed=0)
        said = io.StringIO()
        with stop_on_signals() as stop, contextlib.redirect_stdout(said):
            os.kill(os.getpid(), signal.SIGTERM)
            save_checkpoint(run, 1, dict(step=1))
            code = cli.stopped("run_pqn", run, stop)
        self.assertEqual(code, 128 + signal.SIGTERM)
        self.assertIn(f"python scripts/run_pqn.py --resume={run}", said.getvalue())

    def test_a_run_whose_folder_was_moved_is_told_where_its_parts_are(self):
        run = start_run(self.tmp / "run", name="CartPole-v1", seed=0)
        run.rename(self.tmp / "moved")
        save_checkpoint(run, 1, dict(step=1))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            cli.stopped("run_pqn", run, SimpleNamespace(signal=signal.SIGTERM))
        self.assertIn(f"{run} was moved while it trained: put what is left there", said.getvalue())

    def test_a_run_that_was_stopped_before_its_first_checkpoint_is_promised_nothing(self):
        run = start_run(self.tmp / "run", name="CartPole-v1", seed=0)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            cli.stopped("run_pqn", run, SimpleNamespace(signal=signal.SIGTERM))
        self.assertEqual(said.getvalue(), "Nothing was learned yet; start again.\n")
        self.assertFalse((run / "config.json").exists())

    def test_commands_are_quoted(self):
        run = start_run(self.tmp / "a run; of mine", name="CartPole-v1", seed=0)
        save_checkpoint(run, 1, dict(step=1))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            cli.stopped("run_pqn", run, SimpleNamespace(signal=signal.SIGTERM))
        words = shlex.split(said.getvalue().removeprefix("Go on with: "))
        self.assertEqual(words, ["python", "scripts/run_pqn.py", f"--resume={run}"])


class Signals(unittest.TestCase):
    def test_first_asks_second_ends(self):
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a background job starts with it ignored
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        for number in (signal.SIGINT, signal.SIGTERM):
            with stop_on_signals() as stop:
                self.assertFalse(stop())
                os.kill(os.getpid(), number)
                self.assertTrue(stop())
                self.assertEqual(stop.signal, number)
                with self.assertRaises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            self.assertEqual(
                (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)), before
            )


if __name__ == "__main__":
    unittest.main()
