"""What XLA:TPU makes of the layers, compiled for TPUs that are not here; see the benchmark."""

from absl.testing import absltest, parameterized

from benchmarks import compilers
from jaxconvt import explain
from jaxconvt._layers import BY_NAME, LAYERS


class TpuTest(parameterized.TestCase):
    @parameterized.named_parameters((layer.name, layer.name) for layer in LAYERS)
    def test_auto_takes_no_more_cycles(self, name):
        call = BY_NAME[name].call("bfloat16")
        choices = explain(call.lhs, call.rhs, platform="tpu", **call.kwargs).choices
        row = compilers.measure("v5e", call, (compilers.REFERENCE, "auto"))
        for mode in compilers.MODES:
            with self.subTest(mode):
                self.assertGreaterEqual(compilers.ratio(row, mode, "auto"), 0.9)
                if mode in choices and choices[mode].name == "dilated":
                    programs = row[mode]
                    more = "feature_group_count" in call.kwargs  # a reshape, to groups and back
                    theirs, ours = (programs[name]["kernels"] for name in ("jax.lax", "auto"))
                    self.assertBetween(ours, theirs, theirs + more)

    def test_zeros_are_not_multiplied_where_they_are_most(self):
        # One output channel and a stride of 128: nearly all that XLA multiplies is zeros.
        row = compilers.measure("v5e", BY_NAME["istft"].call("bfloat16"), ("jax.lax", "auto"))
        self.assertGreater(compilers.ratio(row, "value", "auto"), 100)


if __name__ == "__main__":
    absltest.main()
