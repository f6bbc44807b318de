"""Calibration of values: the mean reward of rollouts whose values lie close together.

A bin is a range of values, never of rewards, and holds about as many rollouts as any other. Rollouts of one prompt are
no independent tosses, so a bin's interval counts prompts: as many tosses as it has prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from poise.evaluate.statistics import quantile_bins, wilson_interval


@dataclass(frozen=True)
class CalibrationBin:
    """Rollouts whose values lie close together."""

    lowest: float
    highest: float
    """Values that came, not the edges of the bin."""
    mean_value: float
    mean_reward: float
    interval: tuple[float, float]
    """95 %, of the mean reward."""
    num_rollouts: int
    num_prompts: int


@dataclass(frozen=True)
class Calibration:
    """Values against rewards."""

    bins: tuple[CalibrationBin, ...]
    """From low values to high ones."""
    error: float
    """mean over rollouts of |mean value - mean reward| of their bin, in units of reward."""
    bias: float
    """mean value - mean reward."""
    num_rollouts: int


def calibration(
    values: Sequence[float], rewards: Sequence[float], prompts: Sequence[object], *, num_bins: int = 10
) -> Calibration:
    """Compare values with rewards in bins of equal counts.

    Equal values stay in one bin, so that there can be fewer bins than asked for. Rewards outside [0, 1] widen the
    range in which the intervals are taken.

    Args:
        values: One a rollout, finite.
        rewards: One a rollout, finite.
        prompts: Equal ones are one prompt; a prompt met again at another step is another, since the policy is.
        num_bins: Largest number of bins.

    Raises:
        ValueError: If there are no rollouts, or the lengths differ.
    """
    v, r = np.asarray(values, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if not len(v) == len(r) == len(prompts):
        raise ValueError(
            f"calibration needs a reward and a prompt for each of {len(v)} values, got {len(r)} and {len(prompts)}"
        )
    if not len(v):
        raise ValueError("calibration needs at least 1 rollout, got none")
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    who = np.array([number[prompt] for prompt in prompts])
    lowest, highest = min(0.0, float(r.min())), max(1.0, float(r.max()))
    bins = []
    for inside in quantile_bins(v, num_bins):
        mean, tosses = float(r[inside].mean()), len(np.unique(who[inside]))
        low, high = wilson_interval((mean - lowest) / (highest - lowest), tosses)
        bins.append(
            CalibrationBin(
                lowest=float(v[inside].min()),
                highest=float(v[inside].max()),
                mean_value=float(v[inside].mean()),
                mean_reward=mean,
                interval=(lowest + low * (highest - lowest), lowest + high * (highest - lowest)),
                num_rollouts=len(inside),
                num_prompts=tosses,
            )
        )
    return Calibration(
        bins=tuple(bins),
        error=sum(each.num_rollouts * abs(each.mean_value - each.mean_reward) for each in bins) / len(v),
        bias=float(v.mean() - r.mean()),
        num_rollouts=len(v),
    )
