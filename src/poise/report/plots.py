"""The style of every picture that matplotlib draws, and its files."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#0f766e", "#a16207", "#be185d", "#475569")
"""Of series, in their order; later ones begin again."""
GREY, INK, GRID = "#8aa1b8", "#444444", "#e5e5e5"


def colour(place: int) -> str:
    """The colour of a series by its place."""
    return COLOURS[place % len(COLOURS)]


def dress(axes: Axes, *, x: str, y: str = "", grid: str = "y") -> None:
    """Label axes, and take away what carries no number."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def write_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `name.svg` and `name.png`, the same bytes for the same picture."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=150)
