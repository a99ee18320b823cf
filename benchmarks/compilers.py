"""What XLA's compilers make of the layers for GPU and TPU, on a machine that has neither.

    pip install 'jaxconvt[gpu-compiler]'        # 5.5 GB
    python benchmarks/compilers.py h100 a100    # 3 minutes each
    pip install 'jaxconvt[tpu-compiler]'        # 1.2 GB, in another environment
    python benchmarks/compilers.py v5e v6e v4   # 8 minutes each

For each layer, each mode and each implementation it compiles the program and counts in the
optimized one, loops as often as they run:

    calls       of libraries: I, F and W are cuDNN's backward-input, forward and backward-filter
                convolutions, G is a product of matrices; on TPU, C is a convolution
    kernels     operations that are started
    flops       of products and convolutions, two each multiply-add, zeros included
    bytes       that operations read and write
    cost        on GPU microseconds by a roofline: of each operation the longer of its bytes and
                its flops, at a share of what is published of the device, and the time to start it;
                on TPU the cycles that the compiler estimates, in thousands

It prints the ratios of jax.lax's cost over each implementation's, and writes
benchmarks/results/compiled-<device>.json. These are estimates: no clock is in them.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

# The host's own backend is enough: nothing runs.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
# Of a TPU that is not there, libtpu needs not to be told where it is.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

sys.path.insert(0, str(Path(__file__).parents[1]))  # to be run as a file, too

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxconvt
from benchmarks import common
from benchmarks.hlo import Instruction, computations, shapes, size_of
from jaxconvt._costs.gpu import DEVICES
from jaxconvt._costs.gpu import of as nearest
from jaxconvt._layers import BY_NAME, LayerCall
from jaxconvt._measure import REFERENCE, face_of, step
from jaxconvt._problem import FACES

MODES = (*FACES, "step")
# The roofline's: of the published bandwidth and multiply-adds, and seconds to start an operation.
REACHED = 0.78, 0.5
START = 3e-6
TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v6e": "v6e:2x2"}

_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores}
  fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {l2}
  clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
  thread_dim_limit_z: 64 device_vendor: "NVIDIA Corporation" name: "{name}"
  driver_version: "12.8.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
"""
# Published figures of the devices.
GPUS = {
    "h100": dict(
        name="NVIDIA H100 80GB HBM3", major=9, cores=132, fpus=128, bandwidth=3352320000000,
        clock=1.98, l2=52428800, shared=233472, optin=232448, memory=84942979072,
    ),
    "a100": dict(
        name="NVIDIA A100-SXM4-80GB", major=8, cores=108, fpus=64, bandwidth=2039000000000,
        clock=1.41, l2=41943040, shared=167936, optin=166912, memory=84942979072,
    ),
}  # fmt: skip


class Program(NamedTuple):
    """What was counted in one compiled program."""

    calls: str
    kernels: int
    flops: float
    bytes: int
    cost: float


# Compiling


def devices(name: str, count: int = 1) -> Any:
    """Return devices that are not there, to compile for; of "cpu", the host's own."""
    jax.config.update("jax_platforms", "cpu")
    if name == "cpu":
        # Read when the first device is asked for.
        os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={count}"
        return jax.devices()[:count]
    if name in GPUS:
        more = {"target_config": _GPU.format(**GPUS[name]), "topology": f"1x1x{count}"}
        platform, topology = "cuda", ""
    else:
        platform, topology, more = "tpu", TPUS[name], {}
    jax.devices()  # which finds the plugins
    return topologies.get_topology_desc(topology, platform, **more).devices[:count]


def compiled(function: Callable[..., Any], operands: Iterable[Any], target: Any) -> str:
    """Return the optimized program for a device, as text."""
    sharding = SingleDeviceSharding(target)
    structs = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in operands]
    text: str = jax.jit(function).lower(*structs).compile().as_text()
    return text


def programs(call: LayerCall, implementation: str) -> Iterator[tuple[str, Callable[..., Any], Any]]:
    """Yield each mode of a layer, as a function and its operands."""
    name = "dilated" if implementation == REFERENCE else implementation

    def value(lhs: Any, rhs: Any) -> Any:
        return jaxconvt.conv_transpose(lhs, rhs, implementation=name, **call.kwargs)

    operands = call.lhs, call.rhs, jax.eval_shape(value, call.lhs, call.rhs)
    for face in FACES:
        yield face, face_of(value, face), operands
    yield "step", step(value), operands


# Counting, in the text of an optimized program

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
_CUDNN = {
    "__cudnn$convForward": "F",
    "__cudnn$convBackwardInput": "I",
    "__cudnn$convBackwardFilter": "W",
}


class Counter:
    """Counts one program."""

    def __init__(self, text: str, gpu: str | None) -> None:
        self.computations = computations(text)
        self.types = {i.name: i.type for c in self.computations.values() for i in c}
        self.gpu = gpu

    def program(self) -> Program:
        calls, kernels, flops, bytes_, cost = "", 0, 0.0, 0, 0.0
        for instruction, times in self.run("ENTRY", 1):
            call, flop = self.multiplied(instruction)
            moved = size_of(instruction.type) + sum(
                [size_of(self.types[name]) for name in set(instruction.operands)]
            )
            calls += call * times
            kernels += times
            flops += times * flop
            bytes_ += times * moved
            cost += times * self.cost(instruction, flop, moved)
        return Program("".join(sorted(calls)), kernels, flops, bytes_, cost)

    def run(self, computation: str, times: int) -> Iterator[tuple[Instruction, int]]:
        """Yield what is started, and how often."""
        for instruction in self.computations[computation]:
            if instruction.opcode == "while":
                body = instruction.attribute(r"body=%([\w.-]+)")
                yield from self.run(body, times * self.trips(instruction))
            elif instruction.opcode not in _FREE:
                yield instruction, times

    def trips(self, loop: Instruction) -> int:
        if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        # XLA:TPU does not say: a loop over chunks counts up to the constant in its condition.
        condition = self.computations[loop.attribute(r"condition=%([\w.-]+)")]
        (most,) = [i.rest.split(")")[0] for i in condition if i.opcode == "constant"]
        return int(most)

    def cost(self, instruction: Instruction, flops: float, moved: int) -> float:
        if self.gpu is None:
            cycles = instruction.attribute(r'"estimated_cycles":"(\d+)"')
            return int(cycles or 0) / 1e3
        rates = DEVICES[self.gpu]
        kind = "bfloat16" if "bf16" in instruction.type else "float32"
        time = max(moved / REACHED[0] / rates.bytes, flops / REACHED[1] / rates.flops[kind])
        return (time + START) * 1e6

    def multiplied(self, instruction: Instruction) -> tuple[str, float]:
        """Return the library calls of an instruction, by letter, and its flops."""
        target = instruction.attribute(r'custom_call_target="([^"]+)"')
        if target in _CUDNN:
            return _CUDNN[target], self.convolution(instruction, _CUDNN[target])
        if instruction.opcode == "convolution":
            return "C", self.convolution(instruction, "F")
        if instruction.opcode == "dot" or "gemm" in target or "matmul" in target:
            return "G", self.product(instruction)
        calls, flops = "", 0.0
        for name in re.findall(r"(?:calls|to_apply)=%([\w.-]+)", instruction.rest):
            for inner in self.computations.get(name, []):
                call, flop = self.multiplied(inner)
                calls, flops = calls + call, flops + flop
        return calls, flops

    def product(self, instruction: Instruction) -> float:
        (_, result), *_ = shapes(instruction.type)
        (_, lhs), *_ = shapes(self.types[instruction.operands[0]])
        dims = instruction.attribute(r'lhs_contracting_dim(?:s|ensions)"?[=:][{\[]([\d,"]*)')
        inner = math.prod([lhs[int(d)] for d in re.findall(r"\d+", dims)])
        return 2.0 * math.prod(result) * inner

    def convolution(self, instruction: Instruction, form: str) -> float:
        """Return the flops: each element of cotangent or result meets each tap and in feature."""
        sizes = instruction.attribute(r"window=\{size=([\dx]+)") or "1"
        window = math.prod(map(int, sizes.split("x")))
        groups = int(instruction.attribute(r"feature_group_count=(\d+)") or 1)
        lhs, kernel, _ = re.split(r"_|->", instruction.attribute(r"dim_labels=([\w?>-]+)"))
        (_, result), *_ = shapes(instruction.type)
        one, other = (shapes(self.types[name])[0][1] for name in instruction.operands[:2])
        if form == "F":  # of lhs and kernel
            batch_groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
            return 2.0 * math.prod(result) * window * other[kernel.index("i")] / batch_groups
        if form == "I":  # of the cotangent and the kernel, to lhs
            return 2.0 * math.prod(one) * window * result[lhs.index("f")] / groups
        # Of lhs and the cotangent, to the kernel.
        return 2.0 * math.prod(other) * window * one[lhs.index("f")] / groups


def count(text: str, name: str) -> Program:
    """Return what a compiled program for a device of `GPUS` or `TPUS` does."""
    gpu = None
    if name in GPUS:
        gpu = nearest("cuda", str(GPUS[name]["name"])).known
    return Counter(text, gpu).program()


# The report


def measure(name: str, call: LayerCall, implementations: Iterable[str]) -> dict[str, Any]:
    """Return a `Program` by mode and implementation."""
    (target,) = devices(name)
    row: dict[str, Any] = {mode: {} for mode in MODES}
    for implementation in implementations:
        for mode, function, operands in programs(call, implementation):
            row[mode][implementation] = count(compiled(function, operands, target), name)._asdict()
    return row


def ratio(row: dict[str, Any], mode: str, implementation: str) -> float:
    """Return jax.lax's cost over the implementation's."""
    costs: float = row[mode][REFERENCE]["cost"] / row[mode][implementation]["cost"]
    return costs


def line(name: str, row: dict[str, Any], implementation: str) -> str:
    text = f"{name:20}"
    for mode in MODES:
        theirs, ours = row[mode][REFERENCE], row[mode][implementation]
        calls = f"{theirs['calls'][:4]}>{ours['calls'][:6]}"
        costs = f"{theirs['cost']:9.1f} {ours['cost']:8.1f} {ratio(row, mode, implementation):6.2f}"
        text += f"  {costs} {calls:10}"
    return text


def main() -> None:
    parser = common.parser(__doc__, BY_NAME)
    add = parser.add_argument
    add("devices", nargs="+", choices=[*GPUS, *TPUS], metavar="DEVICE",
        help=f"of {', '.join([*GPUS, *TPUS])}")  # fmt: skip
    add("--implementations", nargs="+", default=["auto"], choices=jaxconvt.IMPLEMENTATIONS)
    add("--dtype", default=None, help="float32 on GPU and bfloat16 on TPU, unless it is given")
    add("--channels-first", action="store_true", help="PyTorch's layout")
    add("--output", type=Path, help="instead of benchmarks/results/compiled-<device>.json")
    arguments = parser.parse_args()
    layers = [BY_NAME[name] for name in arguments.layers]
    for name in arguments.devices:
        dtype = arguments.dtype or ("float32" if name in GPUS else "bfloat16")
        variant = dtype + ("-nchw" if arguments.channels_first else "")
        print(
            f"{name}, {variant}: cost of jax.lax and auto, their ratio, calls; {', '.join(MODES)}"
        )
        rows = {}
        for layer in layers:
            call = layer.call(dtype, channels_first=arguments.channels_first)
            rows[layer.name] = measure(name, call, (REFERENCE, *arguments.implementations))
            print(line(layer.name, rows[layer.name], arguments.implementations[-1]), flush=True)
        for implementation in arguments.implementations:
            for mode in MODES:
                ratios = {layer: ratio(row, mode, implementation) for layer, row in rows.items()}
                worst = min(ratios, key=lambda layer: ratios[layer])
                print(
                    f"{implementation}, {mode}: {geometric_mean(ratios.values()):.2f} "
                    f"in geometric mean, least {ratios[worst]:.2f} ({worst})"
                )
        path = arguments.output or common.RESULTS / f"compiled-{name}.json"
        tables = common.load(path)
        tables[variant] = {"jax": jax.__version__, "layers": rows}
        common.write(path, tables, depth=3)


if __name__ == "__main__":
    sys.exit(main())
