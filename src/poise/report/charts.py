"""The charts of a run as numbers: what the page draws, and what stands in the table below each chart.

A chart is made from what the run logged and from nothing else; what it did not log is no chart, and the page says so.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.evaluate.statistics import wilson_interval
from poise.report.baseline_gain import CONSTANT, NONE, RLOO, Noise, difficulty, errors_of_simple_values
from poise.report.calibration import Calibration
from poise.report.learning_curve import running_means
from poise.report.rollout_files import RolloutBatch

Number = int | float
Metrics = Sequence[Mapping[str, Any]]
"""Lines of `metrics.jsonl`."""

TOO_LITTLE = "Too little data yet."
LOWEST_CEILING = 0.02
MOST_NOISE = 2.0
"""Times that without a baseline, at which the chart ends."""


@dataclass
class Series:
    """A line of a chart."""

    label: str
    x: Sequence[Number]
    y: Sequence[Number | None]
    style: str = "a"
    """a, b, c, d: colours; "faint" stands behind, "dashed" is compared with, "dots" has its points marked."""
    low: Sequence[Number | None] | None = None
    high: Sequence[Number | None] | None = None
    """Ends of intervals."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no number to draw."""
        return not any(y is not None and math.isfinite(y) for y in self.y)


@dataclass
class Chart:
    """Lines over steps."""

    section: str
    title: str
    series: list[Series]
    note: str = ""
    lowest: Number | None = None
    highest: Number | None = None
    """Ends of the vertical axis; None to fit."""
    x_label: str = "step"
    stacked: bool = False
    diagonal: bool = False
    missing: str = "This run did not log it."
    small: bool = False
    shares: bool = False
    """Whether the axis goes from 0 to 1 where all numbers do."""

    def __post_init__(self) -> None:
        self.series = [each for each in self.series if not each.is_empty]
        numbers = [y for each in self.series for y in each.y if y is not None and math.isfinite(y)]
        if self.shares and numbers and min(numbers) >= 0 and max(numbers) <= 1:
            self.lowest, self.highest = 0.0, 1.0


@dataclass
class OtherRun:
    """A run that is drawn over the run of the page."""

    name: str
    metrics: Metrics
    noise: Noise | None = field(default=None)


def column(metrics: Metrics, key: str, *, least: Number = -math.inf) -> tuple[list[Number], list[Number | None]]:
    """Steps and numbers of every line that has the key; None for numbers below `least`."""
    lines = [line for line in metrics if key in line]
    numbers = [line[key] for line in lines]
    return [line["step"] for line in lines], [None if y is None or y < least else y for y in numbers]


def newest(metrics: Metrics, key: str) -> Number | None:
    """The last number under a key; None where there is none."""
    return next((line[key] for line in reversed(metrics) if line.get(key) is not None), None)


def held_out(metrics: Metrics, kind: str) -> tuple[list[Number], list[Number | None], list[Number], list[Number]]:
    """Steps, means, and ends of 95 % intervals of `held_out/accuracy` or `held_out/reward`."""
    key = f"held_out/{kind}"
    lines = [line for line in metrics if line.get(key) is not None]
    ends = []
    for line in lines:
        mean, error, num = line[key], line.get(f"{key}_error"), line.get("held_out/prompts")
        if error is not None:
            ends.append((mean - 1.96 * error, mean + 1.96 * error))
        else:
            ends.append(wilson_interval(mean, num) if kind == "accuracy" and num and 0 <= mean <= 1 else (mean, mean))
    means: list[Number | None] = [line[key] for line in lines]
    return [line["step"] for line in lines], means, [low for low, _ in ends], [high for _, high in ends]


def learning_charts(metrics: Metrics, others: Sequence[OtherRun] = ()) -> list[Chart]:
    """Reward in training and what was measured on held-out problems; then accuracy by domain."""
    steps, rewards = column(metrics, "reward")
    known = [(x, y) for x, y in zip(steps, rewards, strict=True) if y is not None]
    smooth = running_means([y for _, y in known])
    series = [
        Series("reward of a batch", steps, rewards, "faint"),
        Series("reward, running mean", [x for x, _ in known], smooth, "b"),
    ]
    for kind, style in (("reward", "c dots"), ("accuracy", "a dots")):
        x, y, low, high = held_out(metrics, kind)
        series.append(Series(f"held-out {kind}", x, y, style, low, high))
    for other in others:
        kind = "accuracy" if newest(other.metrics, "held_out/accuracy") is not None else "reward"
        x, y, _, _ = held_out(other.metrics, kind)
        series.append(Series(f"{other.name}: held-out {kind}", x, y, "other dots"))
    note = (
        "Held-out problems are never trained on; bars are 95 % intervals. The reward in training is that of the newest "
        "rollouts."
    )
    return [Chart("learning", "Reward and held-out problems", series, note, shares=True), *domain_charts(metrics)]


def domain_charts(metrics: Metrics, *, most: int = 24) -> list[Chart]:
    """A small chart for each domain: its held-out accuracy, with that of all domains behind."""
    everything = column(metrics, "held_out/accuracy")
    names = [name for name, _, _ in domains_before_and_after(metrics)]
    return [
        Chart(
            "domains",
            name,
            [
                Series("all domains", *everything, "faint"),
                Series(name, *column(metrics, f"held_out/accuracy/{name}"), "a dots"),
            ],
            small=True,
            shares=True,
        )
        for name in names[:most]
    ]


def domains_before_and_after(metrics: Metrics) -> list[tuple[str, float, float]]:
    """Held-out accuracy of each domain at its first and its last measurement."""
    prefix = "held_out/accuracy/"
    names = sorted({key for line in metrics for key in line if key.startswith(prefix)})
    ends = [(name, [y for y in column(metrics, name)[1] if y is not None]) for name in names]
    return [(name.removeprefix(prefix), each[0], each[-1]) for name, each in ends if each]


def noise_chart(found: Noise | None, metrics: Metrics, others: Sequence[OtherRun] = ()) -> Chart:
    """Noise of the gradient relative to that without a baseline."""
    series = []
    if found is not None:
        sums = found.faded()
        none = [float(each) or math.nan for each in sums.of(NONE)]
        lines = ((RLOO, sums.of(RLOO), "faint"), (CONSTANT, sums.of(CONSTANT), "c"), ("this run", sums.used, "a"))
        series = [
            Series(label, sums.steps, [float(a) / b for a, b in zip(each, none, strict=True)], style)
            for label, each, style in lines
        ]
        series.insert(0, Series(NONE, sums.steps, [1.0] * len(none), "dashed"))
    elif newest(metrics, "poise/weighted_risk") is not None:
        steps, risks = column(metrics, "poise/weighted_risk")
        series = [Series(NONE, steps, [1.0] * len(steps), "dashed"), Series("this run", steps, risks, "a")]
    for other in others:
        if other.noise is not None:
            sums = other.noise.faded()
            share = [float(a) / float(b) if b else None for a, b in zip(sums.used, sums.of(NONE), strict=True)]
            series.append(Series(other.name, sums.steps, share, "other"))
    note = "Noise of the gradient as a share of what it is without a baseline: lower is better. " + (
        "Rollouts count by the squared length of their score."
        if found is None or found.weighted
        else "The files hold no lengths of scores, so that every rollout counts alike: under `poise`, whose baseline "
        "is made for unlike ones, this understates it."
    )
    most = max((y for each in series for y in each.y if y is not None and y == y), default=0.0)
    highest = MOST_NOISE if most > MOST_NOISE else None
    note += f" Lines above {MOST_NOISE:g} leave the picture, not the numbers." if highest else ""
    return Chart("baseline", "Noise of the gradient", series, note, 0.0, highest, missing=TOO_LITTLE)


def value_charts(metrics: Metrics, batches: Sequence[RolloutBatch], curve: Calibration | None) -> list[Chart]:
    """How much the values know, and whether they are right on average."""
    steps, constant, sibling = errors_of_simple_values(batches)
    ends = [end for each in curve.bins for end in (*each.interval, each.mean_value)] if curve else []
    bins = curve.bins if curve else ()
    return [
        Chart(
            "values",
            "Variance that values explain",
            [
                Series("that could be explained", *column(metrics, "poise/noise_ceiling", least=0.0), "dashed"),
                Series("explained by values", *column(metrics, "poise/variance_reduction"), "a"),
            ],
            "Share of the rewards' variance. Above the dashed line it is tossing coins.",
            shares=True,
            missing=TOO_LITTLE,
        ),
        Chart(
            "values",
            "Error of the values",
            [
                Series("best constant", steps, constant, "dashed"),
                Series("sibling's reward", steps, sibling, "faint"),
                Series("values", *column(metrics, "poise/value_error"), "a"),
            ],
            "Mean squared error to V(x), the expected reward of a prompt, estimated from pairs of rollouts: it can "
            "fall below 0 by chance.",
            missing=TOO_LITTLE,
        ),
        Chart(
            "values",
            "Are values right on average?",
            [
                Series(
                    "mean reward",
                    [each.mean_value for each in bins],
                    [each.mean_reward for each in bins],
                    "a dots",
                    [each.interval[0] for each in bins],
                    [each.interval[1] for each in bins],
                )
            ],
            f"Rollouts of like value, {len(bins)} bins; bars are 95 % intervals over prompts. Bias "
            f"{curve.bias:+.3f}, mean distance {curve.error:.3f}."
            if curve
            else "",
            lowest=min([0.0, *ends]),
            highest=max([1.0, *ends]),
            x_label="mean value",
            diagonal=True,
            missing="There are no values to check: the preset makes none, or no graded rollouts are on disk yet.",
        ),
    ]


def health_charts(metrics: Metrics, batches: Sequence[RolloutBatch]) -> list[Chart]:
    """Difficulty of the prompts, time of a step by phase, and what training logged about itself."""
    steps, shares = difficulty(batches)
    names = (("never solved", "d"), ("sometimes", "a"), ("always solved", "c"))
    charts = [
        Chart(
            "health",
            "How hard the prompts are",
            [Series(name, steps, shares[:, k].tolist(), style) for k, (name, style) in enumerate(names)],
            "Share of prompts whose rollouts all fail, differ, or all succeed: only the middle ones teach RLOO and "
            "GRPO anything.",
            stacked=True,
            missing="There are no prompts with two graded rollouts on disk.",
        ),
        phase_chart(metrics),
    ]
    listed = (
        ("Cut-off completions", "completions/clipped_ratio", "Share of completions that reach the largest length."),
        ("Length of completions", "completions/mean_length", "Mean, in tokens."),
        ("Entropy", "entropy", "Mean of a token, in nats: near 0 the policy no longer explores."),
        ("Clipped tokens", "clip_ratio/region_mean", "Share of tokens whose ratio to the sampling policy was clipped."),
        ("Gradient norm", "grad_norm", "Before clipping."),
        ("Ungradable rollouts", "poise/ungradable_share", "Share without a reward."),
    )
    charts += [
        Chart("health", title, [Series(title.lower(), *column(metrics, key), "b")], note, lowest=0.0)
        for title, key, note in listed
    ]
    return [each for each in charts if each.series or each.title == "How hard the prompts are"]


PHASES = {
    "sampling": ("poise/seconds_sampling", "timing_s/gen"),
    "grading": ("poise/seconds_rewards", "timing_s/reward"),
    "reading features": ("poise/seconds_features", "timing_s/old_log_prob"),
    "baseline": ("poise/seconds_baseline", "timing_s/adv"),
}
"""For each phase of a step its key under TRL, and under verl; the rest is the update."""


def phase_chart(metrics: Metrics) -> Chart:
    """Seconds of a generation batch by phase; lines without a reward belong to the batch before.

    `step_time` is the mean over the steps since the line before.
    """
    cycles: list[tuple[Number, dict[str, Number]]] = []  # first step, and seconds by key
    before = 0
    for line in metrics:
        covered, before = line["step"] - before, line["step"]
        if covered < 1:
            continue
        if "reward" in line or not cycles:
            cycles.append((line["step"], {}))
        seconds = cycles[-1][1]
        seconds["all"] = seconds.get("all", 0.0) + covered * (line.get("step_time") or line.get("timing_s/step") or 0.0)
        for key in (key for keys in PHASES.values() for key in keys if line.get(key) is not None):
            seconds[key] = line[key]
    steps, rows = [], []
    for step, seconds in cycles:
        times = [max(seconds.get(key, 0.0) for key in keys) for keys in PHASES.values()]
        if seconds["all"] and any(times):
            steps.append(step)
            rows.append([*times, max(0.0, seconds["all"] - sum(times))])
    styles = ("b", "d", "c", "e", "a")
    series = [
        Series(name, steps, [row[k] for row in rows], style)
        for k, (name, style) in enumerate(zip((*PHASES, "update"), styles, strict=True))
    ]
    return Chart("health", "Where the time goes", series, "Seconds a generation batch.", lowest=0.0, stacked=True)


def evidence_strips(metrics: Metrics) -> list[dict[str, Any]]:
    """For each domain the runs of equal evidence in charge: first step, step of the next run, evidence."""
    cells: dict[str, list[tuple[int, str]]] = {}
    for line in metrics:
        for domain, text in (line.get("in_charge") or {}).items():
            cells.setdefault(str(domain), []).append((line["step"], str(text).split(" ")[0]))
    return [{"domain": domain, "runs": list(_merged(found))} for domain, found in sorted(cells.items())]


def _merged(cells: Sequence[tuple[int, str]]) -> Iterable[tuple[int, int, str]]:
    start = 0
    for index in range(1, len(cells) + 1):
        if index == len(cells) or cells[index][1] != cells[start][1]:
            yield cells[start][0], cells[index][0] if index < len(cells) else cells[-1][0] + 1, cells[start][1]
            start = index
