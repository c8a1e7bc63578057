"""Rewards as people write them: taken, or refused in a sentence that names them and the text."""

import copy
import os
import pickle
import sys
import unittest
from decimal import Decimal
from fractions import Fraction

import numpy as np

from tests.helpers import InFolder
from tfdqt.backend import tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.runs.cli import stop_on_signals
from tfdqt.text.reward import Reward, RewardFailure, make_reward

TEXT = "the sun is red and the moon is pale and nothing else is said"


class TestReward(unittest.TestCase):
    def test_one_number_is_taken_whatever_its_type(self):
        half = (0.5, np.float16(0.5), np.array(0.5), np.array([[0.5]]), [0.5], Fraction(1, 2))
        for value in (*half, Decimal("0.5"), tf.constant([0.5])):
            number = Reward(lambda text: value)(TEXT)  # noqa: B023
            self.assertEqual((number, type(number)), (0.5, float), repr(value))
        for value in (True, np.bool_(True), 1, np.int64(1)):
            self.assertEqual(Reward(lambda text: value)(TEXT), 1.0)  # noqa: B023

    def test_all_else_is_refused_in_one_line_with_the_beginning_of_the_text(self):
        faults = (
            ("0.5", "the string '0.5'"),
            (None, "None"),
            (b"1", "type bytes"),
            (np.array([0.5, 1.0]), r"shape \(2,\)"),
            (np.array([]), r"shape \(0,\)"),
            (1j, "complex"),
            ({"a": 1}, "dict"),
            (np.ma.masked, "masked|Masked"),
            ([[1], [2, 3]], "list"),
            (float("nan"), "not finite"),
            (float("-inf"), "not finite"),
            (10**400, "not finite"),
            (1e30, "divide it"),
            (-(10**9), "divide it"),
        )
        for value, message in faults:
            with self.subTest(value=value), self.assertRaisesRegex(RewardFailure, message) as seen:
                Reward(lambda text: value, "--reward=mine:score")(TEXT)  # noqa: B023
            said = str(seen.exception)
            self.assertIn("--reward=mine:score", said)
            self.assertIn("'the sun is red and the moon is pale and ...'", said)
            self.assertNotIn("\n", said)

    def test_what_it_raises_is_a_failure_that_saves(self):
        class Odd(BaseException):
            pass

        for error in (ZeroDivisionError("by\nzero"), SystemExit(3), Odd(), StopIteration()):

            def score(text, error=error):
                raise error

            with self.assertRaises(RewardFailure) as seen:
                Reward(score)(TEXT)
            first, _, rest = str(seen.exception).partition("\n")
            self.assertIn("reward_fn score fails on the text 'the sun", first)
            self.assertIn(type(error).__name__, first)
            self.assertIn("Traceback", rest)
            self.assertIsInstance(seen.exception, (EnvFailure, UsageError))
        with self.assertRaises(RewardFailure):
            Reward(lambda: 1.0)(TEXT)

        def stopped(text):
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):  # whoever calls this handles no signals
            Reward(stopped)(TEXT)
        with stop_on_signals(), self.assertRaisesRegex(RewardFailure, "KeyboardInterrupt"):
            Reward(stopped)(TEXT)


class TestMakeReward(InFolder):
    def setUp(self):
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        self.addCleanup(sys.path.__setitem__, slice(None), list(sys.path))
        os.chdir(self.tmp)

    def write(self, name, code):
        (self.tmp / f"{name}.py").write_text(code)
        self.addCleanup(sys.modules.pop, name, None)

    def test_a_module_of_the_working_directory(self):
        self.write("reward_friend", "def two(): return 2.0\n")
        code = "def late(text):\n    from reward_friend import two\n    return two()\n"
        self.write("reward_of_mine", code)
        reward = make_reward("reward_of_mine:late")
        self.assertEqual(reward("a"), 2.0)
        for again in (copy.copy(reward), pickle.loads(pickle.dumps(reward))):  # as actors get it
            self.assertEqual(again("a"), 2.0)

    def test_what_can_not_be_found_or_called(self):
        self.write("reward_with_value", "value = 3\n")
        self.write("reward_broken", "def f(:\n")
        self.write("reward_that_exits", "raise SystemExit('no')\n")
        self.write("reward_needs", "import nothing_of_that_name\n")
        faults = {
            "nothing": "module:function",
            "": "module:function",
            ":": "module:function",
            "reward_nowhere:f": "run from the folder that holds reward_nowhere.py",
            "reward_with_value:value": "not a function",
            "reward_with_value:nope": "has no nope",
            "reward_broken:f": "SyntaxError",
            "reward_that_exits:f": "SystemExit: no",
            "reward_needs:f": "nothing_of_that_name.*mend the module",
            "./reward_with_value.py:f": "such as reward_with_value:f",
        }
        for name, message in faults.items():
            with self.subTest(name=name), self.assertRaisesRegex(UsageError, message) as seen:
                make_reward(name)
            self.assertNotIn("\n", str(seen.exception))
        with self.assertRaisesRegex(UsageError, r"holds reward_nowhere.py\.$"):
            make_reward("reward_nowhere:f", kept=True)


if __name__ == "__main__":
    unittest.main()
