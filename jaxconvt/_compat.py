"""What is called differently from one supported JAX to another."""

import dataclasses
import functools
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax import lax

Function = TypeVar("Function")


def replaced(function: Function) -> Function:
    """Return what `jaxconvt.install` put a function in the place of; of others, the function.

    The function says so, and no module: that may be imported twice, or reloaded.
    """
    attributes = getattr(function, "__dict__", {})
    # `functools.wraps` copies our attribute to what others make of our function.
    ours = "jaxconvt_replaced" in attributes and "__wrapped__" not in attributes
    under: Function = attributes["jaxconvt_replaced"] if ours else function
    return under


# JAX's own, whatever is in its place.
conv_general_dilated = replaced(lax.conv_general_dilated)

# Values that are traced.
Tracer = jax.core.Tracer

HAS_OUT_SHARDING = "out_sharding" in inspect.signature(conv_general_dilated).parameters
HAS_AUTO_AXES = hasattr(jax.sharding, "auto_axes")
# In a rule of JAX 0.7 a letter has one size. But lhs has other rows than the output.
HAS_PARTITIONING = jax.__version_info__ >= (0, 8)

# What reads the traces of JAX's profiler, if this JAX has it.
ProfileData: Any = getattr(jax.profiler, "ProfileData", None)

_x64: Any = vars(jax if hasattr(jax, "enable_x64") else jax.experimental)["enable_x64"]

_WIDE = tuple(map(np.dtype, ("float64", "complex128", "int64", "uint64")))


def x64_scope(*dtypes: Any) -> AbstractContextManager[Any]:
    """Return a context in which JAX computes in these dtypes, whatever the x64 mode.

    Outside of it JAX passes arrays of 64 bits on, but makes none.
    """
    scope: AbstractContextManager[Any] = nullcontext()
    if any(jnp.dtype(dtype) in _WIDE for dtype in dtypes):
        scope = _x64(True)
    return scope


def x64_mode() -> tuple[Any, ...]:
    """Return the settings by which JAX grants 64 bits or not. Caches have them in their keys."""
    explicit = getattr(jax.config, "jax_explicit_x64_dtypes", None)
    return jax.config.jax_enable_x64, explicit  # type: ignore[attr-defined]


def jit_disabled() -> bool:
    disabled: bool = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    return disabled


def explicit_axes(*arrays: Any) -> tuple[str, ...]:
    """Return the Explicit axes of the arrays' mesh: types may say how arrays are sharded on these.

    They need not say it: `jax.vmap` hides the axes that it maps over.
    """
    for x in arrays:
        mesh = getattr(getattr(getattr(x, "aval", None), "sharding", None), "mesh", None)
        types = getattr(mesh, "axis_types", None) or ()  # of JAX 0.5, one for several axes
        named = zip(getattr(mesh, "axis_names", ()), types, strict=False)
        if axes := tuple([name for name, type_ in named if "Explicit" in str(type_)]):
            return axes
    return ()


def for_export(module_context: Any) -> bool:
    """Whether a program is lowered to be exported; so it is where this JAX does not say."""
    exported: bool = getattr(module_context.lowering_parameters, "for_export", True)
    return exported


class _Device:
    """Stands for a device, of which only the number is known."""


class _Kept(list[Any]):
    """What a program needs until it is compiled. So there is none of it in one that is pickled."""

    def __reduce__(self) -> Any:
        return _Kept, ()


def partitioned(ctx: Any) -> Any:
    """Return a context of lowering in which `custom_partitioning` works; None if there is none.

    It asks for the devices of the program, but our rules want to know no more than how many there
    are. JAX tells a lowering that, and lowers once for all devices. There is none for programs
    that are exported or are for several platforms, in a `shard_map` over some axes of a mesh, nor
    for platforms whose compilers know no rules, as TPU's (JAX issue 38196).
    """
    module = ctx.module_context
    count = getattr(module.axis_context, "num_devices", None)
    if not HAS_PARTITIONING or count is None or for_export(module):
        return None
    if tuple(module.platforms) not in (("cpu",), ("cuda",), ("rocm",)):
        return None
    devices = tuple([_Device() for _ in range(count)])
    context = dataclasses.replace(module.axis_context, device_assignment=devices)
    kept = _Kept()  # `custom_partitioning` keeps what cannot be pickled
    module.add_keepalive(kept)
    return ctx.replace(module_context=module.replace(axis_context=context, keepalives=kept))


def no_mesh() -> AbstractContextManager[Any]:
    """Return a context where no mesh is set."""
    scope: AbstractContextManager[Any] = jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((), ())
    )
    return scope


def labelled(label: str) -> AbstractContextManager[Any]:
    """Return a context where what is traced has a label in its program, which decides nothing.

    `jax.jit` keeps what it traces there apart from what it traces elsewhere.
    """
    from jax.experimental.xla_metadata import set_xla_metadata

    scope: AbstractContextManager[Any] = set_xla_metadata(jaxconvt=label)
    return scope


def register_for_shard_map(primitive: Any) -> None:
    """Register a primitive with `shard_map`.

    Before JAX 0.7 it asks how each primitive treats values that differ per device."""
    if jax.__version_info__ < (0, 7):
        from jax.experimental import shard_map

        for register in ("register_standard_check", "register_standard_rewrite"):
            getattr(shard_map, register, lambda primitive: None)(primitive)


def register_for_jet(primitive: Any) -> None:
    """Have `jax.experimental.jet` expand a primitive as it does any other bilinear one.

    Its rule is taken from that of convolutions: what a series holds differs from JAX to JAX.
    """
    try:
        from jax.experimental.jet import jet_rules
    except ImportError:
        return
    rule = jet_rules.get(lax.conv_general_dilated_p)
    if isinstance(rule, functools.partial):
        jet_rules[primitive] = functools.partial(rule.func, primitive)


def varying(x: Any) -> frozenset[str]:
    """Return the mesh axes of a `shard_map` over which a value differs."""
    # It has one attribute or the other, or none.
    aval = getattr(x, "aval", None)
    axes: frozenset[str] = getattr(
        getattr(aval, "manual_axis_type", aval), "varying", getattr(aval, "vma", frozenset())
    )
    return axes


def vary(x: Any, axes: frozenset[str]) -> Any:
    """Return the same value, as one that differs over more mesh axes."""
    if not axes:
        return x
    if hasattr(lax, "pcast"):
        return lax.pcast(x, tuple(axes), to="varying")
    return lax.pvary(x, tuple(axes))  # type: ignore[attr-defined]


def vary_alike(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return operands that vary over the same mesh axes of a `shard_map`, as JAX's own do."""
    over = [varying(x), varying(y)]
    return vary(x, over[1] - over[0]), vary(y, over[0] - over[1])


def zeros(shape: Any, dtype: Any, *like: Any) -> jax.Array:
    """Return zeros that vary over the mesh axes of a `shard_map` over which some arrays do."""
    result: jax.Array = vary(jnp.zeros(shape, dtype), frozenset().union(*map(varying, like)))
    return result


def device_kind(platform: str) -> str:
    """Return the kind of the default backend's devices; "" for CPUs, and for other platforms."""
    if platform == "cpu" or platform != default_platform():
        return ""
    kind: str = jax.devices()[0].device_kind
    return kind


def default_platform() -> str:
    """Return the platform that JAX lowers for on its default backend."""
    return platform_of_device(jax.devices()[0])


def platform_of_device(device: Any) -> str:
    """Return the platform that JAX lowers for on a device; "other" if we know nothing of it."""
    if device.platform == "gpu":
        return "rocm" if "rocm" in str(device.client.platform_version).lower() else "cuda"
    return device.platform if device.platform in ("cpu", "tpu") else "other"


def trace_options() -> dict[str, Any]:
    """Return arguments of `jax.profiler.start_trace`: no calls of Python, if that can be said."""
    make = getattr(jax.profiler, "ProfileOptions", None)
    if make is None:
        return {}
    options = make()
    options.python_tracer_level = 0
    return {"profiler_options": options}
