"""What the scripts share: their command lines, their files, and what they say of a machine."""

import argparse
import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxconvt._layers import BY_NAME
from jaxconvt._machine import cpu_model, cpuinfo, machine

RESULTS = Path(__file__).parent / "results"


def parser(about: str | None, layers: Iterable[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of a script with this docstring; it has `--layers` if some are given."""
    result = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if default := list(layers):
        shown = "all" if default == list(BY_NAME) else " ".join(default)
        result.add_argument(
            "--layers", nargs="+", metavar="NAME", choices=BY_NAME, default=default,
            help=f"of the report ({shown})",
        )  # fmt: skip
    return result


def about(**more: Any) -> dict[str, Any]:
    """Return what figures were measured on, when, and those others that are known."""
    known = {name: value for name, value in more.items() if value}
    today = datetime.date.today().isoformat()
    return {**machine(), "processor": processor(), "date": today, **known}


def processor() -> str:
    """Return the CPU's model, and its widest vectors: models alone may hide a lot."""
    text = cpuinfo()
    widest = [name for name in ("amx_tile", "avx512f", "avx2", "asimd") if f" {name}" in text][:1]
    return " ".join([cpu_model(), *widest])


def load(path: Path) -> dict[str, Any]:
    """Return what was measured before; nothing, if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, data: dict[str, Any], depth: int = 2) -> None:
    """Write JSON: a line for each item down to `depth` levels.

    What holds only numbers and words is always one line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(data, depth) + "\n")


def _text(value: Any, depth: int, margin: str = "\n") -> str:
    named = isinstance(value, dict)
    items = value.values() if named else value if isinstance(value, list) else ()
    if not depth or not any(isinstance(item, (dict, list, tuple)) for item in items):
        return json.dumps(value)
    inner = margin + " "
    texts = [_text(item, depth - 1, inner) for item in items]
    if named:
        texts = [f"{json.dumps(name)}: {text}" for name, text in zip(value, texts, strict=True)]
    first, last = "{}" if named else "[]"
    return f"{first}{inner}{f',{inner}'.join(texts)}{margin}{last}"
