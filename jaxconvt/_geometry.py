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

from typing import Any, NamedTuple

# An axis size: an int, or a symbolic dimension of `jax.export`.
Size = Any


def dilate(size: Size, by: int) -> Size:
    """Size of an axis of `size` elements with `by - 1` holes between neighbours."""
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


# Forward padding of one axis, from here on: 'SAME', 'SAME_LOWER', 'VALID' or a pair.
Padding = str | tuple[int, int]


def _low(name: str, total: int) -> int:
    """The low share of `total` elements of padding: the odd one is low in SAME_LOWER."""
    return -(-total // 2) if name == "SAME_LOWER" else total // 2


def transposed_pads(padding: Padding, e: int, s: int) -> tuple[int, int]:
    """(lo, hi) that transpose a forward convolution, at the size jax.lax gives the result.

    Of the sizes that the forward convolution takes to `i`, that is `i*s` for SAME,
    the largest up to `(i-1)*s + max(e, s)` for VALID, the smallest for a pair.
    """
    if isinstance(padding, tuple):
        return e - 1 - padding[0], e - 1 - padding[1]
    if padding == "VALID":
        return e - 1, max(e, s) - 1
    lo = e - 1 - _low(padding, max(e - s, 0))
    return lo, e + s - 2 - lo


def sized_pads(padding: Padding, i: int, e: int, s: int, o: int) -> tuple[int, int]:
    """(lo, hi) that transpose the forward convolution from size `o` to size `i`."""
    if isinstance(padding, tuple):
        first = padding[0]
    elif padding == "VALID":
        first = 0
    else:
        first = _low(padding, max((i - 1) * s + e - o, 0))
    lo = e - 1 - first
    return lo, o - (dilate(i, s) + lo - e + 1)


def forward_sizes(padding: Padding, i: int, e: int, s: int) -> range:
    """The sizes that the forward convolution takes to size `i`."""
    if padding in ("SAME", "SAME_LOWER"):
        return range(max((i - 1) * s + 1, 0), i * s + 1)
    total = sum(padding) if isinstance(padding, tuple) else 0
    least = (i - 1) * s + e - total if i else 0
    return range(max(least, 0), max(i * s + e - total, 0))


def plain_pads(name: str, e: int) -> tuple[int, int]:
    """(lo, hi) of a stride-1 convolution padded 'SAME', 'SAME_LOWER' or 'VALID'."""
    total = 0 if name == "VALID" else e - 1
    lo = _low(name, total)
    return lo, total - lo
