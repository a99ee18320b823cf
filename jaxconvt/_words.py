"""How errors show what they were given: in one line, not too long. And where logs go."""

import logging
import os
import re
from typing import Any

from jaxconvt._compat import Tracer

LOGGER = logging.getLogger("jaxconvt")


def show(value: Any) -> str:
    """Return the `repr`, in one line of at most 80 characters; of a traced value, what it is."""
    if isinstance(value, Tracer):
        return f"a traced value ({value.aval.str_short()})"
    try:
        return shorten(repr(value))
    except Exception:  # its own, or an integer of thousands of digits
        return f"a value of type {type(value).__name__} that has no repr"


def shorten(text: str, most: int = 80) -> str:
    """Return one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


def first_line(error: Exception) -> str:
    """Return the type of an error, and the first line that it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def of_a_file(value: Any) -> str:
    """Return a hint, if what ought to be a `Tuning`, or its text, is its file's name; or ""."""
    if isinstance(value, os.PathLike) or (
        isinstance(value, str) and re.fullmatch(r"[^\n{}]*\.\w+", value)
    ):
        path = show(os.fspath(value))
        return f"; read the file first: jaxconvt.Tuning.loads(Path({path}).read_text())"
    return ""
