"""Settings of text runs: every task's defaults can be, and nothing of them needs TensorFlow."""

import os
import subprocess
import sys
import unittest
from dataclasses import fields, replace

from tests.helpers import ROOT
from tfdqt.errors import UsageError
from tfdqt.text.config import (
    METHODS,
    TextConfig,
    TextNetworkConfig,
    check_text,
    check_text_network,
)
from tfdqt.text.tasks.table import TASKS, default_text_config

NOT_FINITE = (float("nan"), float("inf"), -float("inf"))
FLOATS = [field for field in fields(TextConfig) if isinstance(field.default, float)]


class TestDefaults(unittest.TestCase):
    def test_every_method_has_defaults_that_can_be_on_every_task(self):
        for task in TASKS:
            for method in METHODS:
                _, network, text = default_text_config(task, method)
                check_text_network(network)
                check_text(text)
                self.assertEqual(text.method, method)
            own = default_text_config(task)[2].method
            self.assertEqual(default_text_config(task, own), default_text_config(task))
        self.assertIsNone(default_text_config("wordle", "clone")[2].beta)
        beta = default_text_config("corpus")[2].beta
        for method in ("q", "montecarlo"):
            self.assertEqual(default_text_config("corpus", method)[2].beta, beta)


class TestChecks(unittest.TestCase):
    def test_settings_that_can_not_be(self):
        faults = (
            (dict(updates_per_batch=0), "--updates-per-batch"),
            (dict(batch_size=0), "--batch-size"),
            (dict(learning_rate=0.0), "--learning-rate"),
            (dict(final_learning_rate=-1.0), "--final-learning-rate"),
            (dict(learning_rate=float("nan")), "--learning-rate"),
            (dict(temperature=0.0), "--temperature"),
            (dict(gamma=1.5), "--gamma"),
            (dict(keep_best=2.0), "--keep-best"),
            (dict(conservative=-1.0), "--conservative"),
            (dict(method="implicit", advantage_learning=0.5), "--method=q"),
            (dict(plausible=0.5), "--cloning"),
            (dict(plausible=0.5, cloning=1.0, advantage_learning=0.5), "leave out one"),
            (dict(advantage_weighting=1.0), "--method=implicit"),
            (dict(beta=1.0), "--cloning"),
            (dict(beta=float("nan"), cloning=1.0), "--beta"),
            (dict(beta=float("inf"), cloning=1.0), "--beta"),
            (dict(beta=-1.0, cloning=1.0), "--beta"),
            *((dict([(field.name, value)]), "--") for field in FLOATS for value in NOT_FINITE),
        )
        for fault, flag in faults:
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag) as caught:
                check_text(TextConfig(**fault))
            self.assertNotIn("\n", str(caught.exception))

    def test_networks_that_can_not_be_built(self):
        faults = (
            (dict(layers=0), "--layers"),
            (dict(width=30), "--width"),
            (dict(pruning_amount=1.0), "--pruning-amount"),
            (dict(pruning_end=0), "--pruning-end"),
            (dict(pruning_amount=float("nan")), "--pruning-amount"),
            (dict(hidden=(16, 0)), "--hidden"),
        )
        for fault, flag in faults:
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag):
                check_text_network(TextNetworkConfig(**fault))
        # A pretrained encoder has a width of its own.
        check_text_network(replace(TextNetworkConfig(), encoder="somewhere", width=30))


class TestImports(unittest.TestCase):
    def python(self, *words):
        environment = {
            key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"
        }
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    def test_settings_and_help_load_no_tensorflow(self):
        code = (
            "import sys, tfdqt.text, tfdqt.text.config, tfdqt.text.tasks.table\n"
            "sys.argv = ['run_text.py', '--help']\n"
            "try:\n"
            "    import tfdqt.text.run\n"
            "    tfdqt.text.run.main()\n"
            "except SystemExit: pass\n"
            "heavy = {'tensorflow', 'keras', 'tf_keras', 'tf_agents', 'transformers', 'ray'}\n"
            "print(sorted(heavy & set(sys.modules)))\n"
        )
        done = self.python("-c", code)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("--pruning-amount", done.stdout)
        self.assertEqual(done.stdout.splitlines()[-1], "[]")

    def test_the_names_of_the_package_are_functions_and_classes(self):
        import tfdqt.text

        for name in tfdqt.text.__all__:
            self.assertTrue(callable(getattr(tfdqt.text, name)), name)
            self.assertTrue(callable(getattr(tfdqt.text, name)), name)  # its module is loaded now
            self.assertIn(name, dir(tfdqt.text))
        with self.assertRaises(AttributeError):
            tfdqt.text.nothing  # noqa: B018


if __name__ == "__main__":
    unittest.main()
