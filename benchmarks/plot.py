"""Draws the README's picture from timings of the report's layers.

    python -m benchmarks.plot benchmarks/results/clocked-<machine>.json   # of clock.py
    python -m benchmarks.plot benchmarks/results/<machine>.json           # of layers.py

Writes an .svg beside the file: for every layer, how many times faster than jax.lax
`implementation="auto"` is (bars) and torch is (diamonds), forward and for a training step, which
is the value with both gradients. Of what clock.py has timed it takes what "auto" picks now, and a
step is the sum of its three faces. The background is transparent, and its inks can be read on
white as well as on black.
"""

import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks import common, fit
from benchmarks.layers import REFERENCE, TORCH, VARIANTS, mean_of_runs, mean_text, ratios
from jaxconvt._layers import BY_NAME

INK, BARS, DIAMONDS = "#808080", "#3b8ee0", "#e8801a"
AUTO = 'jaxconvt with implementation="auto"'
MODES = {"forward": "forward", "step": "value and both gradients"}


def panel(axes: Axes, rows: list[dict[str, Any]], mode: str) -> None:
    auto = ratios(rows, mode, REFERENCE)
    torch = ratios(rows, mode, REFERENCE, TORCH)
    places = {row["layer"]: -i for i, row in enumerate(rows)}
    height = [places[name] for name in auto]
    # From 1, where it is as fast as jax.lax.
    axes.barh(height, [x - 1 for x in auto.values()], 0.66, left=1, color=BARS, label=AUTO)
    if torch:
        axes.scatter(
            list(torch.values()), [places[name] for name in torch], 22, DIAMONDS, marker="D",
            zorder=3, label="PyTorch",
        )  # fmt: skip
    right = 1.3 * max([*auto.values(), *torch.values()])
    axes.set(xscale="log", xlim=(min([0.5, *[0.8 * x for x in torch.values()]]), right))
    axes.set_ylim(min(places.values()) - 0.7, 0.7)
    axes.set_yticks(list(places.values()), list(places))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axes.axvline(1, color=INK, linewidth=1)
    over = partial(ratios, mode=mode, over=REFERENCE)
    title = f"{MODES[mode]}: auto {mean_text(mean_of_runs(rows, over), 1, 'x')}"
    if torch:
        title += f", torch {mean_text(mean_of_runs(rows, partial(over, under=TORCH)), 1, 'x')}"
    axes.set_title(title, color=INK, fontsize=10)
    axes.grid(axis="x", color=INK, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.minorticks_off()
    axes.spines[:].set_visible(False)


def clocked(path: Path, variant: str) -> dict[str, Any]:
    """Return a table like those of layers.py."""
    machine, timings = fit.read(path)
    of = fit.platform(machine)
    timings = [t for t in timings if t.dtype == variant and t.layer in BY_NAME]
    faces: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for pick, xlas in fit.picks(of.cost(of.rates), timings):
        if xlas:
            faces[pick.layer][pick.problem.face] = xlas.seconds, pick.seconds
    rows = []
    for name in filter(faces.__contains__, BY_NAME):
        steps = map(sum, zip(*faces[name].values(), strict=True))
        modes = {"forward": faces[name]["value"], "step": steps}
        seconds = {m: dict(zip((REFERENCE, "auto"), of, strict=True)) for m, of in modes.items()}
        rows.append({"layer": name, "seconds": seconds})
    return {"machine": machine, "rows": rows}


def draw(table: dict[str, Any], variant: str, path: Path) -> None:
    rows, about = table["rows"], table["machine"]
    rows = [row for row in rows if ratios([row], "forward", REFERENCE)]
    plt.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif"})
    plt.rcParams["svg.hashsalt"] = "jaxconvt"  # the same picture is the same file
    figure, panels = plt.subplots(
        1, len(MODES), sharey=True, figsize=(9, 1.5 + 0.21 * len(rows)), layout="constrained"
    )
    for axes, mode in zip(panels, MODES, strict=True):
        panel(axes, rows, mode)
    device = about["device"]
    if device == "cpu":
        device = f"{about['cores']} cores of an {about['processor']}"
    torch = f", torch {about['torch']}" if "torch" in about else ""
    figure.suptitle(
        "How many times faster than jax.lax.conv_transpose\n"
        f"{variant}, {device}, JAX {about['jax']}{torch}",
        color=INK,
        fontsize=10,
    )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
        frameon=False, labelcolor=INK, fontsize=9,
    )  # fmt: skip
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
    # Numbers of six decimals, and blanks at the ends of lines, are most of the file.
    text = re.sub(r"(\d+\.\d{2})\d+", r"\1", path.read_text())
    path.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))
    print(f"written to {path}, {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--variant", choices=VARIANTS, default="float32", help="table to draw")
    arguments = parser.parse_args()
    for path in arguments.files:
        tables = json.loads(path.read_text())
        if "rows" in tables:
            tables = {arguments.variant: clocked(path, arguments.variant)}
        draw(tables[arguments.variant], arguments.variant, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
