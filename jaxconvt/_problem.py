"""What a lowering is asked to make, and how much work that is: plain data, no arrays.

Words, as all modules use them:

    array         "lhs", "rhs" (the kernel) or "out"
    face          "value", "input_grad" or "kernel_grad": what is computed, of the other two arrays
    n, g, i, j    letters of the axes of arrays: batch, groups, and in one group the channels of
                  lhs and of the output
    a, b, p       an element of lhs, a tap of the kernel and an element of the output, on one axis
    m, r, q       a row and a phase of the output, p = m*s + r, and a shift by q rows
    Y, U          products before they are folded to the output; its cotangent unfolded
    spec          one call, whatever its arrays hold, as the user wrote it
    problem       one face of one call: sizes, dtypes, and where it runs
    lowering      one way to make the three faces, a file in `_lowerings`
    config        a lowering and the form that it takes
    work, cost    what a lowering does, as counts; the seconds that this takes on a platform
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxconvt._geometry import Axes, Size
from jaxconvt._numerics import real_part, summed_in

FACES = ("value", "input_grad", "kernel_grad")
GRADIENTS = FACES[1:]

# The two operands of each face, in order, and its result.
OPERANDS = {"value": ("lhs", "rhs"), "input_grad": ("out", "rhs"), "kernel_grad": ("lhs", "out")}
RESULT = {"value": "out", "input_grad": "lhs", "kernel_grad": "rhs"}

# The face that makes an array.
MAKES = {array: face for face, array in RESULT.items()}

# The letters after the spatial axes, of each array.
LETTERS = {"lhs": "gi", "rhs": "gij", "out": "gj"}


def arrays_of(face: str) -> tuple[str, str, str]:
    """Return both operands and the result of a face."""
    return (*OPERANDS[face], RESULT[face])


class Sizes(NamedTuple):
    """The sizes of the letters, in their order; each may be a symbolic size."""

    batch: Size
    groups: Size
    in_channels: Size  # in a group, as those below
    out_channels: Size


def sizes_of(face: str, x: Any, y: Any) -> Sizes:
    """Return the sizes of the letters, given the operands of a face."""
    sizes: dict[str, Any] = {"n": 1, "i": 1, "j": 1}
    for array, operand in zip(OPERANDS[face], (x, y), strict=True):
        if array != "rhs":
            sizes["n"] = operand.shape[0]
        letters = LETTERS[array]
        sizes.update(zip(letters, operand.shape[-len(letters) :], strict=True))
    return Sizes(*[sizes[letter] for letter in "ngij"])


def dtypes_of(face: str, x: Any, y: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """Return the dtypes of lhs, rhs and output, given operands, and the dtype of the result."""
    of = dict(zip(arrays_of(face), (x.dtype, y.dtype, dtype), strict=True))
    return of["lhs"], of["rhs"], of["out"]


def shape_of(array: str, axes: Axes, sizes: Sizes) -> tuple[Any, ...]:
    """Return the shape of "lhs", "rhs" or "out", as the primitive has them."""
    n, g, i, j = sizes
    if array == "rhs":
        return (*[a.taps for a in axes], g, i, j)
    if array == "lhs":
        return (n, *[a.size for a in axes], g, i)
    return (n, *[a.out for a in axes], g, j)


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
    """Return the `Spec` of some axes."""
    return Spec(
        axes,
        dimension_numbers,
        groups,
        transpose_kernel,
        tuple([axis.stride for axis in axes]),
        tuple([(axis.lo, axis.hi) for axis in axes]),
        tuple([axis.dilation for axis in axes]),
    )


class Config(NamedTuple):
    """A lowering, by name, and its form.

    `gathered` says how many of the first spatial axes are gathered before products are made, and
    `chunks` in how many parts the batch is taken, one after the other.
    """

    name: str
    gathered: int = 0
    chunks: int = 1

    def __str__(self) -> str:
        axes = "axis" if self.gathered == 1 else f"{self.gathered} axes"
        gathered = f" with the first {axes} gathered" if self.gathered else ""
        return self.name + gathered + (f" in {self.chunks} chunks" if self.chunks > 1 else "")


class Problem(NamedTuple):
    """One face of one call: what it is made of, and where it runs."""

    face: str
    axes: Axes
    batch: int  # a symbolic one, which all lowerings take, counts as 1
    groups: int  # as the channels, it may be a symbolic size: see `static`
    in_channels: int  # in a group, as those below
    out_channels: int
    dtypes: tuple[Any, Any, Any]  # of lhs, rhs and output, as the user has them
    itemsize: int  # bytes of an element that is multiplied; of complex numbers, of a part
    kind: str  # of dtype: "float32" (and narrower), "bfloat16", "float64" or "integer"
    forward_kernel: bool  # whether rhs is stored as the forward convolution has it: reversed
    dimension_numbers: lax.ConvDimensionNumbers  # of the user's arrays
    single_device: bool  # whether no compiler divides the arrays among devices
    platform: str

    @property
    def channels_first(self) -> bool:
        """Whether the user's kernel has its channels before its spatial axes, as PyTorch's has."""
        o, i, *spatial = self.dimension_numbers.rhs_spec
        return min(spatial, default=-1) > max(o, i)

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.platform in ("cuda", "rocm")

    @property
    def static(self) -> bool:
        """Whether all sizes are numbers, and none is a symbolic one of `jax.export`."""
        return all(type(size) is int for size in (self.groups, self.in_channels, self.out_channels))

    @property
    def empty(self) -> bool:
        """Whether lhs, rhs or the output has no elements; a symbolic size counts as some."""
        extents = [size for a in self.axes for size in (a.size, a.taps, a.out)]
        return 0 in (self.batch, self.groups, self.in_channels, self.out_channels, *extents)

    @property
    def may_sum_parts(self) -> bool:
        """Whether this face, if it is the input gradient, may be made as a sum of several parts.

        Devices that divide j sum each part among themselves, so there they make only one.
        """
        return self.face != "input_grad" or self.single_device

    @property
    def strided(self) -> bool:
        """Whether any stride is over 1."""
        return any(axis.stride > 1 for axis in self.axes)

    @property
    def one_pixel(self) -> bool:
        """Whether lhs is one pixel: what is left is a product of matrices."""
        return bool(self.axes) and all(axis.size == 1 for axis in self.axes)

    @property
    def kernel_dilated(self) -> bool:
        """Whether the kernel's taps are apart."""
        return any(axis.dilation > 1 for axis in self.axes)

    def folded(self, least: int = 0) -> "Problem":
        """Return this problem with its first axes in the batch, as far as each has one tap.

        At least so many axes are left. On such an axis, without stride and padding, every element
        meets those at its own place. Rows that a compiler may divide among devices stay rows. A
        GPU's library takes images of 3-D with channels first as they are, but those of 2-D with
        channels last: they stay, too.
        """
        if not self.single_device or (self.on_gpu and (self.turned("lhs") or self.turned("out"))):
            return self
        in_place = [axis[1:] == (1, 1, axis.dilation, 0, 0) for axis in self.axes]
        count = min((*in_place, False).index(False), max(len(self.axes) - least, 0))
        if not count:
            return self
        images = math.prod([axis.size for axis in self.axes[:count]])
        return self._without_axes(count)._replace(batch=self.batch * images)

    def _without_axes(self, count: int) -> "Problem":
        """Return this problem without its first spatial axes."""
        specs = []
        for batch, channels, *spatial in self.dimension_numbers:
            left = batch, channels, *spatial[count:]
            specs.append(tuple([sorted(left).index(at) for at in left]))
        numbers = lax.ConvDimensionNumbers(*specs)
        return self._replace(axes=self.axes[count:], dimension_numbers=numbers)

    def extent(self, what: str) -> int:
        """Return the product over the axes of "size", "taps" or "out"."""
        return math.prod([int(getattr(axis, what)) for axis in self.axes])

    @property
    def pairs(self) -> int:
        """Pairs of an element of lhs, of one channel, and a tap."""
        return self.batch * self.groups * self.extent("size") * self.extent("taps")

    @property
    def contributions(self) -> int:
        """Elements of Y or U with no axis gathered."""
        return self.pairs * self.out_channels

    @property
    def flops(self) -> float:
        """Two for each multiply-add; those by zeros between elements of lhs are left out."""
        return 2.0 * self.contributions * self.in_channels

    @property
    def stuffed_flops(self) -> float:
        """Two for each multiply-add, those by zeros included."""
        extent = self.extent("out") * self.extent("taps")
        return 2.0 * self.batch * self.groups * extent * self.in_channels * self.out_channels

    @property
    def stuffed_bytes(self) -> int:
        """Bytes of lhs with zeros between its elements and around them."""
        padded = math.prod([max(int(axis.padded), 1) for axis in self.axes])
        return self.itemsize * self.batch * self.groups * self.in_channels * padded

    def elements(self, array: str) -> int:
        """Count the elements of "lhs", "rhs" or "out"."""
        i, j = self.in_channels, self.out_channels
        if array == "rhs":
            return self.groups * i * j * self.extent("taps")
        channels, extent = (i, "size") if array == "lhs" else (j, "out")
        return self.batch * self.groups * channels * self.extent(extent)

    def bytes_of(self, array: str) -> int:
        """Return the bytes of "lhs", "rhs" or "out" as it is multiplied."""
        return self.itemsize * self.elements(array)

    @property
    def lhs_bytes(self) -> int:
        """Bytes of lhs as it is multiplied."""
        return self.bytes_of("lhs")

    @property
    def rhs_bytes(self) -> int:
        """Bytes of rhs as it is multiplied."""
        return self.bytes_of("rhs")

    @property
    def out_bytes(self) -> int:
        """Bytes of the output as it is multiplied, or would be."""
        return self.bytes_of("out")

    @property
    def bytes(self) -> int:
        """Bytes of lhs, rhs and output together."""
        return self.lhs_bytes + self.rhs_bytes + self.out_bytes

    def user_bytes(self, array: str) -> int:
        """Return the bytes of "lhs", "rhs" or "out" as the user has it."""
        dtype = dict(zip(("lhs", "rhs", "out"), self.dtypes, strict=True))[array]
        return self.elements(array) * int(jnp.dtype(dtype).itemsize)

    def converted(self, array: str) -> bool:
        """Whether the user has "lhs" or "out" in another dtype than it is multiplied in."""
        return self.user_bytes(array) != self.bytes_of(array)

    def turned(self, array: str) -> bool:
        """Whether the user has "lhs" or "out" other than with its channels last."""
        dn = self.dimension_numbers
        batch, channels, *spatial = dn.lhs_spec if array == "lhs" else dn.out_spec
        return (batch, *spatial, channels) != tuple(range(len(spatial) + 2))

    @property
    def real_products(self) -> int:
        """How many real products a product is: see `_numerics.complex_by_parts`."""
        complex_ = any(real_part(dtype) is not None for dtype in self.dtypes)
        return 3 if complex_ and self.platform == "cpu" else 1


def problem_of(
    face: str,
    axes: Axes,
    sizes: Sizes,
    dtypes: tuple[Any, Any, Any],
    *,
    forward_kernel: bool,
    dimension_numbers: lax.ConvDimensionNumbers,
    single_device: bool,
    platform: str,
) -> Problem:
    """Return the problem of a face; `dtypes` are those of lhs, rhs and output."""
    lhs, rhs, out = map(jnp.dtype, dtypes)
    of = {"lhs": lhs, "rhs": rhs, "out": out}
    common, _ = summed_in(*[of[array] for array in arrays_of(face)])
    common = real_part(common) or common
    kind = "float32"
    if common == jnp.bool_ or jnp.issubdtype(common, jnp.integer):
        kind = "integer"
    elif common in (jnp.bfloat16, jnp.float64):
        kind = common.name
    return Problem(
        face=face,
        axes=axes,
        batch=sizes.batch if type(sizes.batch) is int else 1,
        groups=sizes.groups,
        in_channels=sizes.in_channels,
        out_channels=sizes.out_channels,
        dtypes=(lhs, rhs, out),
        itemsize=common.itemsize,
        kind=kind,
        forward_kernel=forward_kernel,
        dimension_numbers=dimension_numbers,
        single_device=single_device,
        platform=platform,
    )


class Convolution(NamedTuple):
    """Convolutions as XLA is given them; several of one form are counted together."""

    # "forward" (no operand has zeros between its elements), "dilated" (lhs has zeros between its
    # elements), "kernel gradient" (the window is the image), or one that cuDNN has a call for:
    # "input gradient" or "filter gradient".
    form: str
    flops: float  # as `Problem.flops`
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
    patch_bytes: int = 0  # of copies of lhs, or of a cropped cotangent
    col_bytes: int = 0  # of Y or U; none where those are the output as it is
    # Of one product, in a group: the columns of lhs or its patches, and those of Y or U.
    columns: tuple[int, int] = (0, 0)
    slices: int = 1  # of the output that Y or U is made of, at most
    interleaved: bool = False  # whether phases of the output, or its cotangent's, are apart
    inner: Problem | None = None  # what the convolution makes, if that is another problem
    cropped_bytes: int = 0  # of images that are cropped before, or padded after
    rearranged_bytes: int = 0  # of operands put in another order
    operations: int = 0  # how many are started, beyond one
    temp_bytes: int = 0  # of all intermediates, about as XLA was seen to allocate them
    shared: tuple[Any, ...] = ()  # how it unfolds the cotangent: two gradients may share that
    shared_bytes: int = 0  # of the cotangent so unfolded


def window_bytes(count: int, channels: int, itemsize: int) -> int:
    """Return bytes of rows of channels: 24 more to find each, twice as many if not in vectors."""
    return count * (channels * itemsize * (2 if channels % 4 else 1) + 24)
