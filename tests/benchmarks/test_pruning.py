"""The picture of pruning: from figures of earlier calls, and from a run that is played again."""

import tempfile
import unittest
from pathlib import Path

import plot_pruning

from tests.helpers import slow
from tfdqt.errors import UsageError

from . import call, script

HEADER = ",".join(plot_pruning.COLUMNS)
ROW = "corpus,0,4,0.2,0.75,1000,900"


class TestFigures(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tmp = Path(folder.name)
        self.table = self.tmp / "table.csv"

    def draw(self, *rows):
        """The size of the picture of some rows, in pixels."""
        self.table.write_text("\n".join((HEADER, *rows)) + "\n")
        out = self.tmp / "drawn.png"
        self.assertEqual(call(plot_pruning, self.table, f"--out={out}"), f"{out}\n")
        self.assertEqual(len((self.tmp / "drawn.csv").read_text().splitlines()), 1 + len(rows))
        size = out.read_bytes()[16:24]
        return int.from_bytes(size[:4], "big"), int.from_bytes(size[4:], "big")

    def test_a_column_for_each_task(self):
        one = self.draw(ROW)
        two = self.draw(ROW, ROW.replace("corpus", "maze"))
        self.assertEqual((two[0], two[1]), (2 * one[0], one[1]))

    def test_refusals(self):
        self.table.write_text(f"{HEADER}\n{ROW}\n")
        for flags, message in (
            ((self.table, f"--out={self.tmp}/table.png"), "would be written over"),
            ((self.table, "--out=picture.jpg"), "ends in .png"),
            ((self.tmp / "nowhere",), "no config.json|There is no run"),
        ):
            with self.assertRaisesRegex(UsageError, message):
                call(plot_pruning, *flags)
        self.table.write_text("seed,sparsity\n1,2\n")
        with self.assertRaisesRegex(UsageError, "this script wrote"):
            call(plot_pruning, self.table, f"--out={self.tmp}/picture.png")

    @slow("30 s: a training")
    def test_a_run_is_played_again(self):
        """A training and a call, about half a minute."""
        run_dir = self.tmp / "maze"
        done = script(
            "scripts/run_text.py", "--task=maze", "--episodes=30", "--new-items=256", "--epochs=1",
            "--games=25", "--layers=1", "--heads=2", "--width=16", "--hidden", "16",
            "--batch-size=16", f"--run-dir={run_dir}",
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        out = self.tmp / "pruning.png"
        done = script("benchmarks/text/plot_pruning.py", run_dir, "--games=25", f"--out={out}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"sparsity 0\.(2|19).* kernel_bytes \d+  gzip_bytes \d+\n")
        self.assertGreater(out.stat().st_size, 5_000)


if __name__ == "__main__":
    unittest.main()
