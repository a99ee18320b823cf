"""Haiku's own tests of its transposed convolutions, with ours in the place of jax.lax's."""

import unittest

from absl.testing import absltest, parameterized
from haiku._src import conv_test

from tests.interop.compare import INSTALLED, installed

# Fewer would mean that they are not found where they were.
AT_LEAST = 50


def theirs():
    """Those about transposed convolutions: by their class, their name or their argument."""

    def walk(suite):
        for test in suite:
            if isinstance(test, unittest.TestSuite):
                yield from walk(test)
            else:
                yield test

    suite = unittest.defaultTestLoader.loadTestsFromModule(conv_test)
    return [test for test in walk(suite) if "Transpose" in test.id()]


class HaikuTest(parameterized.TestCase):
    @parameterized.parameters(*INSTALLED)
    def test_their_tests(self, implementation):
        chosen = theirs()
        self.assertGreaterEqual(len(chosen), AT_LEAST)

        result = unittest.TestResult()
        with installed(implementation) as calls:
            for test in chosen:
                before = len(calls)
                test.run(result)
                if self.convolves(test):
                    self.assertGreater(len(calls), before, test.id())
        wrong = [f"{test.id()}\n{trace}" for test, trace in (*result.failures, *result.errors)]
        self.assertEqual(wrong, [])
        self.assertEqual(result.skipped, [])
        self.assertEqual(result.testsRun, len(chosen))

    def convolves(self, test):
        """Whether a test gets as far as a convolution: those of errors and of sizes don't."""
        return not any(
            name in test.id()
            for name in ("IncorrectN", "test_invalid_input", "test_compute_adjusted_padding")
        )


if __name__ == "__main__":
    absltest.main()
