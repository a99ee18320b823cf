"""Random programs for several devices, against the formula.

Each has a mesh, a layer, and shardings of the operands and, half of the time, of the results. To
run more of them than `test_fuzz.py` does, on eight devices, by one process or by two:

    python -m tests.fuzz.division COUNT SEED
    python -m tests.fuzz.division COUNT SEED --processes
"""

import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxconvt
from tests import oracle, test_distributed

MESHES = ((2,), (4,), (8,), (2, 2), (2, 4), (4, 2), (2, 2, 2), (1, 8), (2, 1, 4))
COMPUTED = ("update", "update", "value", "input_grad", "kernel_grad")
MAPPED = ((None, None), (None, None), (0, None), (None, 0), (0, 0))
HOW = ("auto", "auto", "auto", "auto", "col2im", "strided", "polyphase", "depthwise")


class Program(NamedTuple):
    computed: str
    mapped: tuple[int | None, int | None]
    examples: int
    lhs: tuple[int, ...]  # shapes, of one example
    rhs: tuple[int, ...]
    kwargs: dict[str, Any]
    mesh: tuple[int, ...]
    # For each array (lhs, rhs, and the cotangent or the first result, and the second), which axis
    # each axis of the mesh divides; -1: none.
    divided: tuple[tuple[int, ...], ...]
    results: bool  # whether results have shardings, too
    seed: int

    def shapes(self):
        return [
            (self.examples, *shape) if axis == 0 else shape
            for shape, axis in zip((self.lhs, self.rhs), self.mapped, strict=True)
        ]


def draw(rng: np.random.Generator) -> Program:
    """One whose output has elements."""

    def pick(*of):
        return of[rng.integers(len(of))]

    def each(low, high):
        return tuple(int(x) for x in rng.integers(low, high + 1, n))

    n = pick(1, 1, 2, 2, 3)
    g = pick(1, 1, 1, 4, 8)
    sizes = each(1, (16, 9, 5)[n - 1])
    taps = each(1, pick(3, 4, 5))
    if n == 1 and rng.random() < 0.2:
        taps = (int(rng.integers(9, 40)),)
    strides, dilation = each(1, 3), each(1, pick(1, 1, 2))
    extents = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    padding: Any = pick("SAME", "VALID", "pairs")
    if padding == "pairs":
        padding = []
        for i, e, s in zip(sizes, extents, strides, strict=True):
            lo = int(rng.integers(-2, e + 2))
            least = max(-2, e - ((i - 1) * s + 1) - lo)
            padding.append((lo, int(rng.integers(least, least + 4))))
    ci, co = pick(1, 2, 3, 8), pick(1, 2, 4, 8)
    mapped = pick(*MAPPED)
    mesh = pick(*MESHES)
    divided = tuple(tuple(int(x) for x in rng.integers(-1, n + 3, len(mesh))) for _ in range(4))
    how = pick(*HOW)
    return Program(
        computed=pick(*COMPUTED),
        mapped=mapped,
        examples=pick(2, 3, 4, 8),
        lhs=(pick(1, 2, 3, 4, 8), *sizes, g * ci),
        rhs=(*taps, ci, g * co),
        kwargs={
            "strides": strides, "padding": padding, "rhs_dilation": dilation,
            "feature_group_count": g, "implementation": how,
        },
        mesh=mesh,
        divided=divided,
        results=bool(rng.integers(2)),
        seed=int(rng.integers(2**31)),
    )  # fmt: skip


def run(p: Program, implementation: str | None = None):
    """Return what the program computes, and what it ought to; an array each, or two."""
    rng = np.random.default_rng(p.seed)
    lhs, rhs = (rng.standard_normal(shape).astype("float32") for shape in p.shapes())
    kwargs = dict(p.kwargs)
    if implementation:
        kwargs["implementation"] = implementation
    apart = jax.device_count() // int(np.prod(p.mesh))  # so that each process has some of them
    devices = np.array(jax.devices()[::apart]).reshape(p.mesh)
    names = tuple("abc"[: len(p.mesh)])
    mesh = Mesh(devices, names)

    def divide(which, x):
        spec: list[tuple[str, ...]] = [()] * x.ndim
        for name, axis in zip(names, p.divided[which], strict=True):
            if 0 <= axis < x.ndim:
                spec[axis] = (*spec[axis], name)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def layer(lhs, rhs):
        return jaxconvt.conv_transpose(lhs, rhs, **kwargs)

    if p.mapped != (None, None):
        layer = jax.vmap(layer, p.mapped)

    def program(lhs, rhs, ct):
        lhs, rhs = divide(0, lhs), divide(1, rhs)
        if p.computed == "value":
            results = [layer(lhs, rhs)]
        elif p.computed == "update":
            gradients = jax.grad(lambda *operands: jnp.sum(jnp.sin(layer(*operands))), (0, 1))
            results = [x - dx for x, dx in zip((lhs, rhs), gradients(lhs, rhs), strict=True)]
        elif p.computed == "input_grad":
            results = list(jax.linear_transpose(lambda x: layer(x, rhs), lhs)(divide(2, ct)))
        else:
            results = list(jax.linear_transpose(lambda w: layer(lhs, w), rhs)(divide(2, ct)))
        if p.results:
            which = (2, 3) if p.computed in ("value", "update") else (3,)
            results = [divide(at, x) for at, x in zip(which, results, strict=False)]
        return results

    shape = jax.eval_shape(layer, lhs, rhs).shape
    ct = rng.standard_normal(shape).astype("float32")
    want = expected(p, lhs, rhs, ct)
    return [_whole(x) for x in jax.jit(program)(lhs, rhs, ct)], want


def _whole(x: jax.Array) -> np.ndarray:
    if not x.is_fully_addressable:
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def expected(p: Program, lhs, rhs, ct):
    """By the formula, in float64."""
    kwargs = {name: value for name, value in p.kwargs.items() if name != "implementation"}
    many = p.mapped != (None, None)
    each = []
    for at in range(p.examples if many else 1):
        x, w = (
            array[at] if axis == 0 else array
            for array, axis in zip((lhs, rhs), p.mapped, strict=True)
        )
        x, w = x.astype("float64"), w.astype("float64")
        value = oracle.conv_transpose(x, w, **kwargs)
        if p.computed == "value":
            each.append([value])
            continue
        cotangent = np.cos(value) if p.computed == "update" else (ct[at] if many else ct)
        each.append(list(oracle.vjp(x, w, np.asarray(cotangent, "float64"), **kwargs)))
    if p.computed == "value":
        return [np.stack([of[0] for of in each]) if many else each[0][0]]
    gradients = [
        np.stack(of) if axis == 0 else np.sum(of, 0)
        for of, axis in zip(zip(*each, strict=True), p.mapped, strict=True)
    ]
    if p.computed == "update":
        return [x - dx for x, dx in zip((lhs, rhs), gradients, strict=True)]
    return [gradients[p.computed == "kernel_grad"]]


def wrong(got, want) -> str:
    """How results differ from what they ought to be, or "" """
    for x, y in zip(got, want, strict=True):
        if x.shape != y.shape:
            return f"shape {x.shape} instead of {y.shape}"
        error = np.max(np.abs(x - y), initial=0)
        if not error <= 1e-4 * (1 + np.max(np.abs(y), initial=0)):
            return f"off by {error:.3g} of {np.max(np.abs(y)):.3g}"
    return ""


LAX_FAILS = "fails by jax.lax, too"


def problem(p: Program) -> str:
    """Return what is wrong with what a program computes, or "" """
    try:
        return wrong(*run(p))
    except Exception as error:
        # By jax.lax in a process of its own, as XLA may end that.
        again = [sys.executable, "-m", "tests.fuzz.division", repr(p)]
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
        alone = subprocess.run(again, capture_output=True, env={**os.environ, **flags})
        return LAX_FAILS if alone.returncode else f"{type(error).__name__}: {str(error)[:200]}"


def main(count: int, seed: int) -> int:
    rng, start = np.random.default_rng(seed), time.monotonic()
    bad = unfit = 0
    for done in range(1, count + 1):
        p = draw(rng)
        found = problem(p)
        if found == LAX_FAILS:
            unfit += 1
        elif found:
            bad += 1
            print(f"{found}\n    {p}", flush=True)
        if done % 100 == 0:
            jax.clear_caches()
            counts = f"{done} programs, {bad} wrong, {unfit} that jax.lax fails on, too"
            print(f"{counts}, {time.monotonic() - start:.0f} s", flush=True)
    return bad


if __name__ == "__main__":
    if len(sys.argv) == 2:
        run(eval(sys.argv[1]), "dilated")
    elif sys.argv[3:] == ["--processes"]:
        arguments = "tests.fuzz.division", *sys.argv[1:3]
        print(*test_distributed.run_all(*arguments, devices=4, seconds=None))
    else:
        count, seed, *process = sys.argv[1:]
        if process:
            test_distributed.initialize(*process)
        sys.exit(main(int(count), int(seed)) > 0)
