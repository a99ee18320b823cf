"""What "auto" decides, for whom, and how it says so."""

import dataclasses
import functools
import pathlib
import re
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import export

import jaxconvt
from jaxconvt import _arguments, _explain, _geometry, _plan, _problem, _spec, explain
from jaxconvt._chunks import CHUNK
from jaxconvt._costs import PLATFORMS, cost_of, cpu
from jaxconvt._layers import BY_NAME, LAYERS
from jaxconvt._lowerings import LOWERINGS, XLAS
from jaxconvt._problem import Config
from tests import oracle, util
from tests.cases import case

TABLES = {"jaxlib 0.5": cpu.CPU, "jaxlib 0.11": cpu.CPU_0_11}


def explained(name, platform="cpu", **kwargs):
    call = BY_NAME[name].call()
    return explain(call.lhs, call.rhs, platform=platform, **(call.kwargs | kwargs))


def decided(name, face, platform, both_gradients=False):
    """Return the `Problem` of one face of a layer, and what auto picks for it."""
    arguments = BY_NAME[name].call()
    lhs, rhs, spec, _ = _explain.call_arguments(arguments.lhs, arguments.rhs, **arguments.kwargs)
    call = _spec.problems_of(lhs, rhs, spec, lhs.dtype, platform)[face]
    return call, _plan.choose("auto", cost_of(platform), call, both_gradients)


def cpu_as_of(version):
    """CPU's table as it is from a version on."""
    return mock.patch.object(cpu, "INSTALLED", TABLES[version])


def described(face, axes, n=1, g=1, i=1, j=1):
    return _problem.problem_of(
        face,
        axes,
        _problem.Sizes(n, g, i, j),
        ("float32",) * 3,
        forward_kernel=False,
        dimension_numbers=_arguments.layout(None, len(axes) + 2),
        single_device=True,
        platform="cpu",
    )


def temp(call, config):
    return _plan.work(call, config).temp_bytes


def modules(call, platforms, implementation="auto"):
    """StableHLO of the value, and of both gradients, lowered for `platforms`."""

    def value(lhs, rhs):
        return jaxconvt.conv_transpose(lhs, rhs, implementation=implementation, **call.kwargs)

    def gradients(lhs, rhs, ct):
        return jax.vjp(value, lhs, rhs)[1](ct)

    out = jax.eval_shape(value, call.lhs, call.rhs)
    return [
        export.export(jax.jit(f), platforms=platforms)(*args).mlir_module()
        for f, args in (
            (value, (call.lhs, call.rhs)),
            (gradients, (call.lhs, call.rhs, jax.ShapeDtypeStruct(out.shape, out.dtype))),
        )
    ]


def lhs_dilations(module):
    """Return what the convolutions of a module are dilated by, where any is."""
    found = re.findall(r"lhs_dilat(?:e|ion) = (?:\[|array<i64: )([\d, ]+)", module)
    return [d for d in found if set(d) - set("1, ")]


class Decisions(parameterized.TestCase):
    def test_cpus_table_is_the_installed_ones(self):
        newer = util.HAS["the convolutions of jaxlib 0.11"]
        rates = TABLES["jaxlib 0.11" if newer else "jaxlib 0.5"].rates
        self.assertIn(cost_of("cpu").rates, (rates, dataclasses.replace(rates, bfloat16=1.0)))

    @parameterized.parameters(
        ("flags : fpu avx512f avx512_bf16 avx512_vbmi2", True),
        ("flags : fpu avx512f amx_bf16 amx_tile", True),
        ("flags : fpu avx2 avx512f", False),
        (None, False),
    )
    def test_bfloat16_is_fast_where_the_cpu_has_units_for_it(self, text, fast):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "cpuinfo"
            if text:
                path.write_text(text)
            rates = cpu.installed(path).rates
        self.assertEqual(rates.bfloat16 < 1, fast)

    @parameterized.product(
        name=[layer.name for layer in LAYERS if layer.name != "stride1"], version=tuple(TABLES)
    )
    def test_cpu_kernel_gradient_is_never_xlas(self, name, version):
        # XLA's has a window as large as the image, and a dilated lhs.
        with cpu_as_of(version):
            self.assertNotEqual(explained(name).configs["kernel_grad"].name, "dilated")

    @parameterized.product(
        name=("unet3d_up", "vnet", "gan3d", "jax_31662", "bilinear_depthwise"),
        version=tuple(TABLES),
    )
    def test_cpu_value_where_xla_loops(self, name, version):
        with cpu_as_of(version):
            self.assertNotIn(explained(name).configs["value"].name, ("dilated", "strided"))

    @parameterized.product(dtype=("float32", "bfloat16"))
    def test_cpu_stride_one_is_xlas(self, dtype):
        # A gain of a few percent on a quiet machine is a loss of half on a shared one.
        call = BY_NAME["stride1"].call(dtype)
        rates = dataclasses.replace(cpu.CPU_0_11.rates, bfloat16=1.0)
        with mock.patch.object(cpu, "INSTALLED", cpu.Cpu(rates, "", False)):
            configs = explain(call.lhs, call.rhs, platform="cpu", **call.kwargs).configs
        self.assertEqual(set(configs.values()), {Config("dilated")})

    @parameterized.product(version=tuple(TABLES))
    def test_cpu_stride_one_is_not_rearranged_for_nothing(self, version):
        # "polyphase" is then the plain convolution that "dilated" is, and the same cost.
        with cpu_as_of(version):
            self.assertNotEqual(explained("stride1").configs["value"].name, "polyphase")

    @parameterized.product(version=tuple(TABLES))
    def test_cpu_few_channels_and_many_taps_are_gathered(self, version):
        # Y and U, of 256 taps, would be many times the operands.
        with cpu_as_of(version):
            value, lhs, rhs = explained("fcn8s").configs.values()
        gathered, polyphase = Config("col2im", 2), Config("polyphase")
        self.assertIn(value, (gathered, polyphase))
        self.assertIn(lhs, (gathered, polyphase, Config("dilated")))
        self.assertEqual(rhs, gathered)

    @parameterized.product(
        name=[layer.name for layer in LAYERS], face=_problem.FACES, platform=("cpu", "cuda", "tpu")
    )
    def test_xlas_own_stays_unless_another_is_clearly_faster(self, name, face, platform):
        call, config = decided(name, face, platform)
        cost = cost_of(platform)
        seconds = {c: e.seconds for c, e in _plan.estimates(call, cost).items() if e.fits}
        others = [time for other, time in seconds.items() if other.name != "dilated"]
        stays = cost.margin * min(others) >= seconds[Config("dilated")]
        self.assertEqual(config.name == "dilated", stays)

    @parameterized.product(face=_problem.FACES, platform=("cpu", "cuda", "rocm", "tpu"))
    def test_subpixel_is_considered_where_it_was_looked_at(self, face, platform):
        call, _ = decided("resnet_decoder", face, platform)
        considered = Config("subpixel") in _plan.estimates(call, cost_of(platform))
        self.assertEqual(considered, platform == "tpu")
        # Who asks for it, or has measured it, gets it.
        self.assertEqual(_plan.candidates(call, "subpixel"), [Config("subpixel")])
        self.assertTrue(_plan.can_make(call, Config("subpixel"), cost_of(platform)))

    @parameterized.product(name=("stride1", "resnet_decoder"), version=tuple(TABLES))
    def test_cpu_input_grad_is_xlas_where_its_convolutions_make_no_windows(self, name, version):
        with cpu_as_of(version):
            _, config = decided(name, "input_grad", "cpu")
        self.assertEqual(config.name, "dilated" if version == "jaxlib 0.11" else "col2im")

    @parameterized.product(
        call=(
            ("value", (16, 8, 128), (9, 128, 100), (2,), "VALID"),
            ("value", (4, 16, 256), (25, 256, 64), (4,), "SAME"),
            ("input_grad", (8, 7, 7, 64), (8, 8, 64, 64), (1, 1), "SAME"),
        ),
        version=tuple(TABLES),
    )
    def test_cpu_kernels_larger_than_images_are_products(self, call, version):
        # XLA exchanges the operands, and has no fast convolution then.
        face, *shapes, strides, padding = call
        structs = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
        with cpu_as_of(version):
            configs = explain(*structs, strides, padding, platform="cpu").configs
        self.assertEqual(configs[face].name, "col2im")

    @parameterized.parameters(
        ("cpu", "col2im", 1, 6), ("cpu", "strided", 2, 2), ("cpu", "dilated", 2, 2),
        ("cuda", "strided", 1, 6), ("tpu", "subpixel", 1, 6),
    )  # fmt: skip
    def test_axis_of_one_tap_is_in_the_batch(self, platform, name, axes, n):
        of = (_geometry.Axis(3, 1, 1, 2, 0, 0), _geometry.Axis(5, 4, 2, 1, 2, 2))
        how = {"n": 2, "g": 1, "i": 8, "j": 4}
        made = _plan.folded_for(
            LOWERINGS[name], described("value", of, **how)._replace(platform=platform)
        )
        self.assertEqual((len(made.axes), made.batch, made.axes[-1]), (axes, n, of[1]))
        self.assertLen(made.dimension_numbers.lhs_spec, axes + 2)
        divided = described("value", of, **how)._replace(platform=platform, single_device=False)
        self.assertEqual(_plan.folded_for(LOWERINGS[name], divided), divided)

    def test_gpu_value_of_a_flipped_kernel_is_cudnns(self):
        # As it is, whichever of the two makes it.
        lhs = jax.ShapeDtypeStruct((8, 64, 64, 256), "float32")
        rhs = jax.ShapeDtypeStruct((4, 4, 256, 256), "float32")
        for flip, becomes in ((False, "over zeros"), (True, "backward-input")):
            explanation = explain(lhs, rhs, (2, 2), "SAME", transpose_kernel=flip, platform="cuda")
            self.assertIn(becomes, explanation.estimates["value"][Config("dilated")].compiled_as)
            self.assertIn(
                "backward-input", explanation.estimates["value"][Config("strided")].compiled_as
            )

    @parameterized.product(
        name=[layer.name for layer in LAYERS],
        face=_problem.FACES,
        platform=("cpu", "cuda"),
        both=(False, True),
    )
    def test_memory_is_bounded(self, name, face, platform, both):
        call, config = decided(name, face, platform, both)
        self.assertLessEqual(temp(call, config), max(4 * call.bytes, _plan.SMALL))

    def test_memory_decides_where_time_would_not(self):
        # Patches and Y of nine taps each are more than four times lhs and output together.
        axes = (_geometry.Axis(128, 9, 2, 1, 4, 4),) * 2
        at = described("value", axes, n=1, g=1, i=64, j=64)  # one image is in no chunks
        times = {c: estimate.seconds for c, estimate in _plan.estimates(at, cpu.CPU).items()}
        fastest = min(times, key=times.get)
        self.assertGreater(temp(at, fastest), 4 * at.bytes)
        self.assertFalse(_plan.estimates(at, cpu.CPU)[fastest].fits)
        config = _plan.choose("auto", cpu.CPU, at, False)
        self.assertLess(temp(at, config), 4 * at.bytes)

    def test_memory_does_not_cost_most_of_the_speed(self):
        # Y is a little over the limit; XLA's own takes more than twice as long.
        axes = (_geometry.Axis(128, 5, 1, 1, 2, 2),) * 2
        at = described("value", axes, n=1, g=1, i=16, j=64)
        config = _plan.choose("auto", cpu.CPU, at, False)
        self.assertEqual(config.name, "col2im")
        self.assertGreater(temp(at, config), 4 * at.bytes)

    @parameterized.named_parameters((layer.name, layer.name) for layer in LAYERS)
    def test_half_precision_is_decided_as_it_is_computed(self, name):
        # On CPU, in float32: what is picked is as good, if it needs a little more memory.
        call = BY_NAME[name].call("float16")
        half, single = explain(call.lhs, call.rhs, platform="cpu", **call.kwargs), explained(name)
        for title, estimates in single.estimates.items():
            seconds = {config: estimate.seconds for config, estimate in estimates.items()}
            form = half.configs[title]._replace(chunks=1)
            picked = [s for config, s in seconds.items() if config._replace(chunks=1) == form]
            self.assertLessEqual(min(picked), 1.3 * seconds[single.configs[title]])

    @parameterized.product(version=tuple(TABLES))
    def test_cpu_bfloat16_is_products_of_matrices(self, version):
        # Some CPUs have units for these, and XLA uses them for no convolution.
        call = BY_NAME["hifigan_2"].call("bfloat16")
        with cpu_as_of(version):
            configs = explain(call.lhs, call.rhs, platform="cpu", **call.kwargs).configs
        self.assertEqual([config.name for config in configs.values()], ["col2im"] * 3)

    @parameterized.product(
        name=[layer.name for layer in LAYERS],
        version=tuple(TABLES),
        dtype=("int8", "int32", "bool", "uint32"),
    )
    def test_cpu_integers_are_products_of_matrices(self, name, version, dtype):
        # XLA's convolutions of integers are loops.
        call = BY_NAME[name].call(dtype)
        with cpu_as_of(version):
            configs = explain(call.lhs, call.rhs, platform="cpu", **call.kwargs).configs
        self.assertIn(configs["value"].name, ("col2im", "depthwise"))

    @parameterized.product(name=("hifigan_1", "hifigan_2", "encodec", "istft", "vnet"))
    def test_cpu_wide_floats_are_convolved_in_two_dimensions_alone(self, name):
        with util.x64():
            call = BY_NAME[name].call("float64")
            configs = explain(call.lhs, call.rhs, platform="cpu", **call.kwargs).configs
        self.assertEqual({config.name for config in configs.values()}, {"col2im"})

    def test_complex_numbers_are_planned_as_their_parts(self):
        call = BY_NAME["unet_up"].call("complex64")
        configs = explain(call.lhs, call.rhs, platform="cpu", **call.kwargs).configs
        self.assertEqual(configs, explained("unet_up").configs)
        f = functools.partial(jaxconvt.conv_transpose, **call.kwargs, implementation="col2im")
        text = jax.jit(f).lower(call.lhs, call.rhs).as_text()
        products = re.findall(r"dot_general .*", text)
        self.assertLen(products, 3)
        self.assertNotIn("complex", "".join(products))

    @parameterized.product(
        name=[layer.name for layer in LAYERS],
        channels_first=(False, True),
        platform=("cpu", "cuda"),
    )
    def test_no_pick_is_slower_and_larger_than_another(self, name, channels_first, platform):
        call = BY_NAME[name].call(channels_first=channels_first, batch=8)
        explanation = explain(call.lhs, call.rhs, platform=platform, **call.kwargs)
        pick, estimates = explanation.configs["value"], explanation.estimates["value"]
        if pick != XLAS:  # which is preferred
            own = estimates[pick]
            better = [
                str(config)
                for config, e in estimates.items()
                if e.fits and e.seconds <= own.seconds and e.temp_bytes < own.temp_bytes
            ]
            self.assertEmpty(better, pick)

    @parameterized.product(name=[layer.name for layer in LAYERS], platform=("cpu", "cuda"))
    def test_gradients_taken_together_cost_no_more(self, name, platform):
        def seconds(both):
            calls, picks = zip(
                *[decided(name, face, platform, both) for face in ("input_grad", "kernel_grad")],
                strict=True,
            )
            return _plan.pair_estimates(calls, cost_of(platform))[tuple(picks)].seconds

        self.assertLessEqual(seconds(True), seconds(False) * cost_of(platform).rel_tolerance)

    @parameterized.product(version=tuple(TABLES))
    def test_gradients_share_where_alone_they_would_differ(self, version):
        def picks(both):
            return {
                decided("dcgan_4", face, "cpu", both)[1] for face in ("input_grad", "kernel_grad")
            }

        with cpu_as_of(version):
            self.assertLen(picks(False), 2)
            self.assertLen(picks(True), 1)

    @parameterized.parameters((0, [False]), (1, [False]), ((0, 1), [True, True]))
    def test_primitive_knows_which_gradients_are_taken(self, argnums, want):
        call = BY_NAME["dcgan_rgb"].call()
        f = functools.partial(jaxconvt.conv_transpose, implementation="auto", **call.kwargs)
        loss = jax.grad(lambda *args: jnp.sum(f(*args) ** 2), argnums)
        found = [
            eqn.params["both_gradients"]
            for eqn in jax.make_jaxpr(loss)(call.lhs, call.rhs).eqns
            if eqn.primitive.name == "conv_transpose" and eqn.params["face"] != "value"
        ]
        self.assertEqual(found, want)


class Chunks(parameterized.TestCase):
    """Of the batch, one after the other, where intermediates of all of it are large."""

    @parameterized.parameters(*_problem.FACES)
    def test_as_many_as_bring_intermediates_down(self, face):
        axes = (_geometry.Axis(16, 4, 2, 1, 2, 2),) * 2
        for n in (1, 7, 64, 96):
            at = described(face, axes, n=n, g=1, i=256, j=128)
            for config in _plan.candidates(at):
                self.assertEqual(n % config.chunks, 0)
                if config.chunks > 1:
                    whole, size = (
                        temp(at, config._replace(chunks=chunks)) for chunks in (1, config.chunks)
                    )
                    self.assertGreater(whole - at.rhs_bytes, CHUNK)
                    # A loop copies the part of lhs, too.
                    most = CHUNK + at.lhs_bytes // config.chunks
                    self.assertTrue(size - at.rhs_bytes <= most or config.chunks == n)
            chunked = [c.name for c in _plan.candidates(at) if c.chunks > 1]
            self.assertEqual(set(chunked), {"col2im"} if n > 1 else set())

    def test_not_of_what_many_devices_may_divide(self):
        at = decided("dcgan_64", "kernel_grad", "cpu")[0]
        self.assertNotEmpty([c for c in _plan.candidates(at) if c.chunks > 1])
        at = at._replace(single_device=False)
        self.assertEmpty([c for c in _plan.candidates(at) if c.chunks > 1])

    @parameterized.named_parameters((layer.name, layer.name) for layer in LAYERS)
    def test_what_many_devices_may_have_to_sum_is_lhs_itself(self, name):
        at = decided(name, "input_grad", "cpu")[0]._replace(single_device=False)
        for implementation in ("auto", "col2im"):
            config = _plan.choose(implementation, cost_of("cpu"), at, True)
            single = [Config("dilated"), Config("strided"), Config("depthwise"), Config("col2im")]
            self.assertIn(config, single)

    def test_a_large_batch_needs_no_more_memory(self):
        # What the compiler allocates, copies around and inside the loop included.
        layer = BY_NAME["resnet_decoder"]
        for batch in (4, 8):  # of four images each; with these it is chunks of several or one
            call = layer.call(batch=batch)
            f = functools.partial(jaxconvt.conv_transpose, implementation="col2im", **call.kwargs)
            out = jax.eval_shape(f, call.lhs, call.rhs)
            step = jax.jit(
                lambda lhs, rhs, ct, f=f: util.with_gradients(f, lambda out: ct)(lhs, rhs)
            )
            lowered = step.lower(call.lhs, call.rhs, out)
            self.assertIn(lowered.as_text().count("stablehlo.while"), (2, 3))
            analysis = lowered.compile().memory_analysis()
            # What is little is not taken in chunks.
            self.assertLess(analysis.temp_size_in_bytes, _plan.SMALL + CHUNK)

    def test_depthwise_kernel_gradients_take_images_in_turn(self):
        # Each tap's products are an array of the image's size before they are added up.
        lhs, rhs = (
            jax.ShapeDtypeStruct(shape, "float32") for shape in ((16, 512, 512), (5, 1, 512))
        )

        def f(lhs, ct):
            conv = functools.partial(
                jaxconvt.conv_transpose,
                lhs,
                strides=(1,),
                padding="SAME",
                feature_group_count=512,
                implementation="depthwise",
            )
            return jax.linear_transpose(conv, rhs)(ct)

        analysis = jax.jit(f).lower(lhs, lhs).compile().memory_analysis()
        # JAX 0.5 knows of no bytes, and 0.10 copies both operands, too.
        self.assertLess(analysis.temp_size_in_bytes, 3 * 16 * 512 * 512 * 4)


class Platforms(parameterized.TestCase):
    """The platform lowered for decides, not the one that Python runs on."""

    @parameterized.parameters("bfloat16", "float16", "int8")
    def test_narrow_dtypes_are_not_widened_off_cpu(self, dtype):
        # There the convolutions are jax.lax's own, of units that sum in wider numbers.
        call = BY_NAME["dcgan_rgb"].call(dtype)
        f = functools.partial(jaxconvt.conv_transpose, implementation="auto", **call.kwargs)
        faces = {"value": lambda lhs, rhs, ct: f(lhs, rhs)}
        if dtype != "int8":
            faces["input_grad"] = lambda lhs, rhs, ct: jax.vjp(f, lhs, rhs)[1](ct)[0]
            faces["kernel_grad"] = lambda lhs, rhs, ct: jax.vjp(f, lhs, rhs)[1](ct)[1]
        ct = jax.eval_shape(f, call.lhs, call.rhs)
        name = {"bfloat16": "bf16", "float16": "f16", "int8": "i8"}[dtype]
        seen = 0
        for platform in ("cuda", "tpu"):
            configs = explain(call.lhs, call.rhs, platform=platform, **call.kwargs).configs
            for face, program in faces.items():
                lowered = export.export(jax.jit(program), platforms=(platform,))
                text = lowered(call.lhs, call.rhs, ct).mlir_module()
                types = re.findall(
                    r"stablehlo.convolution.* : \((.*)\) -> (.*?)(?: loc.*)?\n", text
                )
                self.assertEqual(bool(types), configs[face].name not in ("col2im", "depthwise"))
                for operands, result in types:
                    found = re.findall(r"x([a-z]+\d+)>", f"{operands}, {result}")
                    self.assertEqual(found, [name] * 3)
                    seen += 1
        self.assertGreaterEqual(seen, len(faces))

    def test_cpu_gets_products_of_matrices(self):
        value, gradients = modules(BY_NAME["vnet"].call(), ("cpu",))
        self.assertEmpty(lhs_dilations(value) + lhs_dilations(gradients))
        self.assertIn("dot_general", value)
        self.assertIn("dot_general", gradients)

    def test_cuda_gets_no_kernel_gradient_over_a_dilated_lhs(self):
        value, gradients = modules(BY_NAME["dcgan_64"].call(), ("cuda",))
        self.assertLen(lhs_dilations(value), 1)  # of an explicit reverse, which XLA looks for
        self.assertIn("stablehlo.reverse", value)
        self.assertEmpty(lhs_dilations(gradients))

    def test_one_export_for_several(self):
        call = BY_NAME["dcgan_rgb"].call()
        value, _ = modules(call, ("cpu", "cuda", "tpu"))
        self.assertIn("dot_general", value)  # cpu
        self.assertNotEmpty(lhs_dilations(value))  # the others

    def test_pinned_is_pinned_everywhere(self):
        value, _ = modules(BY_NAME["dcgan_rgb"].call(), ("tpu",), "col2im")
        self.assertIn("dot_general", value)

    @parameterized.product(
        case=(
            ("int32", (2, 8, 8, 16), (4, 4, 16, 8)),
            ("int8", (2, 8, 8, 16), (4, 4, 16, 8)),
            ("float32", (2, 4, 4, 4, 4, 8), (2, 2, 2, 2, 8, 8)),
            ("float32", (3, 8), (8, 4)),
        ),
        stride=(1, 2),
    )
    def test_gpu_gets_no_convolution_that_it_has_not(self, case, stride):
        # XLA:GPU has none of integers, and ends the process on four spatial dimensions.
        dtype, *shapes = case
        lhs, rhs = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
        strides = (stride,) * (lhs.ndim - 2)
        for implementation in ("auto", "strided", "polyphase", "col2im"):
            f = functools.partial(
                jaxconvt.conv_transpose,
                strides=strides,
                padding="SAME",
                implementation=implementation,
            )
            run = f if "int" in dtype else util.with_gradients(f, lambda out: out)
            text = export.export(jax.jit(run), platforms=("cuda",))(lhs, rhs).mlir_module()
            self.assertNotIn("stablehlo.convolution", text)

    def test_default_never_changes(self):
        for platform in ("cpu", "cuda", "tpu"):
            value, gradients = modules(BY_NAME["vnet"].call(), (platform,), "dilated")
            self.assertNotIn("dot_general", value + gradients)


class Explain(parameterized.TestCase):
    def test_printed(self):
        text = str(explained("vnet"))
        for word in (
            'implementation="auto" on cpu',
            *_problem.FACES,
            "us ",
            " MiB ",
            "<- picked",
            "both gradients together",
        ):
            self.assertIn(word, text)

    def test_says_what_is_not_measured(self):
        self.assertIn("not on a clock", explained("vnet", "tpu").reason)
        self.assertIn(
            "scaled by what is published of NVIDIA H100", explained("vnet", "cuda").reason
        )
        self.assertIn("rest on a clock", explained("vnet", "cpu").reason)

    def test_rocm_has_no_cudnn(self):
        self.assertNotRegex(str(explained("vnet", "rocm")), "NVIDIA|cuDNN|CUDA")
        self.assertIn("MIOpen backward-input convolution", str(explained("vnet", "rocm")))

    def test_reads_what_conv_transpose_does(self):
        x = np.zeros((1, 2, 2, 2), "float32")
        for precision in (None, "highest", ["highest", "default"]):
            explain(x, x, (2, 2), "SAME", precision=precision, platform="cpu")
        for lhs, words in (
            ([[0.0]], "lhs must be a JAX or NumPy array, or a jax.ShapeDtypeStruct, got"),
            (np.array([["a"]]), "lhs must be an array of numbers or bools"),
            (jax.ShapeDtypeStruct(x.shape, jax.dtypes.float0), "lhs must be an array of num"),
        ):
            with self.assertRaisesRegex(TypeError, words):
                explain(lhs, x, (2, 2), "SAME")
        with self.assertRaisesRegex(TypeError, "lhs must be a JAX or NumPy array"):
            jaxconvt.conv_transpose(jax.ShapeDtypeStruct(x.shape, x.dtype), x, (2, 2), "SAME")

    def test_arrays_and_structs_alike(self):
        call = BY_NAME["dcgan_4"].call()
        arrays = [np.zeros(x.shape, x.dtype) for x in (call.lhs, call.rhs)]
        self.assertEqual(
            explain(*arrays, platform="cpu", **call.kwargs),
            explain(call.lhs, call.rhs, platform="cpu", **call.kwargs),
        )

    def test_default_platform(self):
        call = BY_NAME["dcgan_4"].call()
        platform = explain(call.lhs, call.rhs, **call.kwargs).platform
        self.assertIn(platform, PLATFORMS)
        self.assertEqual(platform == "cpu", jax.default_backend() == "cpu")

    def test_gpu_is_cuda(self):
        self.assertEqual(explained("dcgan_4", "gpu").platform, "cuda")

    def test_symbolic_sizes(self):
        (size,) = export.symbolic_shape("i")
        lhs = jax.ShapeDtypeStruct((1, size, 2), "float32")
        rhs = jax.ShapeDtypeStruct((2, 2, 2), "float32")
        explanation = explain(lhs, rhs, (2,), ((1, 1),), platform="cpu")
        self.assertEqual(set(explanation.configs.values()), {Config("dilated")})
        self.assertIn("symbolic", explanation.reason)

    def test_symbolic_batch_is_planned_as_one_image(self):
        (size,) = export.symbolic_shape("n")
        call = BY_NAME["gan3d"].call(batch=8)
        lhs, one = (
            jax.ShapeDtypeStruct((n, *call.lhs.shape[1:]), call.lhs.dtype) for n in (size, 1)
        )
        explanation = explain(lhs, call.rhs, platform="cpu", **call.kwargs)
        self.assertIn("taken for one image", explanation.reason)
        of_one = explain(one, call.rhs, platform="cpu", **call.kwargs)
        self.assertEqual(explanation.configs, of_one.configs)
        of_eight = explain(call.lhs, call.rhs, platform="cpu", **call.kwargs)
        self.assertNotEqual(explanation.configs, of_eight.configs)  # that is in chunks
        value, _ = modules(call._replace(lhs=lhs), ("cpu",))
        self.assertEmpty(lhs_dilations(value))

    def test_symbolic_channels(self):
        (size,) = export.symbolic_shape("c")
        lhs, rhs = (jax.ShapeDtypeStruct((*s, size), "float32") for s in ((1, 4), (3, 2)))
        explanation = explain(lhs, rhs, (2,), "SAME", transpose_kernel=True, platform="cpu")
        self.assertEqual(set(explanation.configs.values()), {Config("dilated")})
        self.assertIn("symbolic", explanation.reason)

    def test_half_precision_summed_in_float32(self):
        # Both gradients are planned for the dtype that they are computed in.
        call = BY_NAME["dcgan_4"].call("bfloat16")
        ours = explain(call.lhs, call.rhs, preferred_element_type="float32", **call.kwargs)
        self.assertEqual(
            ours.estimates["kernel_grad"], explained("dcgan_4").estimates["kernel_grad"]
        )

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "implementation must be one of"):
            explained("dcgan_4", implementation="abacus")
        with self.assertRaisesRegex(ValueError, "precision must be"):
            explained("dcgan_4", precision=3.5)
        with self.assertRaisesRegex(ValueError, "platform must be one of 'cpu'.*'abacus'"):
            explained("dcgan_4", "abacus")
        with self.assertRaisesRegex(ValueError, "strides must be positive"):
            explained("dcgan_4", strides=(0, 2))


class Accuracy(parameterized.TestCase):
    @parameterized.product(
        implementation=[i for i in util.IMPLEMENTATIONS if i != "dilated"],
        dtype=("bfloat16", "float16"),
    )
    def test_low_precision_is_summed_in_float32(self, implementation, dtype):
        # 2304 products of like sign: summed in bfloat16 they would stall at 256.
        lhs, rhs = jnp.full((1, 3, 3, 256), 1.0, dtype), jnp.full((3, 3, 256, 2), 1.0, dtype)

        def conv(lhs, rhs, implementation=implementation):
            return jaxconvt.conv_transpose(lhs, rhs, (1, 1), "SAME", implementation=implementation)

        out, dlhs, drhs = util.with_gradients(conv, jnp.ones_like)(lhs, rhs)
        self.assertEqual(float(out[0, 1, 1, 0]), 2304.0)
        self.assertEqual(float(dlhs[0, 1, 1, 0]), 18.0)
        self.assertEqual(float(drhs[1, 1, 0, 0]), 9.0)
        self.assertEqual([x.dtype.name for x in (out, dlhs, drhs)], [dtype] * 3)

    @parameterized.product(
        implementation=[i for i in util.IMPLEMENTATIONS if i != "dilated"],
        dtype=("bfloat16", "float16"),
    )
    def test_error_is_no_worse_than_the_defaults(self, implementation, dtype):
        lhs = util.random("lhs", (2, 6, 6, 64), dtype)
        rhs = util.random("rhs", (4, 4, 64, 8), dtype)
        exact = jaxconvt.conv_transpose(
            lhs.astype("float32"), rhs.astype("float32"), (2, 2), "SAME", precision="highest"
        )

        def error(implementation):
            out = jaxconvt.conv_transpose(lhs, rhs, (2, 2), "SAME", implementation=implementation)
            return np.sqrt(np.mean(np.square(np.asarray(out, "float32") - exact)))

        self.assertLessEqual(error(implementation), 1.01 * error("dilated"))


class XlaFaults(parameterized.TestCase):
    @parameterized.product(
        implementation=[name for name in jaxconvt.IMPLEMENTATIONS if name != "dilated"],
        c=(
            case("one row", (2, 4, 1, 2), (2, 3, 2, 4), (2, 3), [(0, 0), (0, 5)]),
            case("stride 1", (2, 4, 2, 2), (2, 9, 2, 4), (2, 1), [(0, 0), (8, 8)]),
            case("3d", (1, 2, 4, 2, 2), (3, 2, 9, 2, 4), (1, 2, 2), [(2, 2), (0, 0), (8, 8)]),
        ),
    )
    def test_kernels_of_two_that_xla_takes_for_groups(self, implementation, c):
        """It ends the process on jax.lax's program."""
        lhs, rhs = util.operands(c)
        f = functools.partial(jaxconvt.conv_transpose, implementation=implementation, **c.kwargs)
        got = util.with_gradients(jax.jit(f))(lhs, rhs)
        ct = util.cotangent(got[0].shape, got[0].dtype)
        want = oracle.conv_transpose(lhs, rhs, **c.kwargs), *oracle.vjp(lhs, rhs, ct, **c.kwargs)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


class Batching(parameterized.TestCase):
    @parameterized.parameters((0, None), (None, 0), (0, 0))
    def test_stays_one_equation(self, *in_axes):
        """A batch axis joins a letter: no loop, and the gradients are as fast as without."""
        lhs, rhs = util.random("l", (3, 1, 4, 4, 2)), util.random("r", (3, 3, 3, 2, 5))
        lhs = lhs if in_axes[0] == 0 else lhs[0]
        rhs = rhs if in_axes[1] == 0 else rhs[0]

        def conv(lhs, rhs):
            return jaxconvt.conv_transpose(lhs, rhs, (2, 2), "SAME", implementation="auto")

        def loss(lhs, rhs):
            return jnp.sum(jax.vmap(conv, in_axes)(lhs, rhs) ** 2)

        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(lhs, rhs))
        self.assertEqual(text.count("conv_transpose["), 3)
        self.assertEqual(
            sorted(re.findall(r"face=(\w+)", text)), ["input_grad", "kernel_grad", "value"]
        )


if __name__ == "__main__":
    absltest.main()
