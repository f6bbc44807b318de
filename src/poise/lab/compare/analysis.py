"""What may be concluded from runs of several arms on the same seeds?

The rule: seeds are the independent draws, arms are compared seed by seed, and a run that does not get where it should
is censored, not dropped. Nothing is called a difference that two runs of one arm show as well.

Times here are whatever grows during a run: seconds, rollouts, or generated tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

SMOOTHED_EVALUATIONS = 3
"""Evaluations whose mean is compared with a target, and whose last mean is the final accuracy."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def excludes(self, number: float) -> bool:
        """Whether a number lies outside."""
        return not self.low <= number <= self.high


@dataclass(frozen=True)
class Reach:
    """When a run reached its target, or till when it had not."""

    time: float
    reached: bool


def smoothed(accuracies: Sequence[float]) -> list[float]:
    """For each evaluation the mean of it and the two before it, or of as many as there are.

    Raises:
        ValueError: If there are none.
    """
    if not accuracies:
        raise ValueError("a mean of evaluations needs at least 1, got none")
    windows = [accuracies[max(0, k + 1 - SMOOTHED_EVALUATIONS) : k + 1] for k in range(len(accuracies))]
    return [sum(window) / len(window) for window in windows]


def first_reach(times: Sequence[float], accuracies: Sequence[float], target: float) -> Reach:
    """When the mean of three evaluations first is the target or more; censored at the end of the run.

    Args:
        times: Of the evaluations, rising.
        accuracies: One for each.
        target: To be reached.
    """
    means = list(zip(times, smoothed(accuracies), strict=True))
    for time, mean in means[SMOOTHED_EVALUATIONS - 1 :]:
        if mean >= target - 1e-12:  # a target that is such a mean itself is reached by it
            return Reach(time, reached=True)
    return Reach(times[-1], reached=False)


def survival(reaches: Sequence[Reach]) -> list[tuple[float, float]]:
    """Kaplan and Meier's share of runs that have not reached the target, as steps (time, share from then on).

    S(t) = prod over times u <= t of (1 - d_u / n_u), d_u runs that reach at u, n_u runs that neither reached nor were
    censored before u (JASA 53, 1958).
    """
    steps, share = [(0.0, 1.0)], 1.0
    for time in sorted({each.time for each in reaches if each.reached}):
        at_risk = sum(each.time >= time for each in reaches)
        reached = sum(each.reached and each.time == time for each in reaches)
        share *= 1 - reached / at_risk
        steps.append((time, share))
    return steps


def restricted_mean(reaches: Sequence[Reach], horizon: float) -> float:
    """Mean time to the target, of which no more than `horizon` counts: the area under `survival` up to there.

    With all runs followed to the horizon or to the target this is mean min(time, horizon). Where the last run at risk
    was censored before the horizon, the share stays what it was (Gill's convention).

    Raises:
        ValueError: If there are no runs.
    """
    if not reaches:
        raise ValueError("a mean time needs at least 1 run, got none")
    steps = [step for step in survival(reaches) if step[0] < horizon]
    ends = [time for time, _ in steps[1:]] + [horizon]
    return sum(share * (end - start) for (start, share), end in zip(steps, ends, strict=True))


def median_reach(reaches: Sequence[Reach]) -> float | None:
    """When half of the runs have reached the target; None if that is never seen."""
    return next((time for time, share in survival(reaches) if share <= 0.5 + 1e-12), None)


def common_horizon(*arms: Sequence[Reach]) -> float:
    """The longest time to which `survival` is known in every arm.

    An arm's is known up to its last run, if that was censored, and for ever if it reached the target. Where it is known
    for ever in all arms, the time of the last run of all.
    """
    last = [max(arm, key=lambda each: (each.time, not each.reached)) for arm in arms]
    return min((each.time for each in last if not each.reached), default=max(each.time for each in last))


def mean_interval(numbers: Sequence[float]) -> Interval:
    """The mean of independent numbers, with Student's interval.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(numbers) < 2:
        raise ValueError(f"an interval over seeds needs 2 seeds or more, got {len(numbers)}")
    values = np.asarray(numbers, dtype=float)
    reach = float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return Interval(mean, mean - reach, mean + reach)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The mean difference of two arms on the same seeds, with its interval.

    Raises:
        ValueError: If there are fewer than two seeds, or not as many of one arm as of the other.
    """
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)])


def reach_ratio(ours: Sequence[Reach], theirs: Sequence[Reach], horizon: float) -> Interval:
    """Ratio of restricted mean times of two arms on the same seeds, with the interval of a delete-one-seed jackknife.

    The jackknife is of the ratio's logarithm: R exp(-+ t_{n-1} s), s^2 = (n-1)/n sum_k (log R_(k) - mean log R_(.))^2.

    Raises:
        ValueError: If there are fewer than two seeds, not as many of one arm as of the other, or a restricted mean is
            undefined.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"a paired ratio needs 2 seeds or more of both arms, got {len(ours)} and {len(theirs)}")

    def log_ratio(kept: Sequence[int]) -> float:
        a, b = ([arm[k] for k in kept] for arm in (ours, theirs))
        return math.log(restricted_mean(a, horizon) / restricted_mean(b, horizon))

    return _jackknifed(log_ratio, len(ours))


def ratio_of_sums(ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]) -> Interval:
    """Ratio of two arms' ratios (sum of firsts / sum of seconds), seeds paired, with a jackknife as in `reach_ratio`.

    For noise to signal: firsts are variances, seconds squared signals, each summed over the measurements of a seed.
    NaN where a sum is not positive: noise has then drowned the signal.

    Raises:
        ValueError: If there are fewer than two seeds, or not as many of one arm as of the other.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"a paired ratio needs 2 seeds or more of both arms, got {len(ours)} and {len(theirs)}")

    def log_ratio(kept: Sequence[int]) -> float:
        (a, b), (c, d) = ((sum(arm[k][0] for k in kept), sum(arm[k][1] for k in kept)) for arm in (ours, theirs))
        return math.log(a / b / (c / d)) if min(a, b, c, d) > 0 else math.nan

    return _jackknifed(log_ratio, len(ours))


def _jackknifed(log_ratio: Callable[[Sequence[int]], float], num_seeds: int) -> Interval:
    seeds = range(num_seeds)
    value = math.exp(log_ratio(seeds))
    left = np.asarray([log_ratio([k for k in seeds if k != out]) for out in seeds])
    spread = math.sqrt((num_seeds - 1) / num_seeds * float(((left - left.mean()) ** 2).sum()))
    reach = math.exp(float(student_t.ppf(0.975, num_seeds - 1)) * spread)
    return Interval(value, value / reach, value * reach)


def noise_floor(differences: Sequence[float]) -> float:
    """How far apart two arms may come by chance: of differences between runs of one arm, half a 95 % interval.

    Their mean is known to be zero, so that n differences have n degrees of freedom: t_n sqrt(mean d^2 / n).

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(differences) < 2:
        raise ValueError(f"a noise floor needs 2 seeds or more, got {len(differences)}")
    squares = float(np.mean(np.square(differences)))
    return float(student_t.ppf(0.975, len(differences)) * math.sqrt(squares / len(differences)))


def verdict(difference: Interval, floor: float) -> str:
    """Whether an arm is "higher" or "lower" than another; "within noise" where chance alone may do the same.

    Named are only differences whose interval excludes zero and which exceed `noise_floor`.
    """
    if not difference.excludes(0.0) or abs(difference.value) <= floor:
        return "within noise"
    return "higher" if difference.value > 0 else "lower"


def ratio_verdict(ratio: Interval, by_chance: Interval) -> str:
    """Whether an arm is "faster" or "slower" than another; "within noise" where chance alone may do the same.

    Named are only ratios whose interval excludes 1 and which are farther from 1 than the interval of `by_chance`, the
    same ratio between runs of one arm.
    """
    floor = max(abs(math.log(by_chance.low)), abs(math.log(by_chance.high)))
    if not ratio.excludes(1.0) or abs(math.log(ratio.value)) <= floor:
        return "within noise"
    return "faster" if ratio.value < 1 else "slower"


def value_at(times: Sequence[float], accuracies: Sequence[float], time: float) -> float:
    """The mean of three evaluations at some time, straight lines between."""
    return float(np.interp(time, times, smoothed(accuracies)))
