"""What is compiled is traced once, as it stands."""

import unittest

from tfdqt.backend import tf, traced


class Traced(unittest.TestCase):
    def test_it_is_traced_once_with_and_without_options(self):
        calls = []

        @traced
        def twice(x):
            calls.append("twice")
            return 2 * x

        @traced(jit_compile=True)
        def thrice(x):
            calls.append("thrice")
            return 3 * x

        for _ in range(2):
            self.assertEqual(float(twice(tf.constant(4.0))), 8)
            self.assertEqual(float(thrice(tf.constant(4.0))), 12)
        self.assertEqual(calls, ["twice", "thrice"])

    def test_many_of_one_place_are_not_told_of(self):
        def make(factor):
            return traced(lambda x: factor * x)

        with self.assertNoLogs("tensorflow", "WARNING"):
            for factor in range(8):
                self.assertEqual(float(make(factor)(tf.constant(1.0))), factor)

    def test_a_branch_or_a_loop_of_python_on_a_tensor_is_refused(self):
        @traced
        def branch(x):
            return x if x > 0 else -x

        @traced
        def loop(x):
            return [2 * each for each in x]

        with self.assertRaises(TypeError):
            branch(tf.constant(1.0))
        with self.assertRaises(TypeError):
            loop(tf.constant([1.0, 2.0]))


if __name__ == "__main__":
    unittest.main()
