"""How a face is divided among devices: what each computes, and what it exchanges.

XLA divides some convolutions wrongly, and some products of matrices. So it is given none to divide:
each device runs a program of its own, of the part of the arrays that it holds. What devices exchange
is stated here. A *letter* is what an axis of the arrays runs over: n, g, i or j, or rows (0 for those
of the first spatial axis, and so on). Every axis of the mesh divides one letter, or none:

    n, g, i, j   Each device has a part of the letter. If the result does not have it, the results
                 are summed.
    rows         Each device makes its own rows of the result. It gets the few that it needs of other
                 devices' rows from these. For the kernel gradient it has its own rows of lhs.

Taps are not divided. XLA brings each array to the division that is chosen here, by copies alone.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxconvt import _compat
from jaxconvt._call import OPERANDS
from jaxconvt._geometry import Axes, Axis, dilate
from jaxconvt._numerics import cast, summed_in
from jaxconvt._views import pad

Letter = str | int | None  # None: taps
MeshAxes = tuple[int, ...]  # of one letter, the major one first

DEVICES = "devices"  # all of them, in the order of the program, as one axis of a mesh
NEAR = 4  # neighbours on each side that a device gets rows from one by one


def letters(array: str, spatial: int) -> tuple[Letter, ...]:
    """What the axes of "lhs", "rhs" or "out" run over."""
    if array == "rhs":
        return (*[None] * spatial, "g", "i", "j")
    return ("n", *range(spatial), "g", "i" if array == "lhs" else "j")


class Problem(NamedTuple):
    """A face of arrays that may be divided."""

    face: str
    axes: Axes
    dtype: Any  # of the result

    @property
    def arrays(self) -> tuple[str, str, str]:
        """Both operands, and the result."""
        return (*OPERANDS[self.face], self.face)  # type: ignore[return-value]

    def letters(self, array: str) -> tuple[Letter, ...]:
        return letters(array, len(self.axes))

    def summed(self, letter: Letter) -> bool:
        """Whether the result is a sum over the letter."""
        return letter not in self.letters(self.face)


# `compute` of some operands, axes and dtype of the result
Compute = Callable[[jax.Array, jax.Array, Axes, Any], jax.Array]


def divided(
    problem: Problem, compute: Compute, plain: Compute, label: str, x: jax.Array, y: jax.Array
) -> jax.Array:
    """The face, which the compiler divides by the rules of this module.

    `compute` makes a face on one device. So does `plain`, with no constants: JAX traces it for the
    shape of the result. The label tells apart programs that differ in `compute` alone.
    """
    whole = custom_partitioning(lambda x, y: plain(x, y, problem.axes, problem.dtype))
    whole.def_partition(
        partial(_partition, problem, compute),
        infer_sharding_from_operands=partial(_infer, problem),
        decode_shardings=False,
        sharding_rule=_rule(problem),
    )
    # JAX's compilation cache may know a program by its text, which says nothing of `compute`.
    with _compat.labelled(label):
        result: jax.Array = whole(x, y)
    return result


def _rule(problem: Problem) -> str:
    """In the words of Shardy, where sharding is to be propagated."""
    words = []
    for array in problem.arrays:
        names = enumerate(problem.letters(array))
        words.append(" ".join([_factor(letter, at) for at, letter in names]))
    return f"{words[0]}, {words[1]} -> {words[2]}"


def _factor(letter: Letter, at: int) -> str:
    if letter is None:
        return f"tap{at}"
    return f"rows{letter}" if isinstance(letter, int) else letter


def _infer(problem: Problem, mesh: Any, operands: Any, result: Any) -> NamedSharding:
    """The sharding of the result, where Shardy is off."""
    layout = _layout(problem, [*operands, result], known=2)
    return layout.sharding(problem.face)


def _partition(
    problem: Problem, compute: Compute, mesh: Any, operands: Any, result: Any
) -> tuple[Any, Any, NamedSharding, tuple[NamedSharding, ...]]:
    """What `custom_partitioning` asks for."""
    layout = _layout(problem, [*operands, result], known=3)
    shardings = [layout.sharding(array) for array in problem.arrays]
    program = partial(_share, layout, compute)
    return AbstractMesh((layout.count,), (DEVICES,)), program, shardings[2], tuple(shardings[:2])


class Layout(NamedTuple):
    """Which axes of the mesh divide which letter of a problem."""

    problem: Problem
    shapes: dict[str, tuple[int, ...]]
    sizes: tuple[int, ...]  # of the mesh
    over: dict[Letter, MeshAxes]

    @property
    def count(self) -> int:
        """How many devices there are."""
        return math.prod(self.sizes)

    def parts(self, letter: Letter) -> int:
        return math.prod([self.sizes[k] for k in self.over.get(letter, ())])

    def sharding(self, array: str) -> NamedSharding:
        mesh = AbstractMesh(self.sizes, tuple([f"axis{k}" for k in range(len(self.sizes))]))
        letters = self.problem.letters(array)
        over = [[mesh.axis_names[k] for k in self.over.get(letter, ())] for letter in letters]
        return NamedSharding(mesh, PartitionSpec(*[tuple(names) or None for names in over]))

    def part(self, letter: Letter) -> list[int]:
        """The number of the part of a letter that each device has."""
        numbers = [0] * self.count
        for k in self.over.get(letter, ()):
            numbers = [numbers[d] * self.sizes[k] + self._at(d, k) for d in range(self.count)]
        return numbers

    def groups(self, *divided: Letter) -> list[list[int]]:
        """Devices that differ in their parts of these letters alone, in the order of the parts."""
        axes = [k for letter in divided for k in self.over.get(letter, ())]
        parts = [self.part(letter) for letter in divided]
        result: dict[Any, list[int]] = {}
        for d in sorted(range(self.count), key=lambda d: [numbers[d] for numbers in parts]):
            others = [self._at(d, k) for k in range(len(self.sizes)) if k not in axes]
            result.setdefault(tuple(others), []).append(d)
        return list(result.values())

    def _at(self, device: int, k: int) -> int:
        """Where on axis k of the mesh a device is."""
        return device // math.prod(self.sizes[k + 1 :]) % self.sizes[k]


def _layout(problem: Problem, arrays: Sequence[Any], known: int) -> Layout:
    """The division of the work, given how arrays are divided, of which `known` are certain."""
    shapes = {name: tuple(x.shape) for name, x in zip(problem.arrays, arrays, strict=True)}
    given = [(x.sharding, len(x.shape)) for x in arrays[:known]]
    sizes, specs = _decoded(given)
    nbytes = {
        name: math.prod(x.shape) * x.dtype.itemsize
        for name, x in zip(problem.arrays, arrays, strict=True)
    }
    uses: list[dict[str, Letter]] = [{} for _ in sizes]  # which letter of each array, by mesh axis
    order: dict[Letter, list[int]] = {}
    by_size = sorted(zip(problem.arrays, specs, strict=False), key=lambda item: -nbytes[item[0]])
    for name, spec in by_size:
        for letter, axes in zip(problem.letters(name), spec, strict=True):
            for k in axes:
                uses[k][name] = letter
                order.setdefault(letter, []).append(k)
    chosen = [_letter(problem, shapes, nbytes, use, size) for use, size in zip(uses, sizes, strict=True)]
    over = {
        letter: tuple([k for k in dict.fromkeys(axes) if chosen[k] == letter])
        for letter, axes in order.items()
        if letter is not None
    }
    return Layout(problem, shapes, sizes, over)


def _letter(
    problem: Problem,
    shapes: dict[str, tuple[int, ...]],
    nbytes: dict[str, int],
    use: dict[str, Letter],
    parts: int,
) -> Letter:
    """The letter that an axis of the mesh divides, by the bytes that are then exchanged."""
    cost: dict[Letter, float] = {}
    for letter in use.values():
        extents = [
            shapes[name][problem.letters(name).index(letter)]
            for name in problem.arrays
            if letter in problem.letters(name)
        ]
        if letter is None or min(extents) == 1:
            continue
        total = 0.0
        for name in problem.arrays:
            used, has = name in use, letter in problem.letters(name)
            result = name == problem.face
            if has and used and use[name] == letter:
                continue
            if has and used:  # its parts change hands
                total += nbytes[name]
            elif has and result:  # every device gets all of it
                total += parts * nbytes[name]
            elif result:  # summed
                total += 2 * nbytes[name]
            elif used and not has:
                total += parts * nbytes[name]
        total += 1e-3 * isinstance(letter, int) * total
        cost[letter] = total
    return min(cost, key=lambda letter: cost[letter]) if cost else None


# What a sharding says


def _decoded(given: Sequence[tuple[Any, int]]) -> tuple[tuple[int, ...], list[list[MeshAxes]]]:
    """A mesh, and for each array which of its axes divide each dimension.

    Of a sharding we know which part of an array each device has: the mesh is found from that.
    """
    tiles = [_tiles(sharding, ndim) for sharding, ndim in given]
    count = len(tiles[0][0]) if tiles and tiles[0] else 1
    for sizes in itertools.islice(_orders(_primes(count)), 1000):
        specs = [[_spec(tile, sizes) for tile in tile_of] for tile_of in tiles]
        if all(axes is not None for spec in specs for axes in spec):
            return sizes, specs  # type: ignore[return-value]
    return (count,), [[() for _ in tile_of] for tile_of in tiles]


def _tiles(sharding: Any, ndim: int) -> list[list[int]]:
    """For each dimension, the number of the part that each device has."""
    count = len(sharding.device_set)
    # Any number of parts divides a size that is the number of devices.
    slices = list(sharding.devices_indices_map((count,) * ndim).values())
    return [
        [(of[d].start or 0) // ((of[d].stop or count) - (of[d].start or 0)) for of in slices]
        for d in range(ndim)
    ]


def _spec(tiles: Sequence[int], sizes: Sequence[int]) -> MeshAxes | None:
    """The mesh axes that number the parts so, the major one first; None if none do."""
    strides = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
    weights = {k: tiles[stride] for k, stride in enumerate(strides) if tiles[stride]}
    axes = tuple(sorted(weights, key=lambda k: -weights[k]))
    parts = 1
    for k in reversed(axes):
        if weights[k] != parts:
            return None
        parts *= sizes[k]
    for at, tile in enumerate(tiles):
        digits = {k: at // strides[k] % sizes[k] for k in axes}
        if tile != sum([digits[k] * weights[k] for k in axes]):
            return None
    return axes


def _primes(n: int) -> list[int]:
    primes, p = [], 2
    while n > 1:
        while n % p == 0:
            primes.append(p)
            n //= p
        p += 1
    return primes


def _orders(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All different orders of some numbers."""
    if not items:
        yield ()
    for first in sorted(set(items)):
        rest = list(items)
        rest.remove(first)
        for order in _orders(rest):
            yield (first, *order)


# What one device does


def _share(layout: Layout, compute: Compute, x: jax.Array, y: jax.Array) -> jax.Array:
    """A device's part of the result, of its parts of the operands."""
    problem = layout.problem
    total = summed_in(x.dtype, y.dtype, problem.dtype)[1]
    with _compat.exactly(x.dtype, y.dtype, total, problem.dtype):
        arrays = dict(zip(OPERANDS[problem.face], (x, y), strict=True))
        for name in arrays:
            for at, letter in enumerate(problem.letters(name)):
                if isinstance(letter, int) or problem.summed(letter):
                    arrays[name] = _without_rest(layout, name, at, letter, arrays[name])
        axes, moved = list(problem.axes), {}
        for k, axis in enumerate(problem.axes):
            if layout.parts(k) == 1:
                continue
            rows = Rows(layout, k, axis)
            read = "lhs" if problem.face == "out" else "out"
            if problem.face == "out":
                axes[k], moved[k], windows = _value_rows(rows)
            else:
                axes[k], windows = _gradient_rows(rows)
            arrays[read] = windows(arrays[read], 1 + k)
        over = [letter for letter in layout.over if problem.summed(letter) and layout.over[letter]]
        result = compute(*arrays.values(), tuple(axes), total if over else problem.dtype)
        for k, (starts, count) in moved.items():
            result = _from(result, 1 + k, starts, count, layout.part(k))
        if over:
            result = lax.psum(result, DEVICES, axis_index_groups=layout.groups(*over))
        return cast(result, problem.dtype) if over else result


def _without_rest(layout: Layout, name: str, at: int, letter: Letter, x: jax.Array) -> jax.Array:
    """Zeros for what the last devices have beyond the end of an axis, which can be anything."""
    size, parts = layout.shapes[name][at], layout.parts(letter)
    if size % parts == 0:
        return x
    held = x.shape[at]
    inside = lax.broadcasted_iota(jnp.int32, x.shape, at) < _own([size - d * held for d in layout.part(letter)])
    return jnp.where(inside, x, jnp.zeros((), x.dtype))


class Rows(NamedTuple):
    """Rows of one spatial axis, divided among devices."""

    layout: Layout
    letter: Letter
    axis: Axis

    @property
    def parts(self) -> int:
        return self.layout.parts(self.letter)

    def held(self, what: str) -> int:
        """How many rows of lhs ("size") or the output ("out") each device has."""
        return -(-int(getattr(self.axis, what)) // self.parts)


Windows = Callable[[jax.Array, int], jax.Array]


def _value_rows(rows: Rows) -> tuple[Axis, tuple[list[int], int], Windows]:
    """A device's axis for its own rows of the output, where those start, and its rows of lhs.

    Devices run one program. So each begins at a whole row of phases, above its first row or at it.
    """
    axis, held, parts = rows.axis, rows.held("out"), rows.parts
    s, e = axis.stride, dilate(axis.taps, axis.dilation)
    skip, lo = divmod(axis.lo, s)
    above = [d * held % s for d in range(parts)]
    out = held + max(above)
    size = max((out - 1 - lo + e - 1) // s + 1, 0)
    hi = out + e - 1 - dilate(size, s) - lo
    starts = [d * held // s - skip for d in range(parts)]
    windows = partial(_window, rows=rows, held=rows.held("size"), starts=starts, count=size)
    return axis._replace(size=size, lo=lo, hi=hi), (above, held), windows


def _gradient_rows(rows: Rows) -> tuple[Axis, Windows]:
    """A device's axis for its own rows of lhs, and its rows of the cotangent."""
    axis, held = rows.axis, rows.held("size")
    e = dilate(axis.taps, axis.dilation)
    own = axis._replace(size=held, lo=e - 1, hi=e - 1)
    starts = [d * held * axis.stride + axis.lo - (e - 1) for d in range(rows.parts)]
    windows = partial(_window, rows=rows, held=rows.held("out"), starts=starts, count=own.out)
    return own, windows


def _window(
    x: jax.Array, at: int, *, rows: Rows, held: int, starts: Sequence[int], count: int
) -> jax.Array:
    """`count` rows of all devices' together, from the start of each device on; zeros outside."""
    shifts = [start - d * held for d, start in enumerate(starts)]
    low, high = min(shifts), max(shifts) + count
    first, last = low // held, -(-high // held) - 1
    part, groups = rows.layout.part(rows.letter), rows.layout.groups(rows.letter)
    if max(-first, last) > min(NEAR, rows.parts - 1):
        x = lax.all_gather(x, DEVICES, axis=at, tiled=True, axis_index_groups=groups)
        before = max(-min(starts), 0)
        x = pad(x, at, before, max(max(starts) + count - x.shape[at], 0))
        return _from(x, at, [start + before for start in starts], count, part)
    parts = []
    for by in range(first, last + 1):
        start, stop = max(low - by * held, 0), min(high - by * held, held)
        rest = lax.slice_in_dim(x, start, stop, axis=at)
        if by:
            pairs = [
                (group[d + by], group[d])
                for group in groups
                for d in range(rows.parts)
                if 0 <= d + by < rows.parts
            ]
            rest = lax.ppermute(rest, DEVICES, pairs)
        parts.append(rest)
    x = lax.concatenate(parts, at) if parts else lax.slice_in_dim(x, 0, 0, axis=at)
    return _from(x, at, [shift - low for shift in shifts], count, part)


def _from(
    x: jax.Array, at: int, starts: Sequence[int], count: int, part: Sequence[int]
) -> jax.Array:
    """`count` rows, from the start of each part on."""
    if len(set(starts)) == 1:
        return lax.slice_in_dim(x, starts[0], starts[0] + count, axis=at)
    return lax.dynamic_slice_in_dim(x, _own([starts[d] for d in part]), count, at)


def _own(numbers: Sequence[int]) -> jax.Array:
    """Each device's own number."""
    return jnp.asarray(numbers, jnp.int32)[lax.axis_index(DEVICES)]
