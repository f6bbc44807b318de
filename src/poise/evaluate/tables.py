"""Tables in markdown."""

from collections.abc import Sequence

from tabulate import tabulate

from poise.storage.shown_text import shortened, spelled_out

NONE = "–"
"""Stands where a number does not apply."""


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers, with a line's end after each row."""
    cells = [
        [spelled_out(shortened(cell)).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (heads, *rows)
    ]
    sides = ["left", *["right"] * (len(heads) - 1)]
    return tabulate(cells[1:], cells[0], tablefmt="pipe", colalign=sides, disable_numparse=True) + "\n"


def with_interval(number: float, ends: Sequence[float], *, digits: int = 3, sign: bool = False) -> str:
    """A number and its interval: `0.512 [0.480, 0.544]`."""
    value, low, high = (f"{each:{'+' if sign else ''}.{digits}f}" for each in (number, *ends))
    return f"{value} [{low}, {high}]"
