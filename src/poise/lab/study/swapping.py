"""What would each baseline have been on rollouts that a training run has saved?

The rule: pairs tell the error of a baseline to the true expected reward without a single new rollout
(`poise.diagnostics.pairs`), so one saved batch compares all of them. A baseline that is fitted on earlier steps is
fitted on the other half of the prompts instead; every other one is made as in a run's first step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor

import poise
from poise.diagnostics.pairs import PairScoreboard
from poise.evaluate.statistics import NORMAL_95
from poise.lab.study.estimators import ready_after_one_step
from poise.lab.study.saved import SavedRollouts
from poise.presets import EarlierStepsRecipe


@dataclass(frozen=True)
class SwappedBaseline:
    """One baseline on the saved rollouts."""

    name: str
    exact: bool
    """Whether it leaves the rollout out; if not, its errors say nothing."""
    value_error: float
    """Mean squared error to V."""
    value_error_interval: tuple[float, float]
    variance_reduction: float
    ceiling_share: float
    weighted_risk: float
    """Sum w (r - b)^2 / sum w r^2; the weights are 1 without a model."""


@dataclass(frozen=True)
class SwappedBaselines:
    """Every baseline that has its evidence."""

    lines: list[SwappedBaseline]
    noise_ceiling: float
    num_prompts: int
    """With two graded rollouts or more."""
    left_out: list[str]
    """Presets that read features, where there are none."""


def swapped_baselines(
    rollouts: SavedRollouts,
    features: poise.Features | None,
    weights: Float[Tensor, " rows"] | None,
    *,
    watch: Callable[[str], None] = lambda name: None,
) -> SwappedBaselines:
    """Every preset's baselines of the same rollouts, and what pairs tell of each.

    Args:
        rollouts: What a run saved.
        features: None: presets that read some are left out.
        weights: Score-norm weights; None for 1.
        watch: Told which is made next.
    """
    presets = {"leave-out mean": poise.preset("poise-value", evidence=("constant", "domain"))} | dict(poise.PRESETS)
    able = {name: each for name, each in presets.items() if features is not None or not each.needs_features}
    known = torch.ones_like(rollouts.rewards) if weights is None else weights.double()
    lines, ceiling, num_prompts = [], math.nan, 0
    for name, preset in able.items():
        watch(name)
        baselines = _swapped(preset, rollouts, features, weights)
        board = PairScoreboard().observe(rollouts.rewards.nan_to_num(), baselines, rollouts.groups, rollouts.gradable)
        told = board.metrics()
        ceiling, num_prompts = told["noise_ceiling"], int(board.sums[0])
        gradable = rollouts.gradable
        rewards, w = rollouts.rewards[gradable], known[gradable]
        risk = float((w * (rewards - baselines[gradable]) ** 2).sum() / (w * rewards**2).sum())
        lines.append(
            SwappedBaseline(
                name,
                preset.exact,
                told["value_error"],
                _value_error_interval(rollouts, baselines),
                told["variance_reduction"],
                told["ceiling_share"],
                risk,
            )
        )
    return SwappedBaselines(lines, ceiling, num_prompts, [name for name in presets if name not in able])


def _swapped(
    preset: poise.Preset,
    rollouts: SavedRollouts,
    features: poise.Features | None,
    weights: Float[Tensor, " rows"] | None,
) -> Float[Tensor, " rows"]:
    """The baselines of one preset; rows of prompts with a single rollout are left at 0."""
    siblings = torch.bincount(rollouts.groups)[rollouts.groups] > 1
    baselines = torch.zeros_like(rollouts.rewards)
    half = rollouts.groups % 2 == 0
    steps = [(siblings,)] if not isinstance(preset.recipe, EarlierStepsRecipe) else [(half, ~half), (~half, half)]
    for each in steps:
        baseline = poise.OnlineBaseline(ready_after_one_step(preset, num_rows=len(half)))
        for inside in each:
            rows = (inside & siblings).nonzero()[:, 0]
            step = baseline.step(
                None if features is None else features.mapped(itemgetter(rows)),
                rollouts.rewards[rows],
                prompts=rollouts.groups[rows],
                domains=[rollouts.domains[row] for row in rows.tolist()],
                weights=None if weights is None or not preset.weighted else weights[rows],
            )
        baselines[rows] = step.baselines
    return baselines


def _value_error_interval(rollouts: SavedRollouts, baselines: Float[Tensor, " rows"]) -> tuple[float, float]:
    """The 95 % interval of the mean over prompts of (r - b)^2 - s^2, as of independent prompts."""
    index, r, b = (each[rollouts.gradable] for each in (rollouts.groups, rollouts.rewards, baselines))

    def summed(column: Float[Tensor, " rows"]) -> Float[Tensor, " prompts"]:
        return torch.zeros(int(index.max()) + 1, dtype=torch.float64).index_add_(0, index, column)

    count = summed(torch.ones_like(r))
    pairs = count > 1
    n = count[pairs]
    variances = (summed(r**2)[pairs] - summed(r)[pairs] ** 2 / n) / (n - 1)
    errors = summed((r - b) ** 2)[pairs] / n - variances
    mean, reach = float(errors.mean()), NORMAL_95 * float(errors.std()) / math.sqrt(len(errors))
    return mean - reach, mean + reach


def swapped_markdown(swapped: SwappedBaselines) -> str:
    """The comparison as a table."""
    heads = ["baseline", "error to V", "variance reduction", "share of ceiling", "weighted risk"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for line in swapped.lines:
        low, high = line.value_error_interval
        told = [
            f"{line.value_error:.4f} [{low:.4f}, {high:.4f}]",
            f"{line.variance_reduction:.3f}",
            "–" if math.isnan(line.ceiling_share) else f"{line.ceiling_share:.3f}",
            f"{line.weighted_risk:.3f}",
        ]
        rows.append([line.name, *(told if line.exact else ["depends on the rollout itself", "–", "–", "–"])])
    left_out = (
        f"\nWithout a model, and so without features: {', '.join(swapped.left_out)}.\n" if swapped.left_out else ""
    )
    return (
        f"{swapped.num_prompts} prompts with two graded rollouts or more; noise ceiling "
        f"{swapped.noise_ceiling:.2f}.\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + left_out
    )
