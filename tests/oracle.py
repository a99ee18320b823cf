"""Transposed convolution in NumPy, from its definition: independent of JAX and of jaxconvt.

Along each spatial axis, for lhs size i, kernel size k, stride s and dilation d,

    out[p] = sum over a, b with a*s - b*d + lo == p of lhs[a] * rhs[b],   0 <= p < o

computed in float64, complex128 or int64 (which wraps, so that a cast to a narrower
integer is exact). The arguments are those of `jaxconvt.conv_transpose`; those that
cannot change the mathematics are accepted and ignored.
"""

import itertools
import math

import numpy as np


def _ceil(a, b):
    return math.ceil(a / b)


def _axis(i, k, s, d, padding, consistent, plain, output_padding, output_shape):
    """(lo, o) of one axis."""
    e = (k - 1) * d + 1
    if isinstance(padding, str):
        name = padding.upper()
        if output_shape is not None:
            forward = 0 if name == "VALID" else max((i - 1) * s + e - output_shape, 0)
            first = _ceil(forward, 2) if name == "SAME_LOWER" else forward // 2
            return e - 1 - first, output_shape
        if plain:
            lo, hi = {
                "SAME": ((e - 1) // 2, _ceil(e - 1, 2)),
                "SAME_LOWER": (_ceil(e - 1, 2), (e - 1) // 2),
                "VALID": (0, 0),
            }[name]
        elif name == "VALID":
            lo, hi = e - 1, s - 1 + max(e - s, 0)
        else:
            lo = e - 1 if s > e - 1 else _ceil(e + s - 2, 2)
            if name == "SAME_LOWER" and e > s:  # the forward pass pads its odd element low
                lo = e - 1 - _ceil(e - s, 2)
            hi = e + s - 2 - lo
    elif consistent:
        lo, hi = e - 1 - padding[0], e - 1 - padding[1]
        if output_shape is not None:
            return lo, output_shape
    else:
        lo, hi = padding
    dilated = (i - 1) * s + 1 if i else 0
    return lo, max(dilated + lo + hi + output_padding - e + 1, 0)


def channels_last(n):
    spatial = "".join(chr(ord("a") + j) for j in range(n))
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


def channels_first(n):
    """Return the layout of PyTorch and ONNX."""
    spatial = "".join(chr(ord("a") + j) for j in range(n))
    return f"NC{spatial}", f"OI{spatial}", f"NC{spatial}"


def _orders(dimension_numbers, n):
    """Axes of lhs as [N, C, spatial..], of rhs as [O, I, spatial..], of the output as lhs."""
    lhs, rhs, out = channels_last(n) if dimension_numbers is None else dimension_numbers
    if not isinstance(lhs, str):
        return list(lhs), list(rhs), list(out)
    spatial = [c for c in rhs if c not in "OI"]
    return (
        [lhs.index(c) for c in ["N", "C", *spatial]],
        [rhs.index(c) for c in ["O", "I", *spatial]],
        [out.index(c) for c in ["N", "C", *spatial]],
    )


class _Problem:
    """A call, with its operands as [n, i.., g, ci] and [k.., g, ci, co]."""

    def __init__(
        self,
        lhs_shape,
        rhs_shape,
        strides,
        padding,
        rhs_dilation=None,
        dimension_numbers=None,
        transpose_kernel=False,
        precision=None,
        preferred_element_type=None,
        use_consistent_padding=False,
        *,
        feature_group_count=1,
        output_padding=None,
        output_shape=None,
        implementation=None,
    ):
        n = len(lhs_shape) - 2
        self.n, self.groups, self.flip = n, feature_group_count, transpose_kernel
        self.lhs_order, self.rhs_order, self.out_order = _orders(dimension_numbers, n)
        self.sizes = [lhs_shape[axis] for axis in self.lhs_order[2:]]
        self.taps = [rhs_shape[axis] for axis in self.rhs_order[2:]]
        self.strides = list(strides)
        self.dilations = [1] * n if rhs_dilation is None else list(rhs_dilation)
        # jax.lax hands any other name on to a plain convolution, which knows no strides.
        plain = (
            isinstance(padding, str)
            and padding not in ("SAME", "VALID")
            and not use_consistent_padding
            and all(s == 1 for s in self.strides)
        )
        paddings = [padding] * n if isinstance(padding, str) else list(padding)
        axes = [
            _axis(
                self.sizes[j],
                self.taps[j],
                self.strides[j],
                self.dilations[j],
                paddings[j],
                use_consistent_padding,
                plain,
                output_padding[j] if output_padding is not None else 0,
                output_shape[j] if output_shape is not None else None,
            )
            for j in range(n)
        ]
        self.lows = [lo for lo, _ in axes]
        self.out_sizes = [o for _, o in axes]

    def read_lhs(self, lhs):
        """[n, i.., g, ci]."""
        lhs = np.transpose(lhs, [self.lhs_order[0], *self.lhs_order[2:], self.lhs_order[1]])
        return lhs.reshape(*lhs.shape[:-1], self.groups, lhs.shape[-1] // self.groups)

    def write_lhs(self, lhs):
        lhs = lhs.reshape(*lhs.shape[:-2], lhs.shape[-1] * self.groups)
        order = [self.lhs_order[0], *self.lhs_order[2:], self.lhs_order[1]]
        return np.transpose(lhs, np.argsort(order))

    def read_out(self, out):
        """[n, o.., g, co]."""
        out = np.transpose(out, [self.out_order[0], *self.out_order[2:], self.out_order[1]])
        return out.reshape(*out.shape[:-1], self.groups, out.shape[-1] // self.groups)

    def write_out(self, out):
        out = out.reshape(*out.shape[:-2], out.shape[-1] * self.groups)
        order = [self.out_order[0], *self.out_order[2:], self.out_order[1]]
        return np.transpose(out, np.argsort(order))

    def read_rhs(self, rhs):
        """[k.., g, ci, co]."""
        g, n = self.groups, self.n
        o_axis, i_axis, *spatial = self.rhs_order
        rhs = np.transpose(rhs, [*spatial, i_axis, o_axis])
        *taps, inputs, outputs = rhs.shape
        rhs = rhs.reshape(*taps, inputs, g, outputs // g)
        if not self.flip:  # [k.., ci, g*co]
            return np.moveaxis(rhs, n, n + 1)
        return np.moveaxis(np.flip(rhs, range(n)), n, n + 2)  # [k.., co, g*ci]

    def write_rhs(self, rhs):
        n = self.n
        rhs = np.flip(np.moveaxis(rhs, n + 2, n), range(n)) if self.flip else rhs
        rhs = rhs if self.flip else np.moveaxis(rhs, n + 1, n)
        rhs = rhs.reshape(*rhs.shape[: n + 1], rhs.shape[n + 1] * rhs.shape[n + 2])
        o_axis, i_axis, *spatial = self.rhs_order
        return np.transpose(rhs, np.argsort([*spatial, i_axis, o_axis]))

    def meetings(self):
        """For each tap, the lhs elements it moves into the output, and where they land."""
        for b in itertools.product(*map(range, self.taps)):
            a, p = [], []
            for j in range(self.n):
                landing = [
                    (x, x * self.strides[j] - b[j] * self.dilations[j] + self.lows[j])
                    for x in range(self.sizes[j])
                ]
                landing = [(x, y) for x, y in landing if 0 <= y < self.out_sizes[j]]
                a.append(np.array([x for x, _ in landing], int))
                p.append(np.array([y for _, y in landing], int))
            yield b, (slice(None), *np.ix_(*a)), (slice(None), *np.ix_(*p))


def exact(x):
    """`x` in the dtype to compute in."""
    x = np.asarray(x)
    if x.dtype.kind == "c":
        return x.astype(np.complex128)
    return x.astype(np.int64 if x.dtype.kind in "iu" or "int" in x.dtype.name else np.float64)


def conv_transpose(lhs, rhs, *args, **kwargs):
    """Return the result, in float64, complex128 or int64; of bools as of the numbers 0 and 1."""
    call = _Problem(np.shape(lhs), np.shape(rhs), *args, **kwargs)
    lhs, rhs = call.read_lhs(exact(lhs)), call.read_rhs(exact(rhs))
    out = np.zeros((lhs.shape[0], *call.out_sizes, call.groups, rhs.shape[-1]), lhs.dtype)
    for b, a, p in call.meetings():
        out[p] += np.einsum("...gi,gio->...go", lhs[a], rhs[b])
    return call.write_out(out)


def vjp(lhs, rhs, cotangent, *args, **kwargs):
    """Return the cotangents of lhs and rhs, in float64 or complex128."""
    call = _Problem(np.shape(lhs), np.shape(rhs), *args, **kwargs)
    lhs, rhs, u = call.read_lhs(exact(lhs)), call.read_rhs(exact(rhs)), exact(cotangent)
    u = call.read_out(u)
    dlhs, drhs = np.zeros_like(lhs), np.zeros_like(rhs)
    for b, a, p in call.meetings():
        dlhs[a] += np.einsum("...go,gio->...gi", u[p], rhs[b])
        drhs[b] += np.einsum("ngi,ngo->gio", _rows(lhs[a]), _rows(u[p]))
    return call.write_lhs(dlhs), call.write_rhs(drhs)


def _rows(x):
    """[.., g, c] as [n, g, c]."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
