"""What does a study look like?

The rule: a picture shows numbers that stand in the tables, with the same intervals.
"""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from poise.lab.study.settings import folder_name
from poise.lab.study.study import StudyResults, TaskStudy
from poise.lab.study.tables import REFERENCE, Line, Table

_COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7c3aed")
_GREY, _INK, _GRID = "#8aa1b8", "#444444", "#e5e5e5"
_NO_DATE: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}}


def write_figures(results: StudyResults, folder: Path) -> None:
    """Draw every figure of a study, as svg and as png."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in results.tasks:
        for name, (needed, drawn) in FIGURES.items():
            if not needed <= task.tables.keys():
                continue
            figure = drawn(task)
            for ending in ("png", "svg"):
                path = folder / f"{folder_name(task.task)}-{name}.{ending}"
                figure.savefig(path, dpi=150, metadata=_NO_DATE[ending])


def estimators_figure(task: TaskStudy) -> Figure:
    """Absolute error and squared error to V of every estimator."""
    lines = task.tables["estimators"].lines
    figure = Figure(figsize=(9, 0.32 * len(lines) + 1.2), layout="constrained")
    for place, (measure, label) in enumerate((("mae", "MAE"), ("value_error", "squared error to V"))):
        axes = figure.add_subplot(1, 2, place + 1)
        shown = [
            line for line in lines if measure in line.intervals and line.measures[measure] == line.measures[measure]
        ]
        for row, line in enumerate(shown):
            low, high = line.intervals[measure]
            colour = _COLOURS[0] if line.name == REFERENCE else _COLOURS[1] if line.name.endswith("critic") else _GREY
            axes.plot([low, high], [row, row], color=colour, linewidth=1.6)
            axes.plot([line.measures[measure]], [row], "o", color=colour, markersize=5)
        axes.set_yticks(range(len(shown)), [line.name for line in shown])
        axes.invert_yaxis()
        axes.set_xlabel(label)
        _bare(axes, grid="x")
    figure.suptitle(task.task, fontsize=11, color=_INK)
    return figure


def layers_figure(task: TaskStudy) -> Figure:
    """Squared error to V over layers and over pooling windows."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for place, name in enumerate(("layers", "pools")):
        axes = figure.add_subplot(1, 2, place + 1)
        _draw_sweep(axes, task.tables[name])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(task.task, fontsize=11, color=_INK)
    return figure


def sizes_figure(task: TaskStudy) -> Figure:
    """Squared error to V over the number of training prompts."""
    table = task.tables["sizes"]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    _draw_sweep(axes, table)
    axes.xaxis.set_major_formatter("{x:.0f}")
    figure.suptitle(task.task, fontsize=11, color=_INK)
    return figure


def calibration_figure(task: TaskStudy) -> Figure:
    """Mean reward over mean estimate, ten bins."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1.2)
    for (name, points), colour in zip(task.calibration.items(), _COLOURS, strict=False):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.4, color=colour, label=name)
    axes.set_xlabel("mean estimate")
    axes.set_ylabel("mean reward of other rollouts")
    axes.legend(frameon=False)
    _bare(axes, grid="both")
    figure.suptitle(task.task, fontsize=11, color=_INK)
    return figure


FIGURES: dict[str, tuple[set[str], Callable[[TaskStudy], Figure]]] = {
    "estimators": ({"estimators"}, estimators_figure),
    "layers": ({"layers", "pools"}, layers_figure),
    "sizes": ({"sizes"}, sizes_figure),
    "calibration": (set(), calibration_figure),
}
"""Every figure of a task, by the end of its file's name, and the tables that it needs."""


def _draw_sweep(axes: Axes, table: Table) -> None:
    """A line for each name before the last comma, over what stands behind it."""
    series: dict[str, list[tuple[int, Line]]] = {}
    for line in table.lines:
        if line.at is not None:
            series.setdefault(line.name.rpartition(", ")[0], []).append((line.at, line))
    for (name, points), colour in zip(series.items(), _COLOURS, strict=False):
        xs, lines = zip(*points, strict=True)
        ys = [line.measures["value_error"] for line in lines]
        ends = [line.intervals["value_error"] for line in lines]
        bars = [[abs(y - end[side]) for y, end in zip(ys, ends, strict=True)] for side in (0, 1)]
        axes.errorbar(
            xs, ys, yerr=bars, marker="o", markersize=4, linewidth=1.4, elinewidth=0.8, color=colour, label=name
        )
    axes.set_xlabel(table.axis)
    axes.set_ylabel("squared error to V")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series))  # beside no bar
    _bare(axes, grid="y")


def _bare(axes: Axes, *, grid: str) -> None:
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
