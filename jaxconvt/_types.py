"""The types of arguments, as type checkers see them; what is read from them is in `_arguments`."""

from collections.abc import Iterable
from typing import Literal, SupportsIndex, TypeAlias, get_args

from jax import lax

from jaxconvt._tuning import Tuning

# A checker needs the names as literals. A test holds them to the lowerings.
Name: TypeAlias = Literal[
    "dilated", "strided", "depthwise", "col2im", "polyphase", "subpixel", "auto"
]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Name)
Implementation: TypeAlias = Name | Tuning
# Python's and NumPy's integers, in lists, tuples and arrays.
Integers: TypeAlias = Iterable[SupportsIndex]
# A name, or for each spatial dimension a pair or a name. How long a pair is, `_arguments` checks.
Padding: TypeAlias = str | Iterable[str | Integers]
# Not any iterable of strings, for "NHWC" is one, too.
DimensionNumbers: TypeAlias = (
    tuple[str, str, str] | list[str] | lax.ConvDimensionNumbers | Iterable[Integers]
)
