"""Signals that are the run's alone, and ends that come in time."""

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import unittest

from tests.runs.children import sleep
from tfdqt.errors import UsageError
from tfdqt.runs.cli import stop_on_signals
from tfdqt.runs.processes import (
    close_all,
    last_line,
    one_thread,
    run_script,
    take_signals,
    tell_of_close,
)


class Threads(unittest.TestCase):
    def test_one_is_waited_for_but_behind_ctrl_c(self):
        for error, done in ((ZeroDivisionError, True), (KeyboardInterrupt, False)):
            goes_on = threading.Event()
            self.addCleanup(goes_on.set)
            with self.subTest(error=error), self.assertRaises(error):
                with one_thread("test") as pool:
                    task = pool.submit(goes_on.wait, 0.3 if done else 60)
                    raise error
            self.assertEqual(task.done(), done)


class Signals(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.seen = []
        self.addCleanup(take_signals(lambda number, frame: self.seen.append(number)))

    def test_a_forked_child_ends_by_the_signals_that_its_parent_handles(self):
        # The first comes before the child runs a line of its own, most likely.
        for number, seconds in ((signal.SIGTERM, 0), (signal.SIGINT, 0.2)):
            child = multiprocessing.get_context("fork").Process(target=sleep)
            with contextlib.redirect_stderr(io.StringIO()):
                child.start()
                time.sleep(seconds)
                os.kill(child.pid, number)
                child.join(10)
            self.addCleanup(child.kill)
            self.assertIsNotNone(child.exitcode, number)
            self.assertNotEqual(child.exitcode, 0)
            os.kill(os.getpid(), number)
            self.assertEqual(self.seen.pop(), number)

    def test_one_that_a_thread_forks_does_too(self):
        child = multiprocessing.get_context("fork").Process(target=sleep)
        self.addCleanup(child.kill)
        thread = threading.Thread(target=child.start)
        thread.start()
        thread.join()
        child.terminate()
        child.join(10)
        self.assertEqual(child.exitcode, -signal.SIGTERM)

    def test_a_program_ends_by_them(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            child = subprocess.Popen(["sleep", "1000"])
            self.addCleanup(child.kill)
            child.send_signal(number)
            self.assertEqual(child.wait(10), -number)

    def test_a_fork_leaves_the_signals_that_were_blocked_as_they_were(self):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        self.addCleanup(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        child = multiprocessing.get_context("fork").Process(target=sleep)
        child.start()
        child.kill()
        child.join()
        now = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self.assertEqual(now, before | {signal.SIGUSR1})

    def test_handlers_within_others_are_given_back_in_turn(self):
        outer = signal.getsignal(signal.SIGTERM)
        give_back = take_signals(lambda number, frame: self.fail("given back"))
        self.assertNotEqual(signal.getsignal(signal.SIGTERM), outer)
        give_back()
        self.assertEqual(signal.getsignal(signal.SIGTERM), outer)
        child = multiprocessing.get_context("fork").Process(target=sleep)
        self.addCleanup(child.kill)
        child.start()
        child.terminate()
        child.join(10)
        self.assertEqual(child.exitcode, -signal.SIGTERM)


class Scripts(unittest.TestCase):
    def test_why_one_failed_is_its_last_line_without_the_box_around_it(self):
        self.assertEqual(last_line("a\nerror: give more\n\n"), "error: give more")
        self.assertEqual(last_line(""), "no message")
        box = "╭─ Unknown ─╮\n│ options: True │\n│ ────── │\n│ For full helptext, run │\n╰──╯\n"
        self.assertEqual(last_line(box), "options: True")

    def test_one_that_fails_is_told_with_its_flags(self):
        code = "import sys; sys.exit('error: ' + sys.argv[1])"
        with self.assertRaisesRegex(UsageError, "-c .* --x failed: error: --x"):
            run_script([sys.executable, "-c", code, "--x"])

    def test_one_that_is_not_there_can_not_be_started(self):
        with self.assertRaisesRegex(UsageError, "^no-python can't be started"):
            run_script(["no-python", "x.py"])


class Closing(unittest.TestCase):
    def close_all(self, *closers, seconds=0.3):
        before = time.monotonic()
        faults = close_all(closers, seconds)
        self.assertLess(time.monotonic() - before, seconds + 2)
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0, 0))
        return faults

    def test_all_are_called_whatever_the_others_do(self):
        called = []

        def fails():
            raise ValueError("no such window\nat all")

        def swallows():
            while True:
                try:
                    sleep()
                except Exception:
                    called.append("swallowed")

        closers = [fails, sys.exit, sleep, swallows, lambda: called.append("good")]
        faults = self.close_all(*closers)
        self.assertEqual(
            faults,
            [
                "it raised ValueError: no such window",
                "it raised SystemExit: without a message",
                "it did not end within 0.3 seconds",
                "it did not end within 0.3 seconds",
            ],
        )
        self.assertEqual(called, ["good"])

    def test_waiting_for_a_child_is_interrupted(self):
        child = multiprocessing.get_context("fork").Process(target=sleep)
        child.start()
        self.addCleanup(child.join)
        self.addCleanup(child.kill)
        self.assertEqual(self.close_all(child.join), ["it did not end within 0.3 seconds"])

    def test_good_ones_say_nothing(self):
        self.assertEqual(self.close_all(lambda: None, lambda: None), [])
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            tell_of_close("Robot-v0", [])
            tell_of_close("Robot-v0", ["it raised ValueError: no", "more"])
        self.assertEqual(
            said.getvalue(),
            "Closing an environment of Robot-v0 failed: it raised ValueError: no (and 1 more); "
            "nothing else is lost.\n",
        )

    def test_ctrl_c_is_passed_on(self):
        def interrupted():
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            self.close_all(interrupted)
        with stop_on_signals():  # then none of Ctrl-C can come
            self.assertEqual(
                self.close_all(interrupted), ["it raised KeyboardInterrupt: without a message"]
            )

    def test_outside_of_the_main_thread(self):
        faults = []
        thread = threading.Thread(target=lambda: faults.extend(close_all([sys.exit], 0.3)))
        thread.start()
        thread.join()
        self.assertEqual(faults, ["it raised SystemExit: without a message"])


class Ends(unittest.TestCase):
    def ended(self, code, returncode):
        """What came of a process that ran `code` and must end with `returncode`."""
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, returncode, done.stderr)
        return done

    def test_a_close_that_swallows_interruptions_ends_a_script(self):
        code = (
            "import time\n"
            "from tfdqt.runs.processes import a_script, close_all\n"
            "def close():\n"
            "    while True:\n"
            "        try:\n"
            "            time.sleep(9)\n"
            "        except BaseException:\n"
            "            pass\n"
            "with a_script():\n"
            "    close_all([close], 0.1)\n"
        )
        done = self.ended(code, 2)
        self.assertRegex(done.stderr, r"^error: close\(\) of an environment does not end.*\n$")

    def test_what_was_left_running_does_not_keep_the_interpreter_from_its_end(self):
        code = (
            "import multiprocessing, sys, threading\n"
            "from tests.runs.children import sleep\n"
            "from tfdqt.runs.processes import end_in_time\n"
            "multiprocessing.get_context('fork').Process(target=sleep).start()\n"
            "threading.Thread(target=sleep).start()\n"
            "print('done')\n"
            "end_in_time(7)\n"
            "sys.exit(7)\n"
        )
        done = self.ended(code, 7)
        self.assertEqual(done.stdout, "done\n")
        self.assertEqual(done.stderr, "What an environment left running was ended.\n")


if __name__ == "__main__":
    unittest.main()
