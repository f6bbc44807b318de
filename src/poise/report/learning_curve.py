"""The learning curve of a run: reward in training and accuracy on held-out problems, against steps and rollouts.

Both lines are drawn from `metrics.jsonl` alone, so that the picture can be made again from any run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from poise.report.plots import COLOURS, GREY, INK, dress, write_figure
from poise.storage.run_directory import RunDirectory


def learning_curve(metrics: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """The picture of a run from its lines of metrics.

    Held-out points have bars of one standard error where their number of prompts is known.

    Args:
        metrics: Lines with `step`, `rollouts` and, where they were measured, `reward` and `held_out/accuracy`.
        title: Above the picture.
    """
    rewards = [(line["step"], line["reward"]) for line in metrics if line.get("reward") is not None]
    held_out = [
        (line["step"], line["held_out/accuracy"], line.get("held_out/prompts"))
        for line in metrics
        if line.get("held_out/accuracy") is not None
    ]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    if rewards:
        steps, each = zip(*rewards, strict=True)
        axes.plot(steps, each, color=GREY, alpha=0.35, linewidth=0.8)
        axes.plot(steps, running_means(each), color=GREY, linewidth=1.8, label="reward in training (running mean)")
    if held_out:
        steps, each, counts = zip(*held_out, strict=True)
        errors = [standard_error(p, n) for p, n in zip(each, counts, strict=True)]
        axes.errorbar(
            steps,
            each,
            yerr=errors,
            color=COLOURS[0],
            marker="o",
            markersize=4,
            linewidth=1.8,
            elinewidth=0.8,
            label="accuracy on held-out problems",
        )
    lowest, highest = axes.get_ylim()
    if lowest >= 0 and highest <= 1.05:
        axes.set_ylim(0, 1)
    dress(axes, x="steps", y="share of right answers")
    if rewards or held_out:
        axes.legend(frameon=False, loc="best")
    last = metrics[-1] if metrics else {}
    if last.get("step") and last.get("rollouts"):
        each_step = last["rollouts"] / last["step"]
        above = axes.secondary_xaxis("top", functions=(lambda x: x * each_step, lambda x: x / each_step))
        above.set_xlabel("rollouts")
        above.tick_params(colors=INK)
        above.spines["top"].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return figure


def running_means(numbers: Sequence[float | int], *, memory: float = 0.75) -> list[float]:
    """For each number the mean of it and all before it, weighing each earlier one `memory` times its successor."""
    means: list[float] = []
    total = weight = 0.0
    for number in numbers:
        total, weight = memory * total + number, memory * weight + 1
        means.append(total / weight)
    return means


def standard_error(mean: float, num: float | int | None) -> float:
    """Of a mean of that many verdicts; 0 where there is none, or where the mean is no share."""
    return (mean * (1 - mean) / num) ** 0.5 if num and 0 <= mean <= 1 else 0.0


def write_learning_curve(directory: RunDirectory) -> None:
    """Draw a run's `learning_curve.png` and `learning_curve.svg`."""
    write_figure(learning_curve(directory.read_metrics(), title=directory.path.name), directory.path, "learning_curve")
