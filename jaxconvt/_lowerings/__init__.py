"""The lowerings, one a file: a new one is a file and a line here."""

from jaxconvt._lowerings._interface import Lowering as Lowering
from jaxconvt._lowerings.col2im import Col2im
from jaxconvt._lowerings.depthwise import Depthwise
from jaxconvt._lowerings.dilated import Dilated
from jaxconvt._lowerings.polyphase import Polyphase
from jaxconvt._lowerings.strided import Strided
from jaxconvt._lowerings.subpixel import Subpixel
from jaxconvt._problem import Config

# In order of preference among equals.
LOWERINGS: dict[str, Lowering] = {
    lowering.name: lowering
    for lowering in (Dilated(), Strided(), Depthwise(), Col2im(), Polyphase(), Subpixel())
}

# XLA's own program, which is jax.lax's.
XLAS = Config(Dilated.name)

# It makes every call, also what others can't.
GENERAL: Lowering = LOWERINGS[Col2im.name]
