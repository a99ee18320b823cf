"""What XLA makes of convolutions: its faults, its copies, the calls of its libraries.

Lowerings go by this to avoid what XLA is wrong about, and costs to know what it makes. It was seen
in compiled programs, and `tests/` has a small program for each fault.
"""

import math

from jaxconvt._geometry import trim
from jaxconvt._problem import RESULT, Problem


def can_use_conv(problem: Problem) -> bool:
    """Whether XLA may be given convolutions, and not only products of matrices.

    XLA divides a convolution among devices wrongly, or ends the process, if there are as many
    groups as devices, or if rows are divided. On CPU no divided call gets one, as products
    are as fast. On GPU XLA has no convolutions of integers, and ends the process on more than
    three spatial dimensions. A convolution can't have a symbolic number of groups. JAX 0.5 is
    wrong about groups where there are no spatial dimensions.
    """
    divided = not problem.single_device and (problem.groups != 1 or problem.platform == "cpu")
    known = problem.kind != "integer" and len(problem.axes) < 4
    possible = known or not problem.on_gpu
    return type(problem.groups) is int and not divided and possible and len(problem.axes) > 0


def can_use_dilated_conv(problem: Problem) -> bool:
    """Whether XLA may be given this face as a convolution over zeros between elements.

    XLA exchanges the operands where the kernel is the larger one. It takes an axis with a
    kernel of two and a stride of two, without padding, for one of groups. Then it makes a
    convolution that is none, and ends the process (jaxlib 0.5, 0.10 and 0.12).
    """
    larger = any(axis.taps > axis.size for axis in problem.axes)
    taken = any(axis[1:] == (2, 2, 1, 0, 0) for axis in problem.axes)
    return can_use_conv(problem) and not (problem.face == "value" and larger and taken)


def exchanges_operands(problem: Problem) -> bool:
    """Whether XLA makes lhs the kernel of the value, and rhs what it is applied to.

    It does so in two dimensions alone, of which none is a single pixel and tap.
    """
    axes = problem.axes
    if len(axes) != 2 or any(axis.size == axis.taps == 1 for axis in axes):
        return False
    pixels = [axis.size == 1 and axis.out >= axis.taps for axis in axes]
    others = [axis for axis, pixel in zip(axes, pixels, strict=True) if not pixel]
    larger = math.prod([a.taps for a in others]) > math.prod([a.size for a in others])
    return larger and problem.groups == 1


def why_no_library_call(problem: Problem) -> str:
    """Return why XLA:GPU has no call of cuDNN's for a face, in words, or "" if it has."""
    if not 1 <= len(problem.axes) <= 3:
        return "its convolutions have one to three spatial dimensions"
    if problem.kind == "integer":
        return "its convolutions are of floating-point numbers"
    if problem.kernel_dilated:
        return "XLA takes a dilated kernel for no gradient of a convolution"
    if problem.face == "value" and exchanges_operands(problem):
        return "XLA exchanges the operands where the kernel is larger than lhs"
    if problem.face == "value" and problem.groups > 1:
        return "XLA takes no convolution with groups for an input gradient"
    return ""


def pads_unevenly(problem: Problem) -> bool:
    """Whether the forward convolution pads one end of an axis more than the other.

    cuDNN can't. XLA then lets it make more of the output, or read more of the cotangent, and
    copies that.
    """
    pads = [(*t.pads, t.axis.stride) for t in map(trim, problem.axes)]
    return any(not high <= low < high + stride for low, high, stride in pads)


def reversed_bytes(problem: Problem) -> int:
    """Return the bytes of a kernel that is put in reverse order before a convolution.

    A reverse of taps that are last joins the transpose that comes first.
    """
    return 0 if problem.forward_kernel or problem.channels_first else problem.rhs_bytes


def copied_around_conv(problem: Problem, moved: bool = False) -> int:
    """Return the bytes of the copies that XLA's CPU backend makes of images around a convolution.

    With `moved`, images are also cropped before it, or padded after it.
    """
    if problem.platform != "cpu":
        return 0
    if problem.face == "kernel_grad":  # whose features are the batch
        return problem.lhs_bytes + problem.out_bytes
    result = RESULT[problem.face]
    operand = "out" if result == "lhs" else "lhs"
    sizes = {
        array: problem.bytes_of(array)
        for array in (operand, result)
        if moved or problem.turned(array) or problem.converted(array)
    }
    if sizes.get(operand, 0) <= problem.user_bytes(result):  # it may lie where the result will be
        sizes.pop(operand, None)
    return sum(sizes.values())
