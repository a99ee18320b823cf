"""What may be meant by a call that is wrong: hints, as errors give them, or ""."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from jax import lax

from jaxconvt._geometry import Shape

# What other libraries call it.
_ELSEWHERE = {
    "data_format": "dimension_numbers",
    "dilation": "rhs_dilation",
    "dilation_rate": "rhs_dilation",
    "dilations": "rhs_dilation",
    "filter": "rhs",
    "filters": "rhs",
    "groups": "feature_group_count",
    "impl": "implementation",
    "input": "lhs",
    "inputs": "lhs",
    "kernel": "rhs",
    "kernel_dilation": "rhs_dilation",
    "lhs_dilation": "strides",
    "output_size": "output_shape",
    "pad": "padding",
    "pads": "padding",
    "stride": "strides",
    "weight": "rhs",
    "weights": "rhs",
    "window_strides": "strides",
}
# What there is no argument for.
_INSTEAD = {
    "b": "add it to the result",
    "bias": "add it to the result",
    "in_channels": "rhs has the channels",
    "kernel_shape": "rhs has that shape",
    "kernel_size": "rhs has that size",
    "out_channels": "rhs has the channels",
    "padding_mode": "pad lhs first, by jnp.pad",
}
# What may be passed for an argument that is missing.
_SUCH_AS = {"strides": "strides=(2, 2)", "padding": "padding='SAME'"}


def check_call(
    signature: inspect.Signature, given: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Raise TypeError if arguments are unknown or missing, with a hint at what may be meant.

    Where several are unknown it says the first.
    """
    parameters = signature.parameters
    unknown = [name for name in named if name not in parameters]
    meant = {name: _ELSEWHERE.get(name) or closest(name, parameters) for name in unknown}
    by_position = list(parameters)[: len(given)]
    passed = [name for name in parameters if name in (*by_position, *named)]
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in (*passed, *meant.values())
    ]
    needed = f"{_listed(missing)} must be given"
    if unknown:
        name = unknown[0]
        hint = f"; did you mean {meant[name]}?" if meant[name] else ""
        hint = f"; {_INSTEAD[name]}" if name in _INSTEAD else hint
        also = f" ({needed}, too)" if missing else ""
        raise TypeError(
            f"conv_transpose() got an unexpected keyword argument {name!r}{hint}{also}"
        ) from None
    if missing:
        examples = ", ".join([_SUCH_AS[name] for name in missing if name in _SUCH_AS])
        examples = f", such as {examples}" if examples else ""
        only = f"only {_listed(passed)}" if passed else "no argument"
        raise TypeError(f"{needed}{examples}, got {only}.") from None


def closest(name: str, names: Iterable[str]) -> str:
    """Return the name that is closest to one that is unknown, or ""."""
    import difflib  # which nobody needs whose call is right

    return (*difflib.get_close_matches(name, names, 1), "")[0]


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if names[1:] else names)


# What to pass in the place of a traced value, if not Python numbers.
STATIC = {
    "transpose_kernel": "Python's True or False",
    "use_consistent_padding": "Python's True or False",
    "precision": "a string or a jax.lax.Precision",
    "preferred_element_type": "a dtype",
    "implementation": "a string or a jaxconvt.Tuning",
    "platform": "a string",
}


# What other libraries have as paddings, and `jnp.pad` as modes.
_MODES = {
    "CIRCULAR": "wrap",
    "EDGE": "edge",
    "REFLECT": "reflect",
    "REPLICATE": "edge",
    "SYMMETRIC": "symmetric",
    "WRAP": "wrap",
}


def padded_before(name: str) -> str:
    """Say how to pad in a way that is another library's, or one of `jnp.pad`'s modes."""
    mode = _MODES.get(name.upper())
    return (
        f"; pad lhs first by jnp.pad(lhs, pads, mode={mode!r}), pass 'SAME', and crop strides "
        f"times as much off the result"
        if mode
        else ""
    )


# Channels


def meant(
    lhs_shape: Shape,
    rhs_shape: Shape,
    dn: lax.ConvDimensionNumbers,
    groups: int,
    transpose_kernel: bool,
) -> str:
    """Say what was meant, if channels do not fit."""
    o_axis, i_axis = dn.rhs_spec[:2]
    features = lhs_shape[dn.lhs_spec[1]]
    # In features of all groups together, by this `transpose_kernel` and by the other.
    given, other = rhs_shape[i_axis] * groups, rhs_shape[o_axis]
    if transpose_kernel:
        given, other = other, given
    kernel = pytorch_kernel(lhs_shape, rhs_shape, dn)
    if kernel and transpose_kernel:
        otherwise = " If it is not, did you mean transpose_kernel=False?" if groups == 1 else ""
        return f"{kernel}{otherwise}"
    flipped = ""
    if other == features:
        how = "" if transpose_kernel else " (a forward convolution's kernel, which is flipped)"
        flipped = (
            f" Did you mean transpose_kernel={not transpose_kernel}{how}, or dimension_numbers "
            f"that say where rhs has its channels?"
        )
    last = len(lhs_shape) - 1
    lhs_channels_last = dn.lhs_spec[1] == last
    # Whether rhs would fit if lhs had its channels first.
    fits_first = lhs_channels_last and type(given) is int and lhs_shape[1] == given
    plain = _channels_first(last - 1, "{0}IO")
    spatial = _SPATIAL.get(last - 1)
    channels_last = lhs_channels_last and max(o_axis, i_axis) == last
    if spatial and channels_last and features != lhs_shape[1] == rhs_shape[0]:
        pytorch = _channels_first(last - 1, "OI{0}")
        otherwise = f"; if it is not, {plain}" if fits_first else ""
        return f"{flipped} Is rhs PyTorch's? If so, {pytorch} and transpose_kernel=True{otherwise}."
    if flipped:
        return flipped
    if groups > 1 and not transpose_kernel and rhs_shape[i_axis] == features:
        return f" With groups, rhs has the in features of one group.{kernel}"
    if groups > 1 and transpose_kernel and rhs_shape[i_axis] == features:
        return " Are the letters I and O of its dimension_numbers exchanged?"
    if fits_first:
        return f" Are the channels of lhs in axis 1? If so, {plain}."
    if features in rhs_shape[:i_axis]:
        axis = rhs_shape.index(features)
        pytorch = ""
        if axis == 0 and spatial:  # as PyTorch has them
            pytorch = f"; PyTorch's kernels are 'OI{spatial}' with transpose_kernel=True"
        return f" Are they in axis {axis} of rhs? If so, say so by dimension_numbers{pytorch}."
    return ""


_SPATIAL = {1: "H", 2: "HW", 3: "DHW"}  # as PyTorch has them, by their number


def pytorch_kernel(lhs_shape: Shape, rhs_shape: Shape, dn: lax.ConvDimensionNumbers) -> str:
    """Say if rhs may be PyTorch's kernel with its letters I and O exchanged.

    PyTorch has the in channels first, and then the out channels of one group.
    """
    spatial = _SPATIAL.get(len(lhs_shape) - 2)
    exchanged = dn.rhs_spec[:2] == (1, 0) and rhs_shape[0] == lhs_shape[dn.lhs_spec[1]]
    if not (spatial and exchanged):
        return ""
    return f" A PyTorch kernel? Pass 'OI{spatial}' with transpose_kernel=True."


def _channels_first(n: int, rhs: str) -> str:
    """Say what to pass if channels are first; `rhs` is the kernel's letters, {0} the spatial."""
    spatial = _SPATIAL.get(n)
    if spatial is None:
        return "say so by dimension_numbers"
    names = f"NC{spatial}", rhs.format(spatial), f"NC{spatial}"
    return f"pass dimension_numbers={names}"
