"""Which lowering, by cost: an estimate of time for each, from shapes, dtype and platform alone.

time = flops * per_flop + bytes * per_byte + calls * per_call, with a table of constants per
platform; what XLA does badly on CPU has a factor or two in the formula. Picked is, of those
whose intermediates fit and whose estimates can't be told from the least, the one with the
least intermediates; the two gradients of one call are picked as a pair, since alike they
share work. Where a platform has no table, and on TPU, where XLA handles `lhs_dilation`
natively and nobody has measured otherwise, everything is "dilated".
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxconvt._geometry import Axes, phase_groups, runs


def _size(axes: Axes, what: str) -> int:
    return math.prod([int(getattr(a, what)) for a in axes])


IMPLEMENTATIONS = ("dilated", "col2im", "polyphase", "auto")

TERMS = 32  # of a sum written out: XLA compiles long ones slowly, and on CPU wrongly
SMALL = 32 * 2**20  # bytes of intermediates that are never too many
CHUNK = 12 * 2**20  # bytes of intermediates that a chunk of the batch is to have
CACHE = 2**20  # bytes of a kernel that stay in a core's cache, with what it is applied to
LINE = 64  # bytes: shorter rows of channels are taken apart no faster than these

# Faces of the trilinear form (see `_bilinear`): the value and the two gradients.
FACES = ("out", "lhs", "rhs")


@dataclass(frozen=True)
class Rates:
    """Seconds per unit, on one platform, for float32."""

    measured: str  # on what, or "" if these are guesses from XLA's source
    width: int  # bytes of an element of intermediates, at least
    trusted: float  # ratio of two estimates that tells
    call: float  # to start any operation
    gemm: float  # per flop of a matrix product
    bfloat16: float  # times as much in bfloat16, of what the operands are widened to
    conv1: float  # per flop of a stride-1 or strided convolution in 1-D
    conv: float  # the same, in 2-D
    conv3: float  # the same, of 3 and more spatial dimensions
    grouped: float  # times as much if there are groups
    elementwise: float  # per flop of what is no product of matrices
    packed1: float  # per byte of the windows that a convolution gathers in 1-D
    packed: float  # the same, in 2-D
    packed3: float  # the same, of 3 and more spatial dimensions
    weights: float  # per byte of the kernel that one in 2-D puts in order
    large: float  # times as much per flop in 2-D where the kernel is larger than `CACHE`
    dilated: float  # per flop of XLA's transposed convolution ...
    stuffed: float  # ... and per flop on a zero-stuffed lhs, where it is run as that
    stuffed3: float  # the same, of 3 and more spatial dimensions, or with groups
    narrow: int  # output channels under which those flops cost in proportion more
    kernel: float  # per flop of XLA's kernel gradient of it
    byte: float  # of operands and result
    copied: float  # per byte of patches of lhs
    folded: float  # per byte of Y (see `_col2im`), or of another intermediate of the value
    unfolded: float  # per byte of U, or of another intermediate of a gradient
    serial: float  # times as much for those in a loop over chunks, where one thread does some
    shared: float  # per byte of U, if both gradients use one, saved
    fresh: float  # per byte of intermediates that are too large to be reused
    reused: int  # how large that is


CPU = Rates(
    measured="2 cores each of AMD EPYC (Zen 3) and Intel Xeon (AMX), jaxlib 0.10.2",
    width=4,  # bfloat16 and float16 are converted first
    trusted=1.05,
    call=17e-6,
    gemm=0.66e-11,
    bfloat16=0.5,  # between CPUs that have units for it and those that have none
    conv1=0.6e-11,
    conv=1.4e-11,
    conv3=0.95e-11,
    grouped=8.0,
    elementwise=2e-10,
    packed1=0.8e-10,
    packed=0.8e-10,
    packed3=5.5e-10,
    weights=0.0,
    large=1.0,
    dilated=0.9e-11,
    stuffed=0.0,
    stuffed3=1.4e-10,
    narrow=16,
    kernel=1e-9,
    byte=0.75e-10,
    copied=0.8e-10,
    folded=1.2e-10,
    unfolded=1e-10,
    serial=1.4,
    shared=1e-10,
    fresh=4.7e-10,
    reused=48 * 2**20,
)

# From 0.11 on XLA's convolutions in 2-D make no windows, but put the kernel in order each time.
CPU_0_11 = replace(
    CPU,
    measured="2 cores of Intel Xeon (AMX), jaxlib 0.12.0",
    bfloat16=0.4,
    shared=1.5e-10,
    conv=0.4e-11,
    packed=0.2e-10,
    weights=1e-9,
    large=2.5,
)

# Not measured yet. XLA runs a dilated convolution as a forward one over a zero-stuffed lhs,
# unless its kernel is an explicit reverse, and its kernel gradient never as a backward-filter
# call; see README, "GPU and TPU".
GPU = Rates(
    measured="",
    width=1,
    trusted=1.25,
    call=10e-6,
    gemm=1 / 40e12,
    bfloat16=1.0,
    conv1=1 / 30e12,
    conv=1 / 30e12,
    conv3=1 / 20e12,
    grouped=2.0,
    elementwise=1 / 2e12,
    packed1=1 / 2e12,
    packed=1 / 2e12,
    packed3=1 / 2e12,
    weights=0.0,
    large=1.0,
    dilated=0.0,
    stuffed=1 / 30e12,
    stuffed3=1 / 20e12,
    narrow=32,
    kernel=1 / 2e11,
    byte=1 / 1.5e12,
    copied=2 / 1.5e12,
    folded=2 / 1.5e12,
    unfolded=2 / 1.5e12,
    serial=1.0,
    shared=0.0,
    fresh=0.0,
    reused=0,
)

RATES: dict[str, Rates | None] = {
    "cpu": CPU_0_11 if jax.__version_info__ >= (0, 11) else CPU,
    "cuda": GPU,
    "rocm": GPU,
    "tpu": None,
}

# What differs for other dtypes than float32: on CPU XLA has fast convolutions of float64 in 2-D
# alone, if lhs is not dilated, and none of integers; the rest are loops. Measured on 2 cores of
# AMD EPYC (Zen 5), jaxlib 0.12. Complex numbers are three products of real ones (`_bilinear`).
_LOOPS = dict(conv1=2e-10, conv3=2e-10, dilated=2e-10)
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "integer": dict(conv=2e-10, **_LOOPS),
        "float64": dict(gemm=1.3e-11, kernel=2e-9, **_LOOPS),
    },
}


def rates_of(platform: str, kind: str) -> Rates:
    """Where nothing is known of a platform the CPU's."""
    rates = RATES.get(platform) or RATES["cpu"] or CPU
    return replace(rates, **OTHERS.get(platform, {}).get(kind, {}))


def platform_of(backend: str) -> str:
    """The platform that JAX lowers for on a backend, as `RATES` has it."""
    return {"gpu": "cuda"}.get(backend, backend)


class Choice(NamedTuple):
    """A lowering of one face."""

    name: str
    gathered: int = 0  # of "col2im": how many leading spatial axes are in gather form
    chunks: int = 1  # of the batch, one after the other; not of what is a convolution

    def __str__(self) -> str:
        axes = "axis" if self.gathered == 1 else f"{self.gathered} axes"
        gathered = f" with the first {axes} gathered" if self.gathered else ""
        return self.name + gathered + (f" in {self.chunks} chunks" if self.chunks > 1 else "")


class Call(NamedTuple):
    """What a cost depends on: one face, its axes, the sizes of its letters, bytes an element."""

    face: str
    axes: Axes
    n: int
    g: int
    i: int
    j: int
    itemsize: int
    kind: str  # of dtype: "float32" (and narrower), "bfloat16", "float64" or "integer"
    flipped: bool  # whether rhs is an explicit reverse of what the user gave
    alone: bool  # whether one device has all of the batch, so that it may be chunked

    @property
    def static(self) -> bool:
        """Whether all sizes are numbers, and none is a symbolic one of `jax.export`."""
        return all(type(size) is int for size in (self.g, self.i, self.j))

    @property
    def products_only(self) -> bool:
        """Whether convolutions are out of the question: "col2im" alone makes none.

        XLA divides a convolution among devices wrongly, or not at all, where it has as many
        groups as there are devices; and it has no symbolic number of groups.
        """
        return type(self.g) is not int or (self.g > 1 and not self.alone)

    @property
    def depthwise(self) -> bool:
        """Whether "col2im" is a sum over taps, and no products of matrices: see `_depthwise`."""
        one_each = type(self.g) is int and self.g > 1 and self.i == 1
        return one_each and _terms(self.axes) <= TERMS

    @property
    def contributions(self) -> int:
        """Of all taps: elements of Y or U, see `_col2im`, with no axis gathered."""
        return self.n * self.g * _size(self.axes, "size") * _size(self.axes, "taps") * self.j

    @property
    def flops(self) -> float:
        return 2.0 * self.contributions * self.i

    @property
    def stuffed_flops(self) -> float:
        out = self.n * self.g * _size(self.axes, "out")
        return 2.0 * out * _size(self.axes, "taps") * self.i * self.j

    @property
    def lhs_bytes(self) -> int:
        return self.itemsize * self.n * self.g * self.i * _size(self.axes, "size")

    @property
    def rhs_bytes(self) -> int:
        return self.itemsize * self.g * self.i * self.j * _size(self.axes, "taps")

    @property
    def out_bytes(self) -> int:
        return self.itemsize * self.n * self.g * self.j * _size(self.axes, "out")

    @property
    def bytes(self) -> int:
        """Of lhs, rhs and output."""
        return self.lhs_bytes + self.rhs_bytes + self.out_bytes


@lru_cache(maxsize=4096)
def _terms(axes: Axes) -> int:
    """Of the sums of `_depthwise`, of all outputs together."""
    return math.prod([sum([len(p.shifts) for p in phase_groups(axis)]) for axis in axes])


def windows(at: Call, channels: int) -> int:
    """Bytes of every element's taps, of so many channels, as `_packed` counts them."""
    points = at.n * at.g * _size(at.axes, "size") * _size(at.axes, "taps")
    return _packed(points, channels, at.itemsize)


def dense_windows(at: Call) -> int:
    """The same for the dense convolutions of "polyphase"."""
    total = 0
    for group in itertools.product(*[phase_groups(a) for a in at.axes]):
        shifts = math.prod([len(p.shifts) for p in group])
        phases = math.prod([p.seen.taps for p in group])
        if at.face == "out":
            points, channels = math.prod([p.seen.size for p in group]), at.i
        else:
            points, channels = _size(at.axes, "size"), at.j * phases
        total += _packed(at.n * at.g * points * shifts, channels, at.itemsize)
    return total


def _packed(count: int, channels: int, itemsize: int) -> int:
    """Bytes of rows of channels; to find one costs some, and vectors have to fit in it."""
    return count * (channels * itemsize * (2 if channels % 4 else 1) + 24)


class Gemm(NamedTuple):
    """What a GEMM with some axes gathered makes on the way."""

    products: int
    patches: int  # bytes
    seen: int  # bytes: Y or U, see `_col2im`; none where those are the output as it is
    temp: int  # bytes, about what XLA was seen to allocate for all


def gemm(at: Call, gathered: int) -> Gemm:
    products = patches = seen = 0
    width = max(at.itemsize, 4) if at.face == "out" else at.itemsize  # Y is summed in float32
    scattered = at.axes[gathered:]
    for group in itertools.product(*[phase_groups(a) for a in at.axes[:gathered]]):
        points = at.n * at.g * math.prod([p.seen.size for p in group])
        points *= _size(scattered, "size")
        shifts = math.prod([len(p.shifts) for p in group])
        phases = math.prod([p.seen.taps for p in group])
        products += 1
        patches += points * shifts * at.i * at.itemsize if gathered else 0
        seen += points * phases * _size(scattered, "taps") * at.j * width
    temp = patches + at.rhs_bytes
    if at.face == "rhs" and not gathered:
        temp += at.lhs_bytes  # transposed
    if any(len(runs(a)) > 1 for a in scattered):
        temp += seen * (4 if at.face == "out" else 3) // 2
    elif len(at.axes) > 1 or gathered:
        temp += seen
    else:
        seen = 0
    return Gemm(products, patches, seen, temp)


def candidates(at: Call) -> list[Choice]:
    """The lowerings of the face to pick from, in order of preference among equals."""
    if at.face == "lhs" and not at.alone:
        # What else there is makes several results of the size of lhs or more, and devices that
        # divide j then sum all of them over each other.
        return [Choice("col2im")] if at.products_only else [Choice("dilated"), Choice("col2im")]
    # With all axes gathered the kernel gradient is that of "polyphase".
    most = 0 if at.depthwise else len(at.axes) - (at.face == "rhs")
    gathered = [Choice("col2im", axes) for axes in range(1, most + 1)]
    whole = [Choice("dilated"), Choice("col2im"), *gathered, Choice("polyphase")]
    if at.products_only:
        return [choice for choice in whole if choice.name == "col2im"]
    chunked = [choice._replace(chunks=_chunks(at, choice)) for choice in whole]
    return whole + [choice for choice in chunked if choice.chunks > 1]


def _chunks(at: Call, choice: Choice) -> int:
    """How many chunks of the batch bring the intermediates of products down to `CHUNK`."""
    if not at.alone or not products(at, choice):
        return 1
    largest = CHUNK + at.rhs_bytes  # which is as large in each
    for chunks in _divisors(at.n):
        if temp(at, choice._replace(chunks=chunks)) <= largest:
            return chunks
    return at.n


@lru_cache(maxsize=64)
def _divisors(n: int) -> list[int]:
    small = [i for i in range(1, math.isqrt(n) + 1) if n % i == 0]
    return sorted({*small, *[n // i for i in small]})


def products(at: Call, choice: Choice) -> bool:
    """Whether the face is made of products of matrices (see `_col2im`)."""
    if choice.name == "polyphase":
        return at.face == "rhs"
    return choice.name == "col2im" and not at.depthwise


def seconds(at: Call, choice: Choice, rates: Rates) -> float:
    """The estimate."""
    if choice.chunks > 1:
        copies = "copied", "folded", "unfolded"
        inside = replace(rates, **{name: getattr(rates, name) * rates.serial for name in copies})
        return choice.chunks * seconds(*_chunk(at, choice), inside)
    n = len(at.axes)
    strided = any(a.stride > 1 for a in at.axes)
    dilated = any(a.dilation > 1 for a in at.axes)
    moved = rates.folded if at.face == "out" else rates.unfolded
    narrow = 1.0 if at.face == "out" else max(LINE / max(at.j * at.itemsize, 1), 1.0)
    conv, pack = (
        (rates.conv1, rates.packed1),
        (rates.conv, rates.packed),
        (rates.conv3, rates.packed3),
    )[min(max(n, 1), 3) - 1]
    conv *= rates.grouped if at.g > 1 else 1.0

    def convolution(packed: int, kernels: int = 1) -> float:
        flop, weights = conv, 0.0
        if n == 2:
            flop *= rates.large if at.rhs_bytes > kernels * CACHE else 1.0
            weights = at.rhs_bytes * rates.weights
        return at.flops * flop + packed * pack + weights

    time = rates.call + at.bytes * rates.byte
    if choice.name == "dilated":
        if at.face == "rhs":
            if strided or dilated or n != 1 or at.g > 1:
                return time + at.flops * rates.kernel
            return time + at.flops * conv * max(4 * rates.narrow / max(at.j, 1), 1.0)
        if at.face == "lhs":
            # The kernel is flipped and transposed first.
            return time + convolution(windows(at, at.j)) + at.rhs_bytes * moved
        # A plain convolution, or what cuDNN has a call for.
        plain = rates.stuffed and at.flipped and not dilated
        if at.g == 1 and (plain or (not strided and n < 3)):
            return time + convolution(windows(at, at.i))
        if at.g > 1 or n > 2 or rates.stuffed:
            flop = rates.stuffed if n < 3 and rates.stuffed else rates.stuffed3
            return time + at.stuffed_flops * flop * max(rates.narrow / max(at.j, 1), 1.0)
        slow = 4 if at.j < 4 else 1
        if n > 1 and (dilated or any(a.taps > a.size for a in at.axes)):
            slow *= 10  # no GEMM, but a loop
        folded = at.contributions * at.itemsize  # it is a GEMM and a fold, one image at a time
        time += at.flops * rates.dilated * slow + (folded + at.rhs_bytes / 2) * moved
        return time + _fresh(folded, rates)
    if choice.name == "polyphase" and at.face != "rhs":
        if strided:
            time += (at.lhs_bytes + at.out_bytes * narrow) * moved
        convolutions = math.prod([len(phase_groups(a)) for a in at.axes])
        # Kernels are taken apart, and then put in the order that a convolution wants.
        time += convolution(dense_windows(at), convolutions) + 2 * at.rhs_bytes * moved
        return time + convolutions * rates.call
    if at.depthwise and choice.name == "col2im":  # see `_depthwise`
        return time + 4 * rates.call + at.flops * rates.elementwise
    made = gemm(at, _gathered(at, choice))
    # Patches of lhs are also transposed for the kernel gradient.
    copied = rates.copied * (4 if at.face == "rhs" else 1)
    time += at.flops * rates.gemm * (rates.bfloat16 if at.kind == "bfloat16" else 1.0)
    time += made.patches * copied + (made.seen * narrow + at.rhs_bytes) * moved
    return time + 2 * made.products * rates.call + _fresh(made.temp, rates)


def _fresh(size: int, rates: Rates) -> float:
    return size * rates.fresh if size > rates.reused else 0.0


def temp(at: Call, choice: Choice) -> int:
    """Bytes of intermediates, about."""
    if products(at, choice):
        part, whole = _chunk(at, choice)
        return gemm(part, _gathered(part, whole)).temp
    if choice.name == "polyphase" and any(a.stride > 1 for a in at.axes):
        return at.lhs_bytes + at.out_bytes  # what is interleaved
    return 0


def _chunk(at: Call, choice: Choice) -> tuple[Call, Choice]:
    """One chunk, as a call of its own."""
    return at._replace(n=at.n // choice.chunks), choice._replace(chunks=1)


def _shared(at: Call, choice: Choice) -> int:
    """Bytes that both gradients make, if both are lowered so; XLA makes them once."""
    alike = products(at, choice) and choice.chunks == 1
    return gemm(at, _gathered(at, choice)).seen if alike else 0


def _gathered(at: Call, choice: Choice) -> int:
    return len(at.axes) if choice.name == "polyphase" else choice.gathered


def estimates(at: Call, platform: str) -> dict[Choice, float]:
    """Seconds of each lowering."""
    rates = rates_of(platform, at.kind)
    at = _widened(at, rates)
    return {choice: seconds(at, choice, rates) for choice in candidates(at)}


def _widened(at: Call, rates: Rates) -> Call:
    return at._replace(itemsize=max(at.itemsize, rates.width))


def _fitting(at: Call, implementation: str, rates: Rates) -> dict[Choice, float]:
    """Those whose intermediates fit, with their estimates.

    Intermediates of four times the operands and the result fit, or more where that would cost
    more than half of the speed.
    """
    allowed = [c for c in candidates(at) if implementation in ("auto", c.name)]
    times = {choice: seconds(at, choice, rates) for choice in allowed}
    for limit in (4, 8, 16):
        allowance = max(limit * at.bytes, SMALL)
        fitting = {c: time for c, time in times.items() if temp(at, c) <= allowance}
        if fitting and min(fitting.values()) <= 2 * min(times.values()):
            return fitting
    least = min(times, key=lambda choice: temp(at, choice))
    return fitting or {least: times[least]}


@lru_cache(maxsize=4096)
def _choose(implementation: str, platform: str, at: Call, together: bool) -> Choice:
    if implementation == "auto" and RATES.get(platform) is None and not at.products_only:
        return Choice("dilated")
    rates = rates_of(platform, at.kind)
    faces = FACES[1:] if together and at.face != "out" else (at.face,)
    calls = [_widened(at, rates)._replace(face=face) for face in faces]

    def shared(picks: tuple[Choice, ...]) -> int:
        return _shared(calls[1], picks[1]) if len(picks) > 1 and len(set(picks)) == 1 else 0

    times = [_fitting(call, implementation, rates) for call in calls]
    costs = {}
    for picks in itertools.product(*times):
        time = sum([of[pick] for of, pick in zip(times, picks, strict=True)])
        if shared(picks):
            sizes = [temp(*each) for each in zip(calls, picks, strict=True)]
            time -= shared(picks) * rates.shared
            time += _fresh(sum(sizes), rates) - sum([_fresh(size, rates) for size in sizes])
        costs[picks] = time
    # Of those that it can't tell apart: alike, and then those with least intermediates.
    near = [picks for picks, time in costs.items() if time <= rates.trusted * min(costs.values())]
    best = min(near, key=lambda p: (shared(p) * rates.shared == 0, sum(map(temp, calls, p))))
    return best[faces.index(at.face)]


def real_part(dtype: Any) -> Any:
    """The dtype of the real part of complex numbers, None for others."""
    wide = jnp.dtype(dtype)
    complex_ = jnp.issubdtype(wide, jnp.complexfloating)
    return jnp.dtype(f"float{4 * wide.itemsize}") if complex_ else None


def describe(
    face: str,
    axes: Axes,
    *,
    dtype: Any,
    flipped: bool,
    alone: bool,
    n: Any,
    g: Any,
    i: Any,
    j: Any,
) -> Call:
    """A face with these sizes of its letters; a symbolic n, which all lowerings take, is one."""
    n = n if type(n) is int else 1
    dtype = jnp.dtype(dtype)
    dtype = real_part(dtype) or dtype
    kind = "float32"
    if dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.integer):
        kind = "integer"
    elif dtype in (jnp.bfloat16, jnp.float64):
        kind = dtype.name
    return Call(face, axes, n, g, i, j, dtype.itemsize, kind, flipped, alone)


def choose(implementation: str, platform: str, at: Call, together: bool) -> Choice:
    """The lowering of one face of one call.

    If both gradients are taken together they are chosen together: alike, they share work.
    """
    if implementation == "polyphase":
        # The same products of the same patches, of which a convolution would make no array.
        gathered = 0 if at.depthwise else len(at.axes)
        return Choice("col2im", gathered) if at.products_only else Choice(implementation)
    if not at.static:  # whatever works for every size
        dilated = implementation == "auto" and not at.products_only
        return Choice("dilated" if dilated else "col2im")
    return _choose(implementation, platform, at, together)
