"""What a study leaves in its folder: tables in markdown, all numbers as JSON, and pictures of the tables."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from poise.evaluate.tables import NONE, markdown_table, with_interval
from poise.lab.study.comparisons import IN_HINDSIGHT, LOWEST_CEILING, REFERENCE, Line, Table
from poise.lab.study.settings import folder_name
from poise.lab.study.study import StudyResults, TaskStudy
from poise.report.plots import COLOURS, GREY, GRID, INK, colour, dress, write_figure

HEADS = {
    "mae": "MAE",
    "value_error": "error to V",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "auroc": "AUROC",
    "brier_skill": "Brier skill",
    "calibration_error": "calibration",
}
"""How measures are called in tables."""

LEGEND = (
    "MAE, Pearson, Spearman and calibration are against the mean reward of the rollouts that judge, noise and all. "
    "Error to V is the squared error to the true expected reward: the noise of that mean is taken off, so it can come "
    "out below 0. AUROC and Brier skill are against single rewards; the most that Brier skill can be is the noise "
    f"ceiling. In brackets: 95 % intervals over held-out prompts. `{REFERENCE}` / this: its MAE over the line's, below "
    "1 where it is nearer; paired intervals."
)


def write_study(results: StudyResults, folder: Path, *, command: str) -> None:
    """Write the page, the numbers and the pictures of a study."""
    (folder / "study.md").write_text(study_markdown(results, command=command), encoding="utf-8")
    (folder / "study.json").write_text(study_json(results, command=command), encoding="utf-8")
    for task in results.tasks:
        for name, figure in figures(task).items():
            figure.suptitle(task.task, fontsize=11, color=INK)
            write_figure(figure, folder / "figures", f"{folder_name(task.task)}-{name}")


def study_markdown(results: StudyResults, *, command: str = "") -> str:
    """The whole study as a page."""
    settings = results.settings
    parts = [
        f"# Study of {settings.model}\n",
        *([f"`{command}`\n"] if command else []),
        f"{settings.prompts} training prompts with two rollouts, {settings.held_out_prompts} held-out prompts with "
        f"{settings.k}; temperature {settings.temperature:g}, at most {settings.max_completion_length} tokens, seed "
        f"{settings.seed}. {LEGEND}\n",
        *(f"{sentence}.\n" for sentence in results.skipped),
    ]
    if len(results.tasks) > 1 and "estimators" in settings.tables:
        parts.append(summary_markdown(results.tasks))
    parts += [task_markdown(each) for each in results.tasks]
    return "\n".join(parts)


def summary_markdown(tasks: Sequence[TaskStudy]) -> str:
    """The value estimate and the critics over all tasks."""
    heads = ["task", "mean reward", "Var V", "ceiling", f"`{REFERENCE}` MAE"]
    critics = list(
        dict.fromkeys(line.name for task in tasks for line in _estimators(task) if line.name.endswith("critic"))
    )
    with_hindsight = any(line.name.endswith(IN_HINDSIGHT) for task in tasks for line in _estimators(task))
    for name in critics:
        heads += [f"{name} MAE", "ratio", *["in hindsight"] * with_hindsight, "time"]
    rows = []
    for task in tasks:
        by_name = {line.name: line for line in _estimators(task)}
        noise, reference = task.noise, by_name[REFERENCE]
        mark = " †" if noise.says_nothing else ""
        row = [task.task + mark, f"{noise.mean_reward:.3f}", f"{noise.value_variance:.4f}", f"{noise.ceiling:.2f}"]
        row.append(_cell(reference, "mae"))
        for name in critics:
            line = by_name.get(name)
            best = by_name.get(name + IN_HINDSIGHT)
            row += [NONE, NONE] if line is None else [_cell(line, "mae"), _ratio(line)]
            row += [NONE if best is None else _ratio(best)] * with_hindsight
            row.append(NONE if line is None else _time_share(reference, line))
        rows.append(row)
    note = f"† noise ceiling below {LOWEST_CEILING:g}: says nothing about any estimator.\n\n"
    about = f"Ratio: the MAE of `{REFERENCE}` over the critic's. Time: to fit, as a share of the critic's training."
    if with_hindsight:
        about += " In hindsight: over that of the critic's best rate and epoch, chosen on the rollouts that judge."
    marked = note if any(task.noise.says_nothing for task in tasks) else ""
    return f"## All tasks\n\n{markdown_table(heads, rows)}\n{marked}{about}\n\n"


def task_markdown(task: TaskStudy) -> str:
    """The tables of one task."""
    noise = task.noise
    told = f"mean reward {noise.mean_reward:.3f}, Var V {noise.value_variance:.4f}, noise ceiling {noise.ceiling:.2f}"
    parts = [f"## {task.task}\n", f"{told[0].upper()}{told[1:]}; {task.num_held_out} held-out prompts."]
    if noise.says_nothing:
        parts.append(
            f"\n**A noise ceiling below {LOWEST_CEILING:g}: prompts are too alike here, and this task says nothing "
            "about any estimator.**"
        )
    if task.left_out:
        parts.append(f"\n{task.left_out} prompts with a rollout that could not be graded are left out.")
    for table in task.tables.values():
        parts.append(f"\n### {table.title}: {task.task}\n\n{table.about} ({told}.)\n\n{table_markdown(table)}")
    if task.recommendation is not None:
        parts.append(
            "\n### Recommended\n\nThe simplest layer, pooling window and evidence within one standard error of the "
            "lowest cross-validated error on training prompts, for `poise train --config`:\n\n"
            f"```yaml\n{task.recommendation.snippet()}```\n"
        )
    return "\n".join(parts)


def table_markdown(table: Table) -> str:
    """A table, one line an estimator."""
    lines = table.lines
    heads = [table.axis or "", *(HEADS[name] for name in table.shown)]
    with_ratio = any(line.ratio is not None for line in lines)
    with_cost = with_ratio and any(line.cost is not None for line in lines)
    heads += [f"`{REFERENCE}` / this"] * with_ratio + ["fit, s", "CPU, s", "memory, MB"] * with_cost
    rows = []
    for line in lines:
        row = [line.name, *(_cell(line, name) for name in table.shown)]
        row += [_ratio(line)] * with_ratio
        if with_cost:
            cost = line.cost
            row += [NONE if cost is None else f"{cost.seconds:.2f}"]
            row += [NONE if cost is None or cost.cpu_seconds is None else f"{cost.cpu_seconds:.2f}"]
            row += [NONE if cost is None else f"{cost.extra_bytes / 1e6:.1f}"]
        rows.append(row)
    return markdown_table(heads, rows)


def study_json(results: StudyResults, *, command: str = "") -> str:
    """Every number, with nulls where one does not apply."""
    tasks = {
        each.task: {
            "training_prompts": each.num_training,
            "held_out_prompts": each.num_held_out,
            "left_out_prompts": each.left_out,
            "noise": dataclasses.asdict(each.noise) | {"says_nothing": each.noise.says_nothing},
            "tables": {
                name: {"title": table.title, "about": table.about, "lines": [line.as_json() for line in table.lines]}
                for name, table in each.tables.items()
            },
            "calibration": each.calibration,
            "recommendation": each.recommendation.settings if each.recommendation else None,
        }
        for each in results.tasks
    }
    whole: dict[str, Any] = {"command": command, "settings": dataclasses.asdict(results.settings)}
    return json.dumps(whole | {"skipped": results.skipped, "tasks": tasks}, indent=1, allow_nan=False) + "\n"


def _estimators(task: TaskStudy) -> list[Line]:
    return task.tables["estimators"].lines


def _time_share(reference: Line, line: Line) -> str:
    if reference.cost is None or line.cost is None or not line.cost.seconds:
        return NONE
    return f"{reference.cost.seconds / line.cost.seconds:.2%}"


def _cell(line: Line, measure: str) -> str:
    value = line.measures[measure]
    if not math.isfinite(value):
        return NONE
    digits = 4 if measure == "value_error" else 3
    if measure not in line.intervals:
        return f"{value:.{digits}f}"
    return with_interval(value, line.intervals[measure], digits=digits)


def _ratio(line: Line) -> str:
    return NONE if line.ratio is None else with_interval(line.ratio[0], line.ratio[1:], digits=2)


def figures(task: TaskStudy) -> dict[str, Figure]:
    """Every picture of a task whose tables were asked for, by name."""
    found = {"calibration": _calibration_figure(task)}
    if "estimators" in task.tables:
        found["estimators"] = _estimators_figure(task)
    if {"layers", "pools"} <= task.tables.keys():
        found["layers"] = figure = Figure(figsize=(9, 3.4), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("layers", "pools"), strict=True):
            _draw_sweep(axes, task.tables[name])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if "sizes" in task.tables:
        found["sizes"] = figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log", base=2)
        _draw_sweep(axes, task.tables["sizes"])
        axes.xaxis.set_major_formatter("{x:.0f}")
    return found


def _estimators_figure(task: TaskStudy) -> Figure:
    """Absolute error and squared error to V of every estimator."""
    lines = _estimators(task)
    figure = Figure(figsize=(9, 0.32 * len(lines) + 1.2), layout="constrained")
    for axes, (measure, label) in zip(
        figure.subplots(1, 2), (("mae", "MAE"), ("value_error", "squared error to V")), strict=True
    ):
        shown = [line for line in lines if measure in line.intervals and math.isfinite(line.measures[measure])]
        for row, line in enumerate(shown):
            is_critic = line.name.endswith("critic")
            tint = COLOURS[0] if line.name == REFERENCE else COLOURS[1] if is_critic else GREY
            axes.plot(line.intervals[measure], [row, row], color=tint, linewidth=1.6)
            axes.plot([line.measures[measure]], [row], "o", color=tint, markersize=5)
        axes.set_yticks(range(len(shown)), [line.name for line in shown])
        axes.invert_yaxis()
        dress(axes, x=label, grid="x")
    return figure


def _calibration_figure(task: TaskStudy) -> Figure:
    """Mean reward over mean estimate, ten bins."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.2)
    for place, (name, points) in enumerate(task.calibration.items()):
        line: Any = {"marker": "o", "markersize": 4, "linewidth": 1.4, "color": colour(place)}
        axes.plot(*zip(*points, strict=True), label=name, **line)
    axes.legend(frameon=False)
    dress(axes, x="mean estimate", y="mean reward of other rollouts", grid="both")
    return figure


def _draw_sweep(axes: Axes, table: Table) -> None:
    """Squared error to V: a line for each name before the last comma, over what stands behind it."""
    series: dict[str, list[Line]] = {}
    for line in table.lines:
        series.setdefault(line.name.rpartition(", ")[0], []).append(line)
    for place, (name, lines) in enumerate(series.items()):
        ys = [line.measures["value_error"] for line in lines]
        ends = [line.intervals["value_error"] for line in lines]
        bars = [[abs(y - end[side]) for y, end in zip(ys, ends, strict=True)] for side in (0, 1)]
        style: Any = {"marker": "o", "markersize": 4, "linewidth": 1.4, "elinewidth": 0.8, "color": colour(place)}
        axes.errorbar([float(line.at or 0) for line in lines], ys, yerr=bars, label=name, **style)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series))  # beside no bar
    dress(axes, x=table.axis, y="squared error to V")
