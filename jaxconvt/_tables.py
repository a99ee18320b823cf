"""What is printed for people: tables of at most 100 columns, as text and as HTML for notebooks."""

import itertools
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

WIDTH = 100  # the most columns of a line
_WORDS = 32  # where fewer columns are left for words, the others stand closer together

Cells = tuple[str, ...]


def wrapped(text: str, width: int = WIDTH, indent: str = "") -> list[str]:
    """Return lines of at most so many columns; all but the first are indented."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


class Table(NamedTuple):
    """Rows under headings: one description, from which both the text and the HTML are made."""

    about: str  # prose, above the rows
    columns: Cells  # headings, each of one or more lines
    align: str  # a letter for each column: "<" for left, ">" for right
    rows: Sequence[Cells | str]  # the last cell is words, which wrap; a string is a line by itself

    def text(self) -> str:
        cells = [self.columns, *[row for row in self.rows if not isinstance(row, str)]]
        figures = zip(*[row[:-1] for row in cells], strict=True)
        widths = [max(len(part) for cell in own for part in cell.split("\n")) for own in figures]
        gap = "  " if _left(widths, "  ") >= _WORDS else " "
        lines = wrapped(self.about)
        for row in (*self._head(), *self.rows):
            if isinstance(row, str):
                lines += wrapped(row, indent="    ")
                continue
            parts = [cell.split("\n") for cell in row]
            words = [wrapped(part, _left(widths, gap)) or [""] for part in parts.pop()]
            parts.append([line for part in words for line in part])
            for line in itertools.zip_longest(*parts, fillvalue=""):
                aligned = zip(line, self.align, [*widths, 0], strict=True)
                lines.append(
                    gap.join([f"{x:{side}{width}}" for x, side, width in aligned]).rstrip()
                )
        return "\n".join(lines)

    def _head(self) -> tuple[Cells, ...]:
        """Return the headings, unless all rows are lines by themselves."""
        lines = [isinstance(row, str) for row in self.rows]
        return () if lines and all(lines) else (self.columns,)

    def html(self) -> str:
        from html import escape  # late, as few need it and it takes long to import

        def cell(tag: str, text: str, side: str, more: str = "") -> str:
            style = "left" if side == "<" else "right"
            return f'<{tag}{more} style="text-align: {style}">{escape(text)}</{tag}>'

        def line(tag: str, row: Cells | str) -> str:
            if isinstance(row, str):
                whole = f' colspan="{len(self.columns)}"'
                return f"<tr>{cell(tag, row, '<', whole)}</tr>"
            cells = [cell(tag, *of) for of in zip(row, self.align, strict=True)]
            return f"<tr>{''.join(cells)}</tr>"

        about = f"<p>{escape(self.about)}</p>\n" if self.about else ""
        lines = [line("th", row) for row in self._head()] + [line("td", row) for row in self.rows]
        return f"{about}<table>\n" + "\n".join(lines) + "\n</table>"


def _left(widths: Sequence[int], gap: str) -> int:
    """Return the columns that are left for words."""
    return WIDTH - sum(widths) - len(gap) * len(widths)
