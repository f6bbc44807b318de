"""Intervals, survival curves and calibration bins.

The independent units are prompts where one policy is judged and seeds where ways of training are compared. All
intervals are 95 %.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import CensoredData, DegenerateDataWarning, bootstrap, ecdf
from scipy.stats import t as student_t

Name = TypeVar("Name", str, int)

NORMAL_95 = 1.959964
"""Standard errors on each side of a 95 % interval."""
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
    """The time at which a run reached its target, or up to which it had not."""

    time: float
    reached: bool


# Shares of prompts.


def wilson_interval(share: float, tosses: int | float) -> tuple[float, float]:
    """The score interval of a share in [0, 1] (Wilson 1927, JASA 22).

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    `scipy.stats.binomtest` takes whole numbers only; here neither the share of n nor n need be whole. For means of
    anything else in [0, 1] it is too wide rather than too narrow: no variance exceeds p (1 - p).

    Raises:
        ValueError: If there are no tosses, or the share is not one.
    """
    if tosses <= 0:
        raise ValueError(f"an interval needs more than 0 tosses, got {tosses:g}")
    if not 0 <= share <= 1:
        raise ValueError(f"an interval needs a share from 0 to 1, got {share:g}")
    z2 = NORMAL_95**2
    middle = share + z2 / (2 * tosses)
    reach = NORMAL_95 * (share * (1 - share) / tosses + z2 / (4 * tosses**2)) ** 0.5
    scale = 1 + z2 / tosses
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def score_interval(scores: Sequence[float], *, completions: int = 1) -> tuple[float, float]:
    """The interval of the mean of one score in [0, 1] a prompt.

    Wilson's, with as many tosses as would have the variance that the scores show:

        n_eff = p (1 - p) / (s^2 / n),   n <= n_eff <= n * completions

    With scores of 0 and 1 this is Wilson's interval for n prompts.

    Args:
        scores: One a prompt.
        completions: That a score is made of: prompts that are all alike are no better known than that many tosses.

    Raises:
        ValueError: If there are no scores.
    """
    n = len(scores)
    if not n:
        raise ValueError("an interval needs at least 1 prompt, got none")
    mean = min(1.0, max(0.0, sum(scores) / n))
    squares = sum((score - mean) ** 2 for score in scores)
    most = float(n * max(1, completions))
    alike = mean * (1 - mean) == 0
    tosses = n if alike or n == 1 else most if squares == 0 else mean * (1 - mean) * n * (n - 1) / squares
    return wilson_interval(mean, min(most, max(float(n), tosses)))


# Means over repetitions, ratios, resampling.


def mean_interval(numbers: Sequence[float]) -> Interval:
    """The mean of independent numbers with Student's interval; paired differences of two arms are such numbers.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(numbers) < 2:
        raise ValueError(f"an interval over seeds needs 2 seeds or more, got {len(numbers)}")
    values = np.asarray(numbers, dtype=float)
    # `ttest_1samp(...).confidence_interval()` is NaN where all numbers are equal.
    reach = float(student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return Interval(mean, mean - reach, mean + reach)


def noise_floor(differences: Sequence[float]) -> float:
    """Half the interval of the mean of differences whose expectation is zero: t_n sqrt(mean d^2 / n).

    Args:
        differences: Between runs of one arm, so that n of them have n degrees of freedom.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(differences) < 2:
        raise ValueError(f"a noise floor needs 2 seeds or more, got {len(differences)}")
    n = len(differences)
    return float(student_t.ppf(0.975, n)) * math.sqrt(float(np.mean(np.square(differences))) / n)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float], num_units: int, *, resamples: int, seed: int
) -> tuple[float, float]:
    """The percentile interval of a statistic over resampled units; NaN where it is never defined.

    The same units are drawn for the same numbers and seed, so that differences of statistics are paired.

    Args:
        statistic: Of the units with these indices.
        num_units: Independent ones, such as prompts.
        resamples: How many times units are drawn with replacement.
        seed: Of the draws.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # where a statistic is not defined for some draws
        found = bootstrap(
            (np.arange(num_units),),
            lambda rows: float(statistic(np.asarray(rows))),
            n_resamples=resamples,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    known = found[np.isfinite(found)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def simplest_within_one_error(errors: Mapping[Name, Float[np.ndarray, " units"]]) -> Name:
    """The first name whose mean error exceeds the lowest by at most one standard error of the paired difference.

    Args:
        errors: For each choice, the simplest first, its errors on the same units.

    Raises:
        ValueError: If there is no choice.
    """
    if not errors:
        raise ValueError("a choice needs 1 candidate or more, got none")
    lowest = min(errors.values(), key=lambda each: float(each.mean()))
    for name, each in errors.items():
        excess = each - lowest
        if float(excess.mean()) <= float(excess.std(ddof=1)) / math.sqrt(len(excess)):
            return name
    raise AssertionError("the lowest error exceeds itself by nothing")


# Times to a target. Runs that end before it are censored.


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
    """The time at which the mean of three evaluations first is the target or more; censored at the end of the run.

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

    Raises:
        ValueError: If there are no runs.
    """
    if not reaches:
        raise ValueError("a mean time needs at least 1 run, got none")
    censored = [not each.reached for each in reaches]
    share = ecdf(CensoredData.right_censored([each.time for each in reaches], censored)).sf
    return [(0.0, 1.0), *zip(share.quantiles.tolist(), share.probabilities.tolist(), strict=True)]


def restricted_mean(reaches: Sequence[Reach], horizon: float) -> float:
    """Mean time to the target, of which no more than `horizon` counts: the area under `survival` up to there.

    With all runs followed to the horizon or to the target this is mean min(time, horizon). Where the last run at risk
    was censored before the horizon, the share stays what it was (Gill's convention).
    """
    steps = [step for step in survival(reaches) if step[0] < horizon]
    ends = [time for time, _ in steps[1:]] + [horizon]
    return sum(share * (end - start) for (start, share), end in zip(steps, ends, strict=True))


def median_reach(reaches: Sequence[Reach]) -> float | None:
    """The time at which half of the runs have reached the target; None if that is never seen."""
    return next((time for time, share in survival(reaches) if share <= 0.5 + 1e-12), None)


def common_horizon(*arms: Sequence[Reach]) -> float:
    """The longest time to which `survival` is known in every arm.

    An arm's is known up to its last run, if that was censored, and for ever if it reached the target. Where it is known
    for ever in all arms, the time of the last run of all.
    """
    last = [max(arm, key=lambda each: (each.time, not each.reached)) for arm in arms]
    return min((each.time for each in last if not each.reached), default=max(each.time for each in last))


def reach_ratio(ours: Sequence[Reach], theirs: Sequence[Reach], horizon: float) -> Interval:
    """Ratio of restricted mean times of two arms on the same seeds, with the interval of a delete-one-seed jackknife.

    The jackknife is of the ratio's logarithm: R exp(-+ t_{n-1} s), s^2 = (n-1)/n sum_k (log R_(k) - mean log R_(.))^2.

    Raises:
        ValueError: If there are fewer than two seeds, or not as many of one arm as of the other.
    """
    n = len(ours)
    if n != len(theirs) or n < 2:
        raise ValueError(f"a paired ratio needs 2 seeds or more of both arms, got {n} and {len(theirs)}")

    def log_ratio(left_out: int | None) -> float:
        a, b = ([each for k, each in enumerate(arm) if k != left_out] for arm in (ours, theirs))
        return math.log(restricted_mean(a, horizon) / restricted_mean(b, horizon))

    value = math.exp(log_ratio(None))
    spread = math.sqrt((n - 1) * float(np.var([log_ratio(k) for k in range(n)])))
    reach = math.exp(float(student_t.ppf(0.975, n - 1)) * spread)
    return Interval(value, value / reach, value * reach)


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


# Calibration.


def quantile_bins(values: NDArray[np.float64], num_bins: int = 10) -> list[NDArray[np.int64]]:
    """Indices of the values of each bin, from low values to high ones; bins hold about as many values each.

    Equal values share a bin, so that there can be fewer bins than asked for. scikit-learn's
    `calibration_curve(strategy="quantile")` has such bins too, and takes rewards of 0 and 1 alone.
    """
    edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins, method="higher"))
    which = np.searchsorted(edges, values, side="right")
    return [np.flatnonzero(which == index) for index in np.unique(which)]
