"""TPU: cycles, by formulas that were fitted to what XLA's compiler estimates for a v5e.

`benchmarks/compilers.py` gets its estimates, without a TPU. XLA's own program is often the best
here, and it is what is left where nothing is sure: the formulas estimate it low, and all others
high. They do not predict cycles. Another is picked only where

- XLA multiplies many zeros of a dilated lhs, in tiles that channels or images do not fill;
- it divides few images into parts, and interleaves these: in 1-D, and for whole tiles of rows;
- it reverses a large kernel gradient, which "strided" makes in the order that it is stored in;
- it makes a kernel gradient of groups of one channel, or from a huge cotangent of one image;
- it dilates the last axis, too, and "subpixel" does not: in 2-D and 3-D, if the output fills many
  tiles and the kernel few (see `_subpixel_is_better`).
"""

import math

from jaxconvt._call import Call, Convolution, Work
from jaxconvt._costs._interface import Cost
from jaxconvt._geometry import runs

CYCLE = 1 / 1.5e9  # seconds, of a v5e
LANES, ROWS = 128, 8  # of a tile
TILE = 2048  # bytes of a tile of bfloat16
NEAR = 48e6  # bytes of tiles that XLA reads often without a delay
START = 6e3  # cycles of any program, at least
OPERATION = 25e3  # cycles more for each part of a result that is made alone
FEW = 2  # images that XLA divides into parts in 1-D ...
SOME = 4  # ... and in 2-D and 3-D
NARROW = 4  # channels of a cotangent whose tiles are mostly empty
MANY = 1.4e3  # tiles of an output, from which "subpixel" may be better
GROUPED = 64  # taps of a kernel with groups, from which it may be
TAPS = 16  # of a kernel, up to which it may be in the lhs gradient
BETTER = 0.8  # of XLA's cycles, where no layer took more than XLA's
UNKNOWN = 4.0  # times XLA's cycles, where no layer was looked at, or some took more


class Tpu(Cost):
    trusted = 1.02
    basis = "cycles that XLA's compiler estimates for a v5e, not on a clock"

    def seconds(self, call: Call, work: Work, in_loop: bool = False) -> float:
        made = work.convolution
        if work.phases > 1:
            cycles = _subpixel(call, work, in_loop)
        elif made and _is_xlas(call, work, made):
            cycles = _own(call)
            if made.form == "kernel gradient" and call.flipped:
                cycles += call.rhs_bytes / 100  # to reverse it
        elif in_loop or call.kernel_dilated or not call.axes:
            cycles = UNKNOWN * _own(call)
        elif made and made.form == "filter gradient":
            cycles = _filter_gradient(call)
        elif call.g > 1:
            cycles = UNKNOWN * _own(call)
        else:
            cycles = _polyphase(call, made.calls) if made else _products(call, work)
        return cycles * CYCLE * (2 if call.kind == "float32" else 1)


def _is_xlas(call: Call, work: Work, made: Convolution) -> bool:
    """Whether XLA makes much the same of it as of its own."""
    polyphase = call.face == "out" and work.interleaved
    return not polyphase and made.form != "filter gradient"


def _own(call: Call) -> float:
    """Of XLA's own convolution, at least."""
    tiles = _tiles(call)
    if call.face == "out":
        if _slow(call):
            return START + 2 * _multiplied(call) + tiles * TILE / 100
        apart = any(len(runs(axis)) == 1 for axis in call.axes)  # taps: XLA skips some zeros
        return max(_multiplied(call) * (0.15 if apart else 0.5), tiles * TILE / 400)
    if call.face == "lhs":
        return START
    if call.g > 1:
        return START + call.out_bytes / 60
    read = 0.0 if _cropped(call) else tiles * TILE
    if read > NEAR and call.n == 1:
        return read / 25
    return START + call.rhs_bytes / 160 + read / (500 if _slow(call) else 700)


def _filter_gradient(call: Call) -> float:
    """Its result may have to be reversed, and the cotangent is laid out with channels as lanes."""
    reverse = 0 if call.flipped else 2e3 + call.rhs_bytes / 60
    if call.g == 1:
        return _own(call) + reverse + call.out_bytes * _padding(call.j) / 125
    if call.i == 1 and len(call.axes) > 1 and call.strided and not _cropped(call):
        return START + call.out_bytes / 150 + call.rhs_bytes / 20 + reverse
    return UNKNOWN * _own(call)


def _polyphase(call: Call, calls: int) -> float:
    whole = all(axis.size % ROWS == 0 for axis in call.axes) and not _cropped(call)
    if calls == 1 and whole and call.n <= SOME and len(call.axes) > 1:
        return BETTER * _own(call)
    return START + _parts(call, calls, call.out_bytes)


def _subpixel(call: Call, work: Work, in_loop: bool) -> float:
    """The kernel is rearranged, which is slow; then it is the tiles of the output."""
    if in_loop or call.kernel_dilated or not _subpixel_is_better(call, work):
        return UNKNOWN * _own(call)
    tiles = _tiles(call, work.phases) * (48 if call.face == "out" else 12)
    cycles = BETTER * _own(call)
    return cycles if call.face == "lhs" else min(cycles, START + work.rearranged / 30 + tiles)


def _subpixel_is_better(call: Call, work: Work) -> bool:
    """Whether it is, of all layers of the kind that were looked at."""
    tiles, dims, last = _tiles(call), len(call.axes), call.axes[-1]
    if last.out % last.stride and (dims == 3 or call.j > NARROW):  # the output is cropped
        return False
    if call.face == "lhs" and dims == 3 and call.g == 1:
        whole = all(axis.size >= ROWS for axis in call.axes)
        return (
            whole and min(call.i, call.j) > NARROW and call.rhs_bytes <= 2**20 and tiles > MANY / 3
        )
    if dims == 1 or tiles < MANY:
        return False
    if call.g > 1:
        return call.face == "out" and call.n == 1 and dims == 2 and call.extent("taps") >= GROUPED
    if call.face == "rhs":
        huge = call.n == 1 and tiles * TILE > NEAR and 4 * call.j <= LANES
        return dims == 2 and (huge or (call.n <= SOME and call.j <= NARROW and tiles > 4 * MANY))
    if 6 * work.rearranged > tiles * TILE or call.n > 2 * ROWS:  # many images may be lanes
        return False
    if call.i <= NARROW and call.extent("taps") > LANES:  # of one channel, taps may be
        return False
    several = call.n >= SOME and call.j < LANES and last.size % ROWS == 0
    if call.face == "lhs":
        return several and call.extent("taps") <= TAPS and last.size >= 4 * ROWS
    apart = all(axis.taps == axis.stride for axis in call.axes)  # taps: each phase has one
    return several or apart or call.j <= NARROW or _multiplied(call) > 64 * tiles


def _products(call: Call, work: Work) -> float:
    if call.face == "lhs":
        sure = _slow(call) and call.j <= NARROW and call.axes[0].size >= LANES
        return (BETTER if sure and not work.patches else UNKNOWN) * _own(call)
    if work.patches:
        kernel = call.rhs_bytes / 14 if call.face == "rhs" else 0
        return _parts(call, work.products, work.made) + kernel
    made = 4 * call.contributions  # bytes of Y or U (see `_lowerings.col2im`)
    if _slow(call):
        return 8e3 + made / 150 + call.rhs_bytes / 160 + (OPERATION if _cropped(call) else 0)
    # Rows of the image may be lanes, too.
    kernel = call.rhs_bytes / 40 if call.face == "rhs" else 0
    last = call.axes[-1]
    if all(len(runs(axis)) == 1 for axis in call.axes):  # nothing is added up
        padding = min(_padding(call.j), _padding(last.out))
        return START + call.out_bytes * padding / 22 + kernel
    padding = min(_padding(call.j), _padding(last.size))
    return START + OPERATION + made * padding / 36 + kernel + _dense(call)


def _parts(call: Call, parts: int, made: int) -> float:
    """Parts are made one by one, and interleaved."""
    whole = all(axis.size % ROWS == 0 for axis in call.axes)
    interleaved = made * _padding(call.j) / (66 if whole else 25)
    return parts * OPERATION + interleaved + _dense(call)


def _multiplied(call: Call) -> float:
    """Each tile of the output by each of the kernel, with the zeros of a dilated lhs."""
    taps = min(call.extent("taps"), call.extent("size"))  # XLA may exchange kernel and lhs
    return 2 * _tiles(call) * max(taps * call.i / LANES, 1)


def _dense(call: Call) -> float:
    """The same, without zeros."""
    return _multiplied(call) / math.prod([axis.stride for axis in call.axes])


def _tiles(call: Call, phases: int = 1) -> float:
    """Of the output, with channels or images as lanes; some phases may be channels."""
    out, channels = math.ceil(call.extent("out") / phases), call.g * call.j * phases
    as_lanes = (call.n * out, channels), (out * channels, call.n)
    return min([rows * math.ceil(lanes / LANES) / ROWS for rows, lanes in as_lanes])


def _padding(size: int) -> float:
    """How many times as large rows of lanes are that hold so many."""
    return math.ceil(size / LANES) * LANES / size


def _slow(call: Call) -> bool:
    return len(call.axes) == 1 and call.n <= FEW


def _cropped(call: Call) -> bool:
    """Whether some outputs meet no tap."""
    return any(axis.taps < axis.stride for axis in call.axes)


TPU = Tpu()
