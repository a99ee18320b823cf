"""The ten positional parameters are jax.lax's, so that one import can replace the other."""

import inspect
import typing

from absl.testing import absltest, parameterized
from jax import lax

import jaxconvt

OURS = inspect.signature(jaxconvt.conv_transpose).parameters
LAX = inspect.signature(lax.conv_transpose).parameters
SHARED = (
    "lhs rhs strides padding rhs_dilation dimension_numbers transpose_kernel precision "
    "preferred_element_type use_consistent_padding"
).split()


class SignatureTest(parameterized.TestCase):
    def test_positional_parameters_in_order(self):
        positional = [p.name for p in OURS.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.assertEqual(positional, SHARED)

    def test_jax_lax_has_no_other(self):
        # A new upstream parameter belongs in our signature too. JAX before 0.9 lacks the last.
        self.assertIn(list(LAX), (SHARED, SHARED[:-1]))

    @parameterized.parameters(*LAX)
    def test_default_and_kind(self, name):
        self.assertEqual(OURS[name].default, LAX[name].default)
        self.assertEqual(OURS[name].kind, LAX[name].kind)

    def test_defaults_beyond_jax_lax(self):
        beyond = {p.name: p.default for p in OURS.values() if p.kind is p.KEYWORD_ONLY}
        self.assertEqual(
            beyond,
            {
                "feature_group_count": 1,
                "output_padding": None,
                "output_shape": None,
                "out_sharding": None,
                "implementation": "dilated",
            },
        )
        self.assertIs(OURS["use_consistent_padding"].default, False)

    def test_public_names(self):
        self.assertContainsSubset({"IMPLEMENTATIONS", "conv_transpose"}, jaxconvt.__all__)
        for name in jaxconvt.__all__:
            self.assertTrue(hasattr(jaxconvt, name), name)
        self.assertEqual(jaxconvt.IMPLEMENTATIONS[0], "dilated")
        self.assertRegex(jaxconvt.__version__, r"^\d+\.\d+\.\d+")

    def test_typed_and_documented(self):
        self.assertEqual(set(typing.get_type_hints(jaxconvt.conv_transpose)), {*OURS, "return"})
        for name in OURS:
            self.assertRegex(jaxconvt.conv_transpose.__doc__, rf"\n +{name}: ")


if __name__ == "__main__":
    absltest.main()
