"""What XLA:GPU makes of the layers, compiled for GPUs that are not here; see the benchmark."""

from absl.testing import absltest, parameterized

from benchmarks import compilers
from jaxconvt import _layout, _plan
from jaxconvt._costs import cost_of
from jaxconvt._explain import call_arguments
from jaxconvt._layers import BY_NAME, LAYERS
from jaxconvt._lowerings.strided import why_no_library_call

FACES = {"value": "out", "lhs gradient": "lhs", "rhs gradient": "rhs"}
CALLS = {"out": "I", "lhs": "F", "rhs": "W"}
# XLA takes a filter gradient whose window is as large as its image for a forward convolution,
# of as many multiply-adds.
FORWARD = (("dcgan_4", "rhs"), ("istft", "rhs"))
# Whose values, channels first, are within a copy of jax.lax's.
COPIED = ("atrous", "bilinear_depthwise")


class GpuTest(parameterized.TestCase):
    @parameterized.product(
        name=[layer.name for layer in LAYERS],
        variant=(
            ("h100", "float32", False),
            ("h100", "bfloat16", False),
            ("h100", "float32", True),
        ),
    )
    def test_auto(self, name, variant):
        device, dtype, channels_first = variant
        arguments = BY_NAME[name].call(dtype, channels_first=channels_first)
        lhs, rhs, spec, _ = call_arguments(arguments.lhs, arguments.rhs, **arguments.kwargs)
        calls = _layout.calls_of(lhs, rhs, spec, lhs.dtype, "cuda")
        row = compilers.measure(device, arguments, (compilers.REFERENCE, "auto"))
        for mode, programs in row.items():
            with self.subTest(mode):
                # Of one image, channels first, jax.lax's kernel gradient needs a copy less, and
                # a convolution whose window is the image: no clock has seen which is faster.
                least = 0.7 if channels_first and mode == "rhs gradient" else 0.95
                if channels_first and name in COPIED:
                    least = 0.75
                self.assertGreaterEqual(compilers.ratio(row, mode, "auto"), least)
                if mode == "step" or channels_first:
                    continue
                call, ours = calls[FACES[mode]], programs["auto"]
                if not call.kernel_dilated:  # no multiply-add with a zero that was put in
                    self.assertLessEqual(ours["flops"], 1.1 * call.flops)
                choice = _plan.choose("auto", cost_of("cuda", "NVIDIA H100"), call, False)
                if choice.name == "strided" and not why_no_library_call(call):
                    forward = (name, call.face) in FORWARD
                    self.assertEqual(ours["calls"], "F" if forward else CALLS[call.face])
                    self.assertLessEqual(ours["kernels"], 4)

    @parameterized.parameters("dcgan_64", "hifigan_2", "vnet")
    def test_strided_is_what_it_says(self, name):
        row = compilers.measure("h100", BY_NAME[name].call(), ("strided",))
        for mode, face in FACES.items():
            self.assertEqual(row[mode]["strided"]["calls"], CALLS[face])

    def test_another_device(self):
        row = compilers.measure("a100", BY_NAME["dcgan_64"].call(), (compilers.REFERENCE, "auto"))
        self.assertEqual(row["step"]["auto"]["calls"], "FIW")


if __name__ == "__main__":
    absltest.main()
