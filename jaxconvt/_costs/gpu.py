"""GPU: a roofline of what a lowering does, at a share of the published figures of a device.

Each operation takes the time of its bytes or that of its multiply-adds, whichever is longer, and
a time to start. `benchmarks/compilers.py` compiled for these devices, and so confirmed what XLA
makes of each lowering. Nothing was timed.
"""

import math
from typing import NamedTuple

from jaxconvt._call import Call, Convolution, Work
from jaxconvt._costs._interface import Cost
from jaxconvt._geometry import dilate, runs
from jaxconvt._lowerings.strided import exchanged, uneven, why_no_library_call


class Device(NamedTuple):
    """What one GPU does in a second."""

    bytes: float
    flops: dict[str, float]  # by kind of dtype; those of float32 are TF32, as JAX has it


REACHED = 0.78, 0.5  # of the published bandwidth, and of the published multiply-adds

# Published: dense, on tensor cores, of the SXM form with most memory. Another is a line more.
DEVICES = {
    "NVIDIA H100": Device(3.35e12, {"float32": 495e12, "bfloat16": 989e12, "float64": 67e12}),
    "NVIDIA H200": Device(4.8e12, {"float32": 495e12, "bfloat16": 989e12, "float64": 67e12}),
    "NVIDIA A100": Device(2.04e12, {"float32": 156e12, "bfloat16": 312e12, "float64": 19.5e12}),
    "NVIDIA B200": Device(8e12, {"float32": 1100e12, "bfloat16": 2250e12, "float64": 40e12}),
}
DEFAULT = "NVIDIA H100"

START = 3e-6  # seconds to start an operation
# XLA splits a sum of so many terms in `SPLIT` parts, if it has fewer results than that.
LONG, FEW, SPLIT = 512, 132 * 64 * 64, 8
ZEROS = 4  # times as much for windows that are zeros but for one pixel; a guess
# What an H200's clock said of XLA's convolutions over zeros: 4 to 340 times their roofline where
# one side has three channels or fewer, or where there are groups, 2 times where both have 32.
SLOW = 16
VECTOR = 10  # times as much for multiply-adds that are no products of matrices


_CUDNN = {"out": "backward-input", "lhs": "forward", "rhs": "backward-filter"}


class Gpu(Cost):
    trusted = 1.04

    def __init__(self, device: str) -> None:
        self.basis = f"a roofline of the {device}, confirmed by compiling for CUDA, not by a clock"
        published = DEVICES[device]
        self.byte = 1 / (REACHED[0] * published.bytes)
        self.flop = {kind: 1 / (REACHED[1] * rate) for kind, rate in published.flops.items()}
        self.flop["integer"] = 1 / (REACHED[1] * published.flops["float64"])

    def seconds(self, call: Call, work: Work, in_loop: bool = False) -> float:
        time = 0.0
        if call.taps_last and not (work.convolution and len(call.axes) > 2):
            # Channels first, it seems: all else here, and cuDNN in 2-D, has them last.
            time += 2 * START + 2 * (call.lhs_bytes + call.out_bytes) * self.byte
        if work.convolution:
            time += self._convolution(call, work, work.convolution)
        if work.products:
            # Each product copies its part of the kernel and its patches, and adds up its result. A
            # gradient first copies windows of the cotangent, then puts them in the product's order.
            copied: float = 2 * call.rhs_bytes + 2 * work.patches + work.made
            copies = work.products * (4 if work.patches else 3) - 1
            if not work.made:  # nothing is folded, and a kernel that is reversed is as it should be
                copies = (not call.flipped) + (call.face == "lhs")
                copied = 2 * copies * call.rhs_bytes
            elif any(len(runs(axis)) > 1 for axis in call.axes):
                if call.face != "out":
                    copied, copies = copied + 2 * work.made, copies + 2 * work.products
                elif call.j == 1:  # made again, axis by axis, to be added up
                    copied, copies = copied + work.made, copies + len(call.axes)
            if split := _split(call, work):  # parts of the sum are added up by a kernel of its own
                copies, copied = copies + work.products, copied + (SPLIT + 1) * split
            time += copies * START + copied * self.byte
            time += self._operation(call, call.bytes + work.patches + work.made, work.product_flops)
        if work.sums:  # each over all of the cotangent, for the kernel gradient
            passes = work.sums if call.face == "rhs" else 1
            time += self._operation(call, 2 * call.bytes, VECTOR * work.sum_flops)
            time += (1 + passes) * START + (passes - 1) * call.out_bytes * self.byte
        return time

    def _operation(self, call: Call, moved: float, flops: float) -> float:
        return START + max(moved * self.byte, flops * self.flop[call.kind])

    def _convolution(self, call: Call, work: Work, made: Convolution) -> float:
        """With copies to cuDNN's order: of the kernel, and in 3-D (channels first) of the rest."""
        stuffed, parts = self._stuffed(call, made), work.made > 0
        to_channels_first = len(call.axes) > 2 and not call.taps_last
        lhs, flops = call.lhs_bytes, made.flops
        if call.one_pixel and call.face == "out" and call.extent("out") >= call.extent("taps"):
            flops = ZEROS * call.stuffed_flops
        copies = [(0, 0)]  # how many, and the bytes of all together
        # An exchange of channels is no copy where one side has one, but for cuDNN's gradients.
        if work.rearranged or min(call.i, call.j) > 1 or made.form.endswith("gradient"):
            copies.append((1, 2 * call.rhs_bytes))
        # Batch and channels are exchanged, where cuDNN's own call is not to be had.
        exchange = made.form == "kernel gradient" or (call.one_pixel and call.face == "rhs")
        if exchange and len(call.axes) < 3 and call.n > 1 < call.extent("taps"):
            if call.j > 1:
                copies.append((1, 2 * call.out_bytes))
            if call.i > 1 and not stuffed:
                copies.append((1, 2 * call.lhs_bytes))
        if call.taps_last and work.rearranged:  # the reverse is apart from that
            copies.append((1, 2 * call.rhs_bytes))
        if call.face == "out" and exchanged(call):
            flops = call.stuffed_flops * call.extent("size") / call.extent("taps")
        elif stuffed:
            lhs, flops = call.stuffed_bytes, call.stuffed_flops
            copies.append((1, call.lhs_bytes + lhs))
            if call.taps_last and len(call.axes) < 3:  # the transpose that `seconds` counts is this
                copies.append((-1, -2 * call.lhs_bytes))
        elif to_channels_first and call.i > 1:
            copies.append((made.calls, 2 * lhs))
        if to_channels_first and call.j > 1:
            copies.append((made.calls, 2 * call.out_bytes))
        if not (stuffed or to_channels_first or parts) and uneven(call):
            copies.append((1, 2 * call.out_bytes))
        if call.kernel_dilated and not parts:  # the kernel is filled up with zeros
            flops *= math.prod([dilate(a.taps, a.dilation) / a.taps for a in call.axes])
            copies.append((1, 0))
        if parts:  # each result is copied to its place
            copies.append((3 * made.calls - 1 + (call.face == "lhs"), 2 * made.calls * work.made))
        started, copied = (sum(counts) for counts in zip(*copies, strict=True))
        time: float = started * START + copied * self.byte + (made.calls - 1) * START
        moved = call.rhs_bytes + call.out_bytes + made.calls * lhs
        slow = 1.0
        if stuffed:
            slow = SLOW if call.g > 1 else max(SLOW / min(call.i, call.j), 1.0)
        if made.form == "kernel gradient":
            slow = max(slow, 2.0)
        return time + slow * self._operation(call, moved, flops)

    def convolution(self, call: Call, made: Convolution) -> str:
        if self._stuffed(call, made):
            why = why_no_library_call(call) or "its kernel is no explicit reverse"
            if made.form == "kernel gradient":
                why = "it is made with a dilated lhs"
            return f"cuDNN forward convolution over zeros between the elements of lhs ({why})"
        form = "forward" if made.form == "forward" else _CUDNN[call.face]
        return f"cuDNN {form} convolution"

    def _stuffed(self, call: Call, made: Convolution) -> bool:
        """Whether XLA puts the zeros in, and multiplies them."""
        if made.form == "forward" or not call.strided:
            return False
        # A swap of channels of which one side has one is no transpose, and the reverse moves.
        reversed_ = call.flipped and call.face == "out" and (call.i == 1) == (call.j == 1)
        looked_for = made.form in ("input gradient", "filter gradient") or reversed_
        return not looked_for or bool(why_no_library_call(call))


def _split(call: Call, work: Work) -> float:
    """Bytes of the results of products whose sums XLA splits: long ones, for few results."""
    terms = {
        "out": call.i,
        "lhs": call.j * call.extent("taps"),
        "rhs": call.n * call.extent("size"),
    }[call.face]
    results = work.product_flops / (2 * terms)
    return results * call.itemsize if terms >= LONG and results < FEW else 0.0


_COSTS = {name: Gpu(name) for name in DEVICES}


def of(device_kind: str) -> Gpu:
    """That of the device whose name this begins with, or is said to."""
    for name, cost in _COSTS.items():
        if device_kind.startswith(name):
            return cost
    return _COSTS[DEFAULT]
