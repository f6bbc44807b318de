"""Pictures of a run's metrics and rollouts.

A figure is made from what the run logged and from nothing else; what it did not log is no figure, and the
page says so. References that need no model, the best constant and the siblings' reward, come from the rollouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup

from poise.diagnostics.pairs import PairScoreboard
from poise.probe.evidence import EVIDENCE_SETS
from poise.report.calibration import Calibration, calibration
from poise.report.charts import Series, line_chart, strip_chart
from poise.report.learning_curve import running_means, standard_error
from poise.report.rollout_files import Rollout

Metrics = Sequence[Mapping[str, Any]]
"""Lines of `metrics.jsonl`."""


@dataclass(frozen=True)
class Figure:
    """A picture with what to read in it."""

    title: str
    chart: Markup | None
    """None where the run did not log it."""
    note: str = ""
    missing: str = "This run did not log it."


def column(metrics: Metrics, key: str) -> list[tuple[float, float | None]]:
    """(step, number) of every line that has the key."""
    return [(float(line["step"]), None if line[key] is None else float(line[key])) for line in metrics if key in line]


def newest(metrics: Metrics, key: str) -> float | None:
    """The last number under a key; None where there is none."""
    return next((line[key] for line in reversed(metrics) if line.get(key) is not None), None)


def domains_before_and_after(metrics: Metrics) -> list[tuple[str, float, float]]:
    """Held-out accuracy of each domain at its first and its last measurement."""
    prefix = "held_out/accuracy/"
    names = sorted({key for line in metrics for key in line if key.startswith(prefix)})
    ends = [(name, [y for _, y in column(metrics, name) if y is not None]) for name in names]
    return [(name.removeprefix(prefix), each[0], each[-1]) for name, each in ends if each]


def _share_range(*columns: Sequence[tuple[float, float | None]]) -> tuple[float | None, float | None]:
    """0 to 1 where everything lies in it, else whatever fits."""
    numbers = [y for each in columns for _, y in each if y is not None]
    return (0.0, 1.0) if numbers and min(numbers) >= 0 and max(numbers) <= 1 else (None, None)


def reward_figure(metrics: Metrics) -> Figure:
    """Reward in training and held-out accuracy."""
    rewards = [(x, y) for x, y in column(metrics, "reward") if y is not None]
    held_out = [line for line in metrics if line.get("held_out/accuracy") is not None]
    points = [(float(line["step"]), float(line["held_out/accuracy"])) for line in held_out]
    reaches = [
        1.96 * standard_error(p, line.get("held_out/prompts")) for line, (_, p) in zip(held_out, points, strict=True)
    ]
    smooth = list(zip((x for x, _ in rewards), running_means([y for _, y in rewards]), strict=True))
    chart = line_chart(
        [
            Series("reward of a batch", rewards, "faint"),
            Series("its running mean", smooth, "b"),
            Series(
                "held-out accuracy",
                points,
                "a",
                dots=True,
                intervals=[(p - reach, p + reach) for (_, p), reach in zip(points, reaches, strict=True)],
            ),
        ],
        title="Reward in training and held-out accuracy over steps",
        y_range=_share_range(rewards, points),
    )
    return Figure("Reward and held-out accuracy", chart, "Bars: 95 % intervals over the held-out problems.")


def domain_figures(metrics: Metrics, *, most: int = 24) -> list[Figure]:
    """A small picture for each domain: its held-out accuracy, with that of all domains behind."""
    everything = column(metrics, "held_out/accuracy")
    return [
        Figure(
            name,
            line_chart(
                [
                    Series("all domains", everything, "faint"),
                    Series(name, column(metrics, f"held_out/accuracy/{name}"), "a", dots=True),
                ],
                title=f"Held-out accuracy of {name} over steps",
                y_range=_share_range(everything, column(metrics, f"held_out/accuracy/{name}")),
                compact=True,
            ),
        )
        for name, _, _ in domains_before_and_after(metrics)[:most]
    ]


def value_figures(metrics: Metrics, batches: Sequence[Sequence[Rollout]]) -> list[Figure]:
    """How much the values take away of the rewards' variance, and how far they are from V(x)."""
    ceiling, reduction = column(metrics, "poise/noise_ceiling"), column(metrics, "poise/variance_reduction")
    error, share = column(metrics, "poise/value_error"), column(metrics, "poise/ceiling_share")
    constant, sibling = errors_of_simple_baselines(batches)
    return [
        Figure(
            "Variance removed, and its noise ceiling",
            line_chart(
                [
                    Series("noise ceiling: Var V / Var r", ceiling, "dashed"),
                    Series("removed by values", reduction, "a"),
                ],
                title="Variance reduction and its noise ceiling over steps",
            ),
            "No baseline that respects the rule gets above the dashed line: the rest of the variance is tossing coins.",
        ),
        Figure(
            "Baseline error",
            line_chart(
                [
                    Series("best constant", constant, "dashed"),
                    Series("sibling's reward (RLOO)", sibling, "faint"),
                    Series("values (poise/value_error)", error, "a"),
                ],
                title="Mean squared error to V(x) over steps",
            ),
            "Mean squared error to V(x), the expected reward of the prompt, estimated from pairs; it can be below 0 by "
            "chance. 0 is what an oracle has.",
        ),
        Figure(
            "Share of the ceiling captured",
            line_chart(
                [Series("share captured", share, "a")],
                title="Share of the noise ceiling captured over steps",
                y_range=_share_range(share),
            ),
            "1: the values know all that can be known before the toss. Not defined below a ceiling of .02.",
        ),
    ]


def errors_of_simple_baselines(
    batches: Sequence[Sequence[Rollout]],
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, squared error to V) of the best constant, and of the siblings' mean reward, from the rollout files.

    The first is Var V; the second is the mean over prompts of s_x^2 / (G_x - 1). Both are ratios of running sums, which
    fade as those of `PairScoreboard` do.
    """
    board = PairScoreboard()
    constant, sibling = [], []
    error_sum = prompt_sum = 0.0
    for batch in batches:
        number = {prompt: index for index, prompt in enumerate(dict.fromkeys(each.prompt for each in batch))}
        groups = torch.tensor([number[each.prompt] for each in batch], dtype=torch.int64)
        gradable = torch.tensor([each.reward is not None for each in batch], dtype=torch.bool)
        rewards = torch.tensor([each.reward or 0.0 for each in batch], dtype=torch.float64)
        board.observe(rewards, torch.zeros_like(rewards), groups, gradable)
        sizes = groups[gradable].bincount(minlength=len(number)).to(torch.float64)
        sums, squares = (
            torch.zeros_like(sizes).index_add_(0, groups, torch.where(gradable, each, 0))
            for each in (rewards, rewards**2)
        )
        pairs = sizes >= 2
        n = sizes[pairs]
        errors = (squares[pairs] - sums[pairs] ** 2 / n) / (n - 1) ** 2
        error_sum, prompt_sum = board.decay * error_sum + float(errors.sum()), board.decay * prompt_sum + len(n)
        count, _, square, products, _, _ = board.sums.tolist()
        if count > 0 and batch:
            step = float(batch[0].step)
            constant.append((step, max(0.0, (products - square) / count)))
            sibling.append((step, error_sum / prompt_sum))
    return constant, sibling


def valued_rollouts(batches: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    """Graded rollouts with a value."""
    return [each for batch in batches for each in batch if each.value is not None and each.reward is not None]


def value_calibration(batches: Sequence[Sequence[Rollout]]) -> Calibration | None:
    """Values against rewards over all rollouts; None where there are none."""
    rollouts = valued_rollouts(batches)
    if not rollouts:
        return None
    return calibration(
        [each.value for each in rollouts if each.value is not None],
        [each.reward for each in rollouts if each.reward is not None],
        [(each.step, each.prompt) for each in rollouts],
    )


def calibration_chart(curve: Calibration | None) -> Markup | None:
    """The reliability curve."""
    if curve is None:
        return None
    points = [(each.mean_value, each.mean_reward) for each in curve.bins]
    ends = [x for point in points for x in point] + [end for each in curve.bins for end in each.interval]
    span = (min(0.0, *ends), max(1.0, *ends))
    return line_chart(
        [Series("mean reward", points, "a", dots=True, intervals=[each.interval for each in curve.bins])],
        title="Mean reward against mean value",
        x_label="mean value",
        x_range=span,
        y_range=span,
        diagonal=True,
    )


def domain_bias(batches: Sequence[Sequence[Rollout]]) -> list[tuple[str, int, float, float]]:
    """Domain, rollouts, mean value and mean reward."""
    by_domain: dict[str, list[tuple[float, float]]] = {}
    for each in valued_rollouts(batches):
        if each.value is not None and each.reward is not None:
            by_domain.setdefault(each.domain or "no domain", []).append((each.value, each.reward))
    return [
        (name, len(rows), sum(v for v, _ in rows) / len(rows), sum(r for _, r in rows) / len(rows))
        for name, rows in sorted(by_domain.items())
    ]


def evidence_figure(metrics: Metrics) -> Figure:
    """The evidence in charge of each domain's baselines over steps."""
    rows: dict[str, list[tuple[float, str]]] = {}
    for line in metrics:
        for domain, text in (line.get("in_charge") or {}).items():
            rows.setdefault(str(domain), []).append((float(line["step"]), str(text).split()[0]))
    chart = strip_chart(
        sorted(rows.items()), title="Evidence in charge of each domain over steps", levels=list(EVIDENCE_SETS)
    )
    if chart is None:
        chart = line_chart(
            [Series("mean evidence level", column(metrics, "poise/evidence_level"), "a")],
            title="Mean evidence level over steps",
        )
    levels = ", ".join(f"{level} {name}" for level, name in enumerate(EVIDENCE_SETS))
    return Figure(
        "Evidence in charge",
        chart,
        f"Which evidence the baselines rest on, judged by what it would have cost so far. Levels: {levels}.",
        missing="This run's preset does not choose its evidence.",
    )


def health_figures(metrics: Metrics) -> list[Figure]:
    """Truncation, length, entropy and clipping."""
    listed = (
        ("Truncated share", "completions/clipped_ratio", "Completions cut off at the largest length."),
        ("Completion length", "completions/mean_length", "Mean, in tokens."),
        ("Entropy", "entropy", "Mean entropy of a token, in nats."),
        ("Clipped share", "clip_ratio/region_mean", "Tokens whose ratio to the behaviour policy was clipped."),
        ("Gradient norm", "grad_norm", "Before clipping."),
        ("Ungradable share", "poise/ungradable_share", "Rollouts without a reward."),
    )
    return [
        Figure(
            title,
            line_chart([Series(title, column(metrics, key), "b")], title=f"{title} over steps", y_range=(0.0, None)),
            note,
        )
        for title, key, note in listed
        if any(y is not None for _, y in column(metrics, key))
    ]
