"""How do the curves of a comparison look?

The rule: an arm has the same colour everywhere, its line is the mean over seeds and its band runs from the lowest seed
to the highest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poise.lab.compare.analysis import smoothed
from poise.lab.compare.results import Curve

_COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#0f766e", "#a16207", "#be185d", "#475569")
_INK = "#444444"
_NO_DATE: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}}
_AXES = {"seconds": "training time, seconds", "rollouts": "rollouts sampled", "tokens": "tokens generated"}


def accuracy_figure(curves: Mapping[str, Sequence[Curve]], results: Mapping[str, Any]) -> Figure:
    """Held-out accuracy against time, rollouts and tokens; dashed: what the reference arm ends at."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (clock, label) in zip(panels, _AXES.items(), strict=True):
        for colour, (arm, of_arm) in zip(_colours(curves), curves.items(), strict=True):
            times, heights = [each.times(clock) for each in of_arm], [smoothed(each.accuracies) for each in of_arm]
            _draw_mean(axes, times, heights, colour=colour, label=arm)
        axes.axhline(results["target"], color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
        _dress(axes, label)
    panels[0].set_ylabel("held-out accuracy (mean of three)")
    panels[0].annotate(
        f"{results['reference']} ends at {results['target']:.2f}",
        (0.98, results["target"]),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color=_INK,
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return figure


def noise_figure(curves: Mapping[str, Sequence[Curve]]) -> Figure | None:
    """Noise to signal of a step's gradient against rollouts, on a logarithmic scale; None where it was not measured."""
    figure = Figure(figsize=(6.2, 3.9), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for colour, (arm, of_arm) in zip(_colours(curves), curves.items(), strict=True):
        lines = [[line for line in each.lines if line.get("gradient/trace") is not None] for each in of_arm]
        measured = min(map(len, lines))
        if not measured:
            continue
        # Signals of single runs can come out negative: sums over seeds first, then the ratio.
        sums = np.array(
            [[(row["gradient/trace"], row["gradient/signal"]) for row in each[:measured]] for each in lines]
        )
        noise, signal = sums.sum(axis=0).T
        ratio = np.where(signal > 0, noise / np.where(signal > 0, signal, 1), np.nan)
        rollouts = np.mean([[row["rollouts"] for row in each[:measured]] for each in lines], axis=0)
        axes.plot(rollouts, ratio, color=colour, marker="o", markersize=4, linewidth=1.6, label=arm)
        drawn = True
    if not drawn:
        return None
    axes.set_yscale("log")
    _dress(axes, _AXES["rollouts"])
    axes.set_ylabel("tr Cov / ‖E g‖², of a step")
    axes.legend(frameon=False, loc="best")
    return figure


def write_figure(figure: Figure, folder: Path, name: str) -> None:
    """As `name.svg` and `name.png`."""
    for ending in ("svg", "png"):
        figure.savefig(folder / f"{name}.{ending}", dpi=150, metadata=_NO_DATE[ending])


def _draw_mean(
    axes: Axes, times: Sequence[Sequence[float]], heights: Sequence[Sequence[float]], *, colour: str, label: str
) -> None:
    """The mean curve of some runs as far as all of them go, straight lines between their evaluations."""
    grid = np.linspace(max(each[0] for each in times), min(each[-1] for each in times), 200)
    drawn = np.array([np.interp(grid, *each) for each in zip(times, heights, strict=True)])
    axes.fill_between(grid, drawn.min(axis=0), drawn.max(axis=0), color=colour, alpha=0.12, linewidth=0)
    axes.plot(grid, drawn.mean(axis=0), color=colour, linewidth=1.7, label=label)


def _dress(axes: Axes, x_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)


def _colours(curves: Mapping[str, object]) -> list[str]:
    return [_COLOURS[k % len(_COLOURS)] for k in range(len(curves))]
