"""What a lowering is asked to make, and how much work that is: plain data, no arrays.

A `Spec` is one transposed convolution as the user wrote it. A `Call` is one face of it, in the
letters of `_primitive`. A `Choice` is
a lowering and the form that it takes. A `Work` counts what a lowering does in that form. `_costs`
has what these counts cost on each platform.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxconvt._geometry import Axes, Size

Ints = tuple[int, ...]


class Spec(NamedTuple):
    """One transposed convolution, whatever its arrays hold: hashable, immutable."""

    axes: Axes
    dimension_numbers: lax.ConvDimensionNumbers
    groups: int
    transpose_kernel: bool
    # The axes again, as `lax.conv_general_dilated` wants them.
    strides: Ints
    pads: tuple[tuple[int, int], ...]
    rhs_dilation: Ints


def spec_of(
    axes: Axes, dimension_numbers: lax.ConvDimensionNumbers, groups: int, transpose_kernel: bool
) -> Spec:
    return Spec(
        axes,
        dimension_numbers,
        groups,
        transpose_kernel,
        tuple([axis.stride for axis in axes]),
        tuple([(axis.lo, axis.hi) for axis in axes]),
        tuple([axis.dilation for axis in axes]),
    )


# Faces of the trilinear form (see `_primitive`): the value and the two gradients.
FACES = ("out", "lhs", "rhs")

# The two operands of each face, in order.
OPERANDS = {"out": ("lhs", "rhs"), "lhs": ("out", "rhs"), "rhs": ("lhs", "out")}

# The letters after the spatial axes, of each array.
LETTERS = {"lhs": "gi", "rhs": "gij", "out": "gj"}


class Choice(NamedTuple):
    """A lowering, by name, and its form."""

    name: str
    gathered: int = 0  # how many leading spatial axes are in gather form (see `_views`)
    chunks: int = 1  # of the batch, one after the other

    def __str__(self) -> str:
        axes = "axis" if self.gathered == 1 else f"{self.gathered} axes"
        gathered = f" with the first {axes} gathered" if self.gathered else ""
        return self.name + gathered + (f" in {self.chunks} chunks" if self.chunks > 1 else "")


class Call(NamedTuple):
    """One face: its axes, the sizes of its letters, its dtype, and where it runs."""

    face: str
    axes: Axes
    n: int
    g: int
    i: int
    j: int
    dtypes: tuple[Any, Any, Any]  # of lhs, rhs and output, as the user has them
    itemsize: int  # bytes of an element that is multiplied; of complex numbers, of a part
    kind: str  # of dtype: "float32" (and narrower), "bfloat16", "float64" or "integer"
    flipped: bool  # whether rhs is stored as the kernel of the forward convolution: reversed
    dimension_numbers: lax.ConvDimensionNumbers  # of the user's arrays
    single_device: bool  # whether no compiler divides the arrays among devices
    platform: str

    @property
    def taps_last(self) -> bool:
        """Whether the user's rhs has its spatial axes last, as PyTorch's has."""
        o, i, *spatial = self.dimension_numbers.rhs_spec
        return min(spatial, default=-1) > max(o, i)

    @property
    def static(self) -> bool:
        """Whether all sizes are numbers, and none is a symbolic one of `jax.export`."""
        return all(type(size) is int for size in (self.g, self.i, self.j))

    @property
    def empty(self) -> bool:
        """Whether lhs, rhs or the output has no elements; a symbolic size counts as some."""
        extents = [size for a in self.axes for size in (a.size, a.taps, a.out)]
        return 0 in (self.n, self.g, self.i, self.j, *extents)

    @property
    def convolvable(self) -> bool:
        """Whether XLA may be given convolutions, and not only products of matrices.

        XLA divides a convolution among devices wrongly, or ends the process, if there are as many
        groups as devices, or if rows are divided. On CPU no divided call gets one, as products
        are as fast. On GPU XLA has no convolutions of integers, and ends the process on more than
        three spatial dimensions. A convolution can't have a symbolic number of groups. JAX 0.5 is
        wrong about groups where there are no spatial dimensions.
        """
        divided = not self.single_device and (self.g != 1 or self.platform == "cpu")
        known = self.kind != "integer" and len(self.axes) < 4
        possible = known or self.platform not in ("cuda", "rocm")
        return type(self.g) is int and not divided and possible and len(self.axes) > 0

    def folded(self, least: int = 0) -> "Call":
        """This call with its first axes as images of the batch, as far as each has one tap.

        At least so many axes are left. On such an axis, without stride and padding, every element
        meets those at its own place. Rows that a compiler may divide among devices stay rows. A
        GPU's library takes images of 3-D with channels first as they are, but those of 2-D with
        channels last: they stay, too.
        """
        gpu = self.platform in ("cuda", "rocm")
        if not self.single_device or (gpu and (self.turned("lhs") or self.turned("out"))):
            return self
        in_place = [axis[1:] == (1, 1, axis.dilation, 0, 0) for axis in self.axes]
        count = min((*in_place, False).index(False), max(len(self.axes) - least, 0))
        if not count:
            return self
        images = math.prod([axis.size for axis in self.axes[:count]])
        return self.without_axes(count)._replace(n=self.n * images)

    def without_axes(self, count: int) -> "Call":
        """This call without its first spatial axes."""
        specs = []
        for batch, channels, *spatial in self.dimension_numbers:
            left = batch, channels, *spatial[count:]
            specs.append(tuple([sorted(left).index(at) for at in left]))
        numbers = lax.ConvDimensionNumbers(*specs)
        return self._replace(axes=self.axes[count:], dimension_numbers=numbers)

    @property
    def ends_the_process(self) -> bool:
        """Whether XLA may not be given this face as a convolution over zeros between elements.

        XLA exchanges the operands where the kernel is the larger one. It takes an axis with a
        kernel of two and a stride of two, without padding, for one of groups. Then it makes a
        convolution that is none (jaxlib 0.5, 0.10 and 0.12).
        """
        larger = any(axis.taps > axis.size for axis in self.axes)
        taken = any(a[1:] == (2, 2, 1, 0, 0) for a in self.axes)
        return self.face == "out" and larger and taken

    @property
    def may_sum_parts(self) -> bool:
        """Whether this face, if it is the lhs gradient, may be made as a sum of several parts.

        Devices that divide j sum each part among themselves, so there they make only one.
        """
        return self.face != "lhs" or self.single_device

    @property
    def strided(self) -> bool:
        return any(axis.stride > 1 for axis in self.axes)

    @property
    def one_pixel(self) -> bool:
        """Whether lhs is one pixel: what is left is a product of matrices."""
        return bool(self.axes) and all(axis.size == 1 for axis in self.axes)

    @property
    def kernel_dilated(self) -> bool:
        return any(axis.dilation > 1 for axis in self.axes)

    def extent(self, what: str) -> int:
        """The product over the axes of "size", "taps" or "out"."""
        return math.prod([int(getattr(axis, what)) for axis in self.axes])

    @property
    def contributions(self) -> int:
        """Elements of Y or U (see `_lowerings.col2im`), with no axis gathered."""
        return self.n * self.g * self.extent("size") * self.extent("taps") * self.j

    @property
    def flops(self) -> float:
        """Two for each multiply-add, without those by zeros between elements of lhs."""
        return 2.0 * self.contributions * self.i

    @property
    def stuffed_flops(self) -> float:
        """The same, with those by zeros between elements of lhs."""
        return 2.0 * self.n * self.g * self.extent("out") * self.extent("taps") * self.i * self.j

    @property
    def stuffed_bytes(self) -> int:
        """Of lhs with zeros between its elements and around them."""
        padded = math.prod([max(int(axis.padded), 1) for axis in self.axes])
        return self.itemsize * self.n * self.g * self.i * padded

    def elements(self, array: str) -> int:
        """Of "lhs", "rhs" or "out"."""
        if array == "rhs":
            return self.g * self.i * self.j * self.extent("taps")
        channels, extent = (self.i, "size") if array == "lhs" else (self.j, "out")
        return self.n * self.g * channels * self.extent(extent)

    def bytes_of(self, array: str) -> int:
        """Bytes of "lhs", "rhs" or "out" as it is multiplied."""
        return self.itemsize * self.elements(array)

    @property
    def lhs_bytes(self) -> int:
        return self.bytes_of("lhs")

    @property
    def rhs_bytes(self) -> int:
        return self.bytes_of("rhs")

    @property
    def out_bytes(self) -> int:
        return self.bytes_of("out")

    @property
    def bytes(self) -> int:
        """Of lhs, rhs and output, as they are multiplied."""
        return self.lhs_bytes + self.rhs_bytes + self.out_bytes

    def held(self, array: str) -> int:
        """Bytes of "lhs", "rhs" or "out" as the user has it."""
        dtype = dict(zip(("lhs", "rhs", "out"), self.dtypes, strict=True))[array]
        return self.elements(array) * int(jnp.dtype(dtype).itemsize)

    def converted(self, array: str) -> bool:
        """Whether the user has "lhs" or "out" in another dtype than it is multiplied in."""
        return self.held(array) != self.bytes_of(array)

    def turned(self, array: str) -> bool:
        """Whether the user has "lhs" or "out" other than with its channels last."""
        dn = self.dimension_numbers
        batch, channels, *spatial = dn.lhs_spec if array == "lhs" else dn.out_spec
        return (batch, *spatial, channels) != tuple(range(len(spatial) + 2))

    def convolved(self, moved: bool = False) -> int:
        """Bytes of the copies that XLA's CPU backend makes of images around one convolution.

        With `moved`, images are also cropped before it, or padded after it.
        """
        if self.platform != "cpu":
            return 0
        if self.face == "rhs":  # whose features are the batch
            return self.lhs_bytes + self.out_bytes
        operand, result = ("lhs", "out") if self.face == "out" else ("out", "lhs")
        sizes = {
            array: self.bytes_of(array)
            for array in (operand, result)
            if moved or self.turned(array) or self.converted(array)
        }
        if sizes.get(operand, 0) <= self.held(result):  # it may lie where the result will be
            sizes.pop(operand, None)
        return sum(sizes.values())

    @property
    def parts(self) -> int:
        """How many real products a product is: see `_numerics.complex_by_parts`."""
        complex_ = any(real_part(dtype) is not None for dtype in self.dtypes)
        return 3 if complex_ and self.platform == "cpu" else 1


class Convolution(NamedTuple):
    """Convolutions as XLA is given them; several of one form are counted together."""

    # "forward" (no operand has zeros between its elements), "dilated" (lhs has zeros between its
    # elements), "kernel gradient" (the window is the image), or one that cuDNN has a call for:
    # "input gradient" or "filter gradient".
    form: str
    flops: float  # as `Call.flops`
    windows: int  # bytes of all windows together, see `window_bytes`
    channels: tuple[int, int]  # of lhs and of the output, or what takes their places, in a group
    calls: int = 1


class Work(NamedTuple):
    """What a lowering does in one face, in one chunk of the batch, besides reading and writing."""

    convolution: Convolution | None = None
    products: int = 0  # how many products of matrices
    product_flops: float = 0.0  # of all products together
    sums: int = 0  # how many terms, in sums that are written out
    sum_flops: float = 0.0  # of all terms together
    patches: int = 0  # bytes of copies of lhs
    made: int = 0  # bytes of Y or U (see `_lowerings.col2im`)
    # Of one product, in a group: the columns of lhs or its patches, and those of Y or U.
    columns: tuple[int, int] = (0, 0)
    slices: int = 1  # of the output that Y or U is made of, at most
    interleaved: bool = False  # whether phases of the output, or its cotangent's, are apart
    phases: int = 1  # of the last axis, as channels of one convolution
    cropped: int = 0  # bytes of images that are cropped before, or padded after
    rearranged: int = 0  # bytes of operands put in another order
    operations: int = 0  # how many are started, beyond one
    temp: int = 0  # bytes of all intermediates, about as XLA was seen to allocate them
    view: tuple[Any, ...] = ()  # how it rearranges the cotangent: two gradients may share that
    viewed: int = 0  # bytes of the cotangent so rearranged


def window_bytes(count: int, channels: int, itemsize: int) -> int:
    """Bytes of rows of channels: 24 more to find each, and twice as many if vectors don't fit."""
    return count * (channels * itemsize * (2 if channels % 4 else 1) + 24)


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
    dtypes: tuple[Any, Any, Any],
    flipped: bool,
    dimension_numbers: lax.ConvDimensionNumbers,
    single_device: bool,
    platform: str,
    n: Size,
    g: Size,
    i: Size,
    j: Size,
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
    return Call(
        face=face,
        axes=axes,
        n=n,
        g=g,
        i=i,
        j=j,
        dtypes=dtypes,
        itemsize=dtype.itemsize,
        kind=kind,
        flipped=flipped,
        dimension_numbers=dimension_numbers,
        single_device=single_device,
        platform=platform,
    )
