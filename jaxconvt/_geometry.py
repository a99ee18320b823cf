"""Where everything lands: the geometry of one spatial axis, in plain numbers.

All spatial axes are independent. For one axis let `i` be the size of lhs, `k` the
number of taps (kernel size), `s` the stride, `d` the rhs dilation,
`e = (k-1)*d + 1` the effective kernel size (0 for `k = 0`), and `lo, hi` the padding
of the stride-dilated lhs, as `lax.conv_general_dilated` is given it. Then

    out[p] = sum over a, b with a*s - b*d + lo == p of lhs[a] * rhs[b]
    o      = max(dilate(i, s) + lo + hi - e + 1, 0)

with rhs as stored, not flipped, and `dilate(i, s) = (i-1)*s + 1` (0 for `i = 0`).

The *forward* convolution of an axis is the one whose gradient this is: it has stride
`s`, and padding `p` at the low end gives `lo = e-1-p` here.

Nothing in this module knows about JAX, arrays or arguments.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

# An axis size: an int, or a symbolic dimension of `jax.export`.
Size = Any
Shape = tuple[Size, ...]


def dilate(size: Size, by: int) -> Size:
    """Return the size of an axis of `size` elements with `by - 1` holes between neighbours."""
    return 0 if size == 0 else (size - 1) * by + 1


class Axis(NamedTuple):
    """One spatial axis of a transposed convolution."""

    size: Size  # i
    taps: Size  # k
    stride: int  # s
    dilation: int  # d
    lo: int
    hi: int

    @property
    def padded(self) -> Size:
        """Size of the stride-dilated, padded lhs; a negative one is an error."""
        return dilate(self.size, self.stride) + self.lo + self.hi

    @property
    def out(self) -> int:
        """Output size `o` (of an axis whose sizes are ints)."""
        size: int = self.padded - dilate(self.taps, self.dilation) + 1
        return max(size, 0)


# The spatial axes of a transposed convolution, in order.
Axes = tuple[Axis, ...]

# Forward padding of one axis, from here on: 'SAME', 'SAME_LOWER', 'VALID' or a pair.
Padding = str | tuple[int, int]


def _low(name: str, total: int) -> int:
    """Return the low share of `total` elements of padding: SAME_LOWER has the odd one there."""
    return -(-total // 2) if name == "SAME_LOWER" else total // 2


def transposed_pads(padding: Padding, e: int, s: int) -> tuple[int, int]:
    """Return (lo, hi) that transpose a forward convolution, at the size jax.lax gives the result.

    The forward convolution takes several sizes to `i`. jax.lax gives the result `i*s` for
    SAME, `(i-1)*s + max(e, s)` for VALID, and the smallest of those sizes for a pair.
    """
    if isinstance(padding, tuple):
        return e - 1 - padding[0], e - 1 - padding[1]
    if padding == "VALID":
        return e - 1, max(e, s) - 1
    lo = e - 1 - _low(padding, max(e - s, 0))
    return lo, e + s - 2 - lo


def sized_pads(padding: Padding, i: int, e: int, s: int, o: int) -> tuple[int, int]:
    """Return (lo, hi) that transpose the forward convolution from size `o` to size `i`."""
    if isinstance(padding, tuple):
        first = padding[0]
    elif padding == "VALID":
        first = 0
    else:
        first = _low(padding, max((i - 1) * s + e - o, 0))
    lo = e - 1 - first
    return lo, o - (dilate(i, s) + lo - e + 1)


def forward_sizes(padding: Padding, i: int, e: int, s: int) -> range:
    """Return the sizes that the forward convolution takes to size `i`."""
    if padding in ("SAME", "SAME_LOWER"):
        return range(max((i - 1) * s + 1, 0), i * s + 1)
    total = sum(padding) if isinstance(padding, tuple) else 0
    least = (i - 1) * s + e - total if i else 0
    return range(max(least, 0), max(i * s + e - total, 0))


def plain_pads(name: str, e: int) -> tuple[int, int]:
    """Return (lo, hi) of a stride-1 convolution padded 'SAME', 'SAME_LOWER' or 'VALID'."""
    total = 0 if name == "VALID" else e - 1
    lo = _low(name, total)
    return lo, total - lo


# Tap b sends lhs[a] to position a*s + lo - b*d. Write lo - b*d = q*s + r, 0 <= r < s. If the
# output is viewed as [m, r], lhs[a] lands in row a + q of phase r. All lowerings but "dilated"
# and "strided" take their geometry from these q and r.


class Run(NamedTuple):
    """Neighbouring taps of the flipped kernel that land in the same rows.

    In the flipped kernel phases ascend. So only the kernel is reversed, and no large array.
    """

    q: int  # rows down
    taps: int
    phase: int  # of the first tap; each tap after it lies `dilation` higher


class Phases(NamedTuple):
    """Taps that make one dense convolution of lhs with stride 1, into rows and phases."""

    axis: Axis  # of its own: its [a, b] lands in the output where [row, phase] does
    shifts: tuple[int, ...]  # each q of lhs[row - q]: descending, evenly spaced
    taps: tuple[tuple[int, ...], ...]  # the tap at [shift][phase]; phases ascend

    @property
    def step(self) -> int:
        """How far shifts are apart."""
        return self.shifts[0] - self.shifts[1] if len(self.shifts) > 1 else 1


def one_row(axis: Axis) -> Axis:
    """Return the axis; for a lhs of one pixel, an equal one whose output is a single row.

    The stride of one pixel makes no difference. With a stride as large as the output, all taps lie
    side by side in one row of phases.
    """
    wide = axis.size == 1 and axis.stride < axis.out
    return axis._replace(stride=axis.out) if wide else axis


def rows(axis: Axis) -> int:
    """Return the number of output rows m: `o` in units of the stride, rounded up."""
    axis = one_row(axis)
    return -(-axis.out // axis.stride)


@lru_cache(maxsize=4096)
def runs(axis: Axis) -> tuple[Run, ...]:
    """Return all taps of the flipped kernel, in order, as runs of equal q."""
    axis = one_row(axis)
    result: list[Run] = []
    for b in reversed(range(axis.taps)):
        q, r = divmod(axis.lo - b * axis.dilation, axis.stride)
        if result and result[-1].q == q:
            result[-1] = result[-1]._replace(taps=result[-1].taps + 1)
        else:
            result.append(Run(q, 1, r))
    return tuple(result)


@lru_cache(maxsize=4096)
def phase_groups(axis: Axis) -> tuple[Phases, ...]:
    """Return all taps, each in one group. There are at most three groups, however many the taps."""
    axis = one_row(axis)
    s, d = axis.stride, axis.dilation
    aligned = d == 1 or d % s == 0
    return _aligned_groups(axis) if aligned else _unaligned_groups(axis)


def _aligned_groups(axis: Axis) -> tuple[Phases, ...]:
    """Group neighbouring phases that the same shifts reach: their rows are the output's."""
    table: dict[int, dict[int, int]] = {}
    for b in range(axis.taps):
        q, r = divmod(axis.lo - b * axis.dilation, axis.stride)
        table.setdefault(r, {})[q] = b
    groups: dict[tuple[int, ...], list[int]] = {}
    for r in sorted(table):
        groups.setdefault(tuple(table[r]), []).append(r)
    return tuple(
        [
            Phases(
                _of_rows(axis, rows(axis), len(phases), 1, phases[-1]),
                qs,
                tuple([tuple([table[r][q] for r in phases]) for q in qs]),
            )
            for qs, phases in groups.items()
        ]
    )


def _unaligned_groups(axis: Axis) -> tuple[Phases, ...]:
    """Group taps b = u*c + v, with c = s / gcd(s, d) and 0 <= v < c.

    The taps of one v are `d*c` apart, which is whole rows, so that they make one phase. Its
    rows may lie above or below those of another phase. The first `taps % c` of the v have one
    u more than the others, and are a group of their own.
    """
    s, d = axis.stride, axis.dilation
    c = s // math.gcd(s, d)
    step = d * c // s
    most, over = -(-axis.taps // c), axis.taps % c
    ranges = [(most, 0, min(over or c, axis.taps))]
    if over and most > 1:
        ranges.append((most - 1, over, c))
    result = []
    for count, first, stop in ranges:
        lo, last = axis.lo - first * d, axis.lo - (stop - 1) * d
        # The rows that elements of lhs are moved to and that have a phase within the output.
        low = max(-(count - 1) * step, -(lo // s))
        high = min(axis.size - 1, (axis.out - 1 - last) // s)
        descending = range(stop - 1, first - 1, -1)
        result.append(
            Phases(
                _of_rows(axis, max(high - low + 1, 1), stop - first, d, lo + low * s),
                tuple([-low - u * step for u in range(count)]),
                tuple([tuple([u * c + v for v in descending]) for u in range(count)]),
            )
        )
    return tuple(result)


def _of_rows(axis: Axis, size: int, taps: int, dilation: int, lo: int) -> Axis:
    """Return an axis of these sizes whose output is that of `axis`."""
    bare = Axis(size, taps, axis.stride, dilation, lo, 0)
    return bare._replace(hi=axis.out - (bare.padded - dilate(taps, dilation) + 1))


class Trimmed(NamedTuple):
    """An axis without the elements of lhs and output that meet no others.

    The forward convolution can't have these.
    """

    axis: Axis
    first: int  # elements of lhs left out at the low end ...
    last: int  # ... and at the high one
    low: int  # elements of the output, likewise
    high: int

    @property
    def pads(self) -> tuple[int, int]:
        """Padding of the forward convolution.

        It may leave out up to `s - 1` elements that the convolution does not reach.
        """
        most = dilate(self.axis.taps, self.axis.dilation) - 1
        return most - self.axis.lo, max(most - self.axis.hi, 0)


def trim(axis: Axis) -> Trimmed:
    """Return what is left of an axis, with `0 <= lo < e` and `0 <= hi < e - 1 + s`."""
    s, e = axis.stride, dilate(axis.taps, axis.dilation)
    first, last = (-(min(pad, 0) // s) for pad in (axis.lo, axis.hi))
    if first + last >= axis.size:  # no element meets any
        return Trimmed(axis._replace(size=0, lo=0, hi=0), axis.size, 0, axis.out, 0)
    lo, hi = axis.lo + first * s, axis.hi + last * s
    low, high = max(lo - (e - 1), 0), hi - (e - 1) if hi - (e - 1) >= s else 0
    inner = axis._replace(size=axis.size - first - last, lo=lo - low, hi=hi - high)
    return Trimmed(inner, first, last, low, high)
