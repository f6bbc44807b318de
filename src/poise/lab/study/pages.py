"""How is a study read: its tables as markdown, its numbers as JSON?"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from poise.lab.study.comparisons import IN_HINDSIGHT
from poise.lab.study.study import StudyResults, TaskStudy
from poise.lab.study.tables import LOWEST_CEILING, REFERENCE, Line, Table

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
            row += ["–", "–"] if line is None else [_cell(line, "mae"), _ratio(line)]
            row += ["–" if best is None else _ratio(best)] * with_hindsight
            row.append("–" if line is None else _time_share(reference, line))
        rows.append(row)
    note = f"† noise ceiling below {LOWEST_CEILING:g}: says nothing about any estimator.\n\n"
    about = f"Ratio: the MAE of `{REFERENCE}` over the critic's. Time: to fit, as a share of the critic's training."
    if with_hindsight:
        about += " In hindsight: over that of the critic's best rate and epoch, chosen on the rollouts that judge."
    marked = note if any(task.noise.says_nothing for task in tasks) else ""
    return f"## All tasks\n\n{_markdown(heads, rows)}\n{marked}{about}\n\n"


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
    with_cost = with_ratio and any(line.seconds is not None for line in lines)
    heads += [f"`{REFERENCE}` / this"] * with_ratio + ["fit, s", "CPU, s", "memory, MB"] * with_cost
    rows = []
    for line in lines:
        row = [line.name, *(_cell(line, name) for name in table.shown)]
        row += [_ratio(line)] * with_ratio
        if with_cost:
            row += ["–" if each is None else f"{each:.2f}" for each in (line.seconds, line.cpu_seconds)]
            row += ["–" if line.extra_bytes is None else f"{line.extra_bytes / 1e6:.1f}"]
        rows.append(row)
    return _markdown(heads, rows)


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
    if reference.seconds is None or not line.seconds:
        return "–"
    return f"{reference.seconds / line.seconds:.2%}"


def _cell(line: Line, measure: str) -> str:
    value = line.measures[measure]
    if not math.isfinite(value):
        return "–"
    digits = 4 if measure == "value_error" else 3
    if measure not in line.intervals:
        return f"{value:.{digits}f}"
    low, high = line.intervals[measure]
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _ratio(line: Line) -> str:
    if line.ratio is None:
        return "–"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*line.ratio)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
