"""What XLA:GPU makes of the layers, compiled for GPUs that are not here; see the benchmark."""

from unittest import mock

import jax
from absl.testing import absltest, parameterized

from benchmarks import compilers, division
from jaxconvt import _plan, _spec
from jaxconvt._costs import cost_of
from jaxconvt._explain import call_arguments
from jaxconvt._layers import BY_NAME, LAYERS, Layer, LayerCall
from jaxconvt._problem import FACES
from jaxconvt._xla import why_no_library_call
from tests import util

CONVOLUTIONS = ("dilated", "strided", "polyphase")
CALLS = {"value": "I", "input_grad": "F", "kernel_grad": "W"}
# XLA takes a filter gradient whose window is as large as its image for a forward convolution,
# of as many multiply-adds.
FORWARD = (("dcgan_4", "kernel_grad"), ("istft", "kernel_grad"))


def example(ci, co, flip, channels_first):
    """Return a layer of which XLA:GPU moves the kernel's reverse if one side has one channel."""
    lhs, rhs = (4, 40, 200, ci), (3, 32, co, ci) if flip else (3, 32, ci, co)
    kwargs = {
        "strides": (1, 16),
        "padding": [(1, 1), (8, 8)],
        "transpose_kernel": flip,
        "use_consistent_padding": True,
    }
    if channels_first:
        lhs, rhs = (4, ci, 40, 200), (ci, co, 3, 32) if flip else (co, ci, 3, 32)
        kwargs["dimension_numbers"] = ("NCHW", "OIHW", "NCHW")
    return LayerCall(*[jax.ShapeDtypeStruct(shape, "float32") for shape in (lhs, rhs)], kwargs)


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
        calls = _spec.problems_of(lhs, rhs, spec, lhs.dtype, "cuda")
        row = compilers.measure(device, arguments, (compilers.REFERENCE, "auto"))
        cost = cost_of("cuda", "NVIDIA H100")
        configs = {face: _plan.choose("auto", cost, calls[face], False) for face in FACES}
        for mode, programs in row.items():
            with self.subTest(mode):
                ours = programs["auto"]
                convolved = [
                    configs[m].name in CONVOLUTIONS for m in configs if mode in (m, "step")
                ]
                # The roofline knows nothing of how slow cuDNN is where channels are few, with
                # groups, and in 3-D. So it is not asked where others are picked.
                if all(convolved):
                    # Of one image, channels first, jax.lax's kernel gradient needs a copy less. A
                    # clock says that it takes 5 to 40 times as long, as its window is the image.
                    least = 0.7 if channels_first and mode == "kernel_grad" else 0.95
                    self.assertGreaterEqual(compilers.ratio(row, mode, "auto"), least)
                if mode == "step" or channels_first:
                    continue
                call, config = calls[mode], configs[mode]
                if not call.kernel_dilated:  # no multiply-add with a zero that was put in
                    self.assertLessEqual(ours["flops"], 1.1 * call.flops)
                if config.name == "strided" and not why_no_library_call(call):
                    forward = (name, call.face) in FORWARD
                    self.assertEqual(ours["calls"], "F" if forward else CALLS[call.face])
                    self.assertLessEqual(ours["kernels"], 4)
                if config.name == "col2im":
                    self.assertEqual(set(ours["calls"]), {"G"})
                if config.name == "depthwise":  # one sum; a kernel gradient has one for each term
                    self.assertEqual(ours["calls"], "")
                    self.assertTrue(call.face == "kernel_grad" or ours["kernels"] <= 3)

    @parameterized.parameters("dcgan_64", "hifigan_2", "vnet")
    def test_strided_is_what_it_says(self, name):
        row = compilers.measure("h100", BY_NAME[name].call(), ("strided",))
        for face in FACES:
            self.assertEqual(row[face]["strided"]["calls"], CALLS[face])

    @parameterized.product(
        channels_first=(False, True), flip=(False, True), channels=((1, 1), (1, 2), (3, 1), (8, 3))
    )
    def test_layouts(self, channels_first, flip, channels):
        """Left to XLA, a program is jax.lax's to the letter; "strided" is a call of cuDNN's."""
        ci, co = channels
        call = example(ci, co, flip, channels_first)
        for name in ("dilated", "strided"):
            with mock.patch.object(_plan, "choose", util.forced(name)):
                row = compilers.measure("h100", call, (compilers.REFERENCE, "auto"))
            for mode in FACES:
                programs = row[mode]
                if name == "dilated":
                    self.assertEqual(programs["auto"], programs[compilers.REFERENCE])
                else:
                    self.assertEqual(programs["auto"]["calls"], CALLS[mode])

    @parameterized.product(channels_first=(False, True))
    def test_axis_of_one_tap_costs_no_copy(self, channels_first):
        """XLA gives the library channels first in 3-D, and last in 2-D, and transposes for that."""
        layer = Layer("frames", (2, 8, 32, 32, 64), 32, (1, 4, 4), (1, 2, 2), "SAME", "")
        arguments = layer.call(channels_first=channels_first)
        lhs, rhs, spec, _ = call_arguments(arguments.lhs, arguments.rhs, **arguments.kwargs)
        calls = _spec.problems_of(lhs, rhs, spec, lhs.dtype, "cuda")
        row = compilers.measure("h100", arguments, ("strided",))
        for face in FACES:
            ours = row[face]["strided"]
            self.assertEqual(ours["calls"], CALLS[face])
            self.assertLessEqual(ours["bytes"], 1.1 * calls[face].bytes)

    @parameterized.parameters("unet_up", "sam_decoder", "unet3d_up")
    def test_kernel_as_large_as_the_stride_is_one_product(self, name):
        """It takes one copy of the image, and one of the kernel, which is reversed."""
        with mock.patch.object(_plan, "choose", util.forced("col2im")):
            row = compilers.measure("h100", BY_NAME[name].call(batch=8), ("auto",))
        for mode, kernels in {"value": 3, "input_grad": 3, "kernel_grad": 4}.items():
            ours = row[mode]["auto"]
            self.assertEqual(ours["calls"], "G")
            self.assertLessEqual(ours["kernels"], kernels)

    @parameterized.product(flip=(False, True), stride=(1, 2))
    def test_one_pixel_is_a_product(self, flip, stride):
        channels = (512, 100) if flip else (100, 512)
        lhs, rhs = (
            jax.ShapeDtypeStruct(shape, "float32") for shape in ((16, 1, 1, 100), (4, 4, *channels))
        )
        kwargs = {"strides": (stride,) * 2, "padding": "VALID", "transpose_kernel": flip}
        row = compilers.measure("h100", LayerCall(lhs, rhs, kwargs), (compilers.REFERENCE, "auto"))
        self.assertEqual(row["value"]["auto"]["calls"], "G")
        self.assertEqual(row["kernel_grad"]["auto"]["calls"], "G")
        for mode in row:
            self.assertGreaterEqual(compilers.ratio(row, mode, "auto"), 1.0)

    def test_a_kernel_as_large_as_the_stride(self):
        lhs, rhs = (
            jax.ShapeDtypeStruct(shape, "float32")
            for shape in ((1, 4, 7, 7, 384), (2, 16, 16, 384, 3))
        )
        call = LayerCall(lhs, rhs, {"strides": (2, 16, 16), "padding": "VALID"})
        row = compilers.measure("h100", call, (compilers.REFERENCE, "auto"))
        for mode in FACES:  # a clock says that cuDNN transposes in 3-D for most of the time
            self.assertEqual(row[mode]["auto"]["calls"], "G")
            self.assertLessEqual(row[mode]["auto"]["kernels"], 4)

    @parameterized.parameters(*division.DIVISIONS)
    def test_divided_among_devices(self, name):
        """Each device has cuDNN's own calls; no more is exchanged than by jax.lax, in any way."""
        over = division.mesh("h100")
        texts = [division.program(how, name, over) for how in ("auto", "dilated")]
        ours, reference = map(division.exchanged, texts)
        self.assertNotEmpty(reference)
        for kind in ours:
            for of_ours, of_reference in zip(ours[kind], reference.get(kind, (0, 0)), strict=True):
                self.assertLessEqual(of_ours, of_reference, kind)
        calls = set(compilers.Counter(texts[0], "NVIDIA H100").program().calls)
        # Of so few channels out, on one device, the value is a product.
        self.assertLessEqual(calls, set("FGIW" if "channels out" in name else "FIW"))
        self.assertIn("W", calls)

    def test_another_device(self):
        row = compilers.measure("a100", BY_NAME["dcgan_64"].call(), (compilers.REFERENCE, "auto"))
        self.assertEqual(row["step"]["auto"]["calls"], "FIW")


if __name__ == "__main__":
    absltest.main()
