"""How much memory there is: of files as Linux writes them."""

import os
import unittest
from unittest import mock

import numpy as np

from tests.helpers import InFolder
from tfdqt import memory
from tfdqt.errors import UsageError

GB = 10**9


class TestAvailable(InFolder):
    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(memory, "PROC", self.tmp / "proc"))
        self.enterContext(mock.patch.object(memory, "CGROUP", self.tmp / "cgroup"))
        self.write("proc/meminfo", "MemTotal: 24000000 kB\nMemAvailable: 8000000 kB\n")

    def write(self, name, text):
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))

    def test_of_a_machine(self):
        self.assertEqual(memory.available(), 8_000_000 * 1024)

    def test_where_nothing_tells(self):
        (self.tmp / "proc" / "meminfo").unlink()
        self.assertIsNone(memory.available())
        self.assertEqual(memory.resident(), 0)
        memory.check_fits(10**18, "a whale takes", str)

    def test_of_a_container_and_those_it_lies_in(self):
        self.write("proc/self/cgroup", "0::/outer/inner\n")
        self.write("cgroup/outer/inner/memory.max", "max\n")
        self.write("cgroup/outer/inner/memory.current", 1 * GB)
        self.assertEqual(memory.available(), 8_000_000 * 1024)
        self.write("cgroup/outer/memory.max", 4 * GB)
        self.write("cgroup/outer/memory.current", 3 * GB)
        self.assertEqual(memory.available(), 1 * GB)
        self.write("cgroup/outer/memory.stat", f"anon 5\ninactive_file {GB // 2}\n")
        self.assertEqual(memory.available(), 3 * GB // 2)
        self.write("cgroup/outer/inner/memory.max", GB + 100)
        self.assertEqual(memory.available(), 100)

    def test_of_a_container_of_the_first_version(self):
        self.write("proc/self/cgroup", "9:cpu:/x\n4:memory:/docker/y\n0::/\n")
        self.write("cgroup/memory/memory.limit_in_bytes", 2 * GB)  # the container's own root
        self.write("cgroup/memory/memory.usage_in_bytes", GB)
        self.write("cgroup/memory/memory.stat", f"total_inactive_file {GB // 4}\n")
        self.assertEqual(memory.available(), 5 * GB // 4)

    def test_never_less_than_nothing(self):
        self.write("proc/self/cgroup", "0::/\n")
        self.write("cgroup/memory.max", GB)
        self.write("cgroup/memory.current", 2 * GB)
        self.assertEqual(memory.available(), 0)


class TestUsed(unittest.TestCase):
    @unittest.skipUnless(os.path.exists("/proc/self/statm"), "Linux tells it in files")
    def test_it_grows_with_what_is_held(self):
        before = memory.resident()
        held = np.ones(50 * 10**6, np.uint8)
        self.assertAlmostEqual(memory.resident() - before, len(held), delta=5 * 10**6)

    def test_what_does_not_fit_is_refused(self):
        def advice(room):
            return f"take {memory.round_down(room // 3)} fish."

        with mock.patch.object(memory, "available", return_value=3_700):
            memory.check_fits(3_700, "A whale takes", advice)
        with mock.patch.object(memory, "available", return_value=3_700_000_000):
            message = "A whale takes 4.0 GB of memory, but 3.7 GB are available; take 1200000000 f"
            with self.assertRaisesRegex(UsageError, message):
                memory.check_fits(4 * GB, "A whale takes", advice)

    def test_words(self):
        self.assertEqual(memory.in_words(24e9), "24.0 GB")
        self.assertEqual(memory.in_words(60e6), "60 MB")
        self.assertEqual([memory.round_down(n) for n in (0, 7, 99, 123_456)], [0, 7, 99, 120_000])


if __name__ == "__main__":
    unittest.main()
