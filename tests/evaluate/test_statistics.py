"""What runs on the same seeds allow to conclude: times with censoring by hand, paired intervals, and what is chance."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from poise.evaluate.statistics import (
    Interval,
    Reach,
    bootstrap_interval,
    common_horizon,
    first_reach,
    mean_interval,
    median_reach,
    noise_floor,
    quantile_bins,
    ratio_verdict,
    reach_ratio,
    restricted_mean,
    simplest_within_one_error,
    smoothed,
    survival,
    verdict,
)


def reached(*times):
    return [Reach(float(time), True) for time in times]


def censored(*times):
    return [Reach(float(time), False) for time in times]


def test_a_target_is_reached_by_the_first_mean_of_three_that_is_as_high():
    times, accuracies = [0.0, 10.0, 20.0, 30.0, 40.0], [0.3, 0.9, 0.3, 0.6, 0.6]
    # Means of three: .5, .6, .5; of the first two evaluations there are none, though the second is .9.
    assert smoothed(accuracies) == pytest.approx([0.3, 0.6, 0.5, 0.6, 0.5])
    assert first_reach(times, accuracies, 0.5) == Reach(20.0, True)
    assert first_reach(times, accuracies, 0.6) == Reach(30.0, True)
    assert first_reach(times, accuracies, 0.61) == Reach(40.0, False)


def test_a_run_reaches_its_own_final_accuracy():
    accuracies = [0.1, 0.7 / 3, 0.2 + 1e-17, 0.3, 0.1 + 0.2]
    assert first_reach([0.0, 1.0, 2.0, 3.0, 4.0], accuracies, smoothed(accuracies)[-1]).reached


def test_dropping_censored_runs_would_flatter_an_arm():
    runs = reached(2, 4) + censored(10, 10)
    assert restricted_mean(runs, 10.0) == pytest.approx((2 + 4 + 10 + 10) / 4)
    assert restricted_mean(reached(2, 4), 10.0) == pytest.approx(3)  # the control: what dropping them would say


def test_a_restricted_mean_without_early_censoring_is_the_mean_of_capped_times():
    rng = np.random.default_rng(0)
    times = rng.uniform(1, 9, 20).tolist()
    runs = [Reach(time, True) if time < 6 else Reach(6.0, False) for time in times]
    assert restricted_mean(runs, 6.0) == pytest.approx(np.minimum(times, 6).mean())
    assert restricted_mean(runs, 4.0) == pytest.approx(np.minimum(times, 4).mean())


def test_a_median_that_was_never_seen_is_none():
    assert median_reach(reached(1) + censored(5, 5)) is None
    assert median_reach(reached(1, 3, 8)) == 3


def test_two_arms_are_followed_as_long_as_both_are_known():
    assert common_horizon(reached(2) + censored(9), reached(20) + censored(12)) == 9
    assert common_horizon(censored(3) + reached(7), reached(5, 6)) == 7
    assert common_horizon(reached(2) + censored(2), reached(1)) == 2  # at a tie the censored one was at risk longer


def test_a_ratio_of_times_is_of_restricted_means_with_seeds_paired():
    ours, theirs = reached(1, 2, 3, 4), reached(2, 4, 6, 8)
    found = reach_ratio(ours, theirs, 8.0)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))  # every seed says one half
    wider = reach_ratio(ours, [theirs[k] for k in (3, 2, 1, 0)], 8.0)
    assert wider.value == pytest.approx(0.5)
    assert wider.low < 0.4 < 0.6 < wider.high


def test_the_interval_of_a_ratio_covers_it():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        common = rng.lognormal(0, 0.3, 8)
        ours, theirs = (scale * common * rng.lognormal(0, 0.2, 8) for scale in (0.6, 1.0))
        found = reach_ratio(reached(*ours), reached(*theirs), 1e9)
        covered += found.low <= 0.6 <= found.high
    assert 0.91 < covered / 400 < 0.98


def test_the_noise_floor_holds_identical_arms_apart_as_often_as_it_says():
    rng = np.random.default_rng(2)
    exceeded = 0
    for _ in range(2000):
        twins, differences = rng.normal(0, 1, (2, 5)) * math.sqrt(2)
        exceeded += abs(differences.mean()) > noise_floor(twins.tolist())
    # The mean of other five differences is beyond t_5 times an independent standard error in 5 % of cases.
    assert 0.035 < exceeded / 2000 < 0.065


def test_no_winner_is_named_inside_the_noise():
    assert verdict(Interval(0.05, 0.01, 0.09), floor=0.02) == "higher"
    assert verdict(Interval(-0.05, -0.09, -0.01), floor=0.02) == "lower"
    assert verdict(Interval(0.05, -0.01, 0.11), floor=0.02) == "within noise"
    assert verdict(Interval(0.05, 0.01, 0.09), floor=0.06) == "within noise"
    twins = Interval(1.1, 0.8, 1.5)
    assert ratio_verdict(Interval(0.5, 0.4, 0.7), twins) == "faster"
    assert ratio_verdict(Interval(2.0, 1.6, 2.6), twins) == "slower"
    assert ratio_verdict(Interval(0.7, 0.6, 0.8), twins) == "within noise"  # 1 / 1.5 is closer to 1 than chance comes
    assert ratio_verdict(Interval(0.5, 0.2, 1.1), twins) == "within noise"


@pytest.mark.parametrize("asked", [lambda: mean_interval([0.5]), lambda: noise_floor([0.1])])
def test_one_seed_has_no_interval(asked):
    with pytest.raises(ValueError, match="2 seeds or more, got 1"):
        asked()


def test_arms_with_other_numbers_of_seeds_are_not_paired():
    with pytest.raises(ValueError, match="got 3 and 2"):
        reach_ratio(reached(1, 2, 3), reached(1, 2), 5.0)


def test_survival_is_kaplan_and_meiers():
    # Five runs: reached at 2, censored at 3, reached at 4 and 4, censored at 5.
    # At 2: 5 at risk, S = 4/5. At 4: 3 at risk, 2 reach, S = 4/5 * 1/3 = 4/15.
    runs = reached(2, 4, 4) + censored(3, 5)
    steps = [(0, 1), (2, 4 / 5), (3, 4 / 5), (4, 4 / 15), (5, 4 / 15)]
    assert survival(runs) == [pytest.approx(step) for step in steps]
    # Up to 5: 2 * 1 + 2 * 4/5 + 1 * 4/15; up to 3 the run that is censored there counts whole.
    assert restricted_mean(runs, 5.0) == pytest.approx(2 + 8 / 5 + 4 / 15)
    assert restricted_mean(runs, 3.0) == pytest.approx(2 + 4 / 5)
    assert restricted_mean(censored(3, 3), 3.0) == 3.0
    assert median_reach(runs) == 4


def test_intervals_are_students_and_those_of_differences_paired():
    ours, theirs = np.array([0.5, 0.62, 0.58, 0.6]), np.array([0.4, 0.55, 0.57, 0.5])
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    found = mean_interval((ours - theirs).tolist())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert mean_interval([0.25] * 3) == Interval(0.25, 0.25, 0.25)


def test_a_bootstrap_leaves_out_a_fortieth_on_each_side_and_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(60):
        sample = rng.normal(1.0, 1.0, 50)
        low, high = bootstrap_interval(lambda rows: sample[rows].mean(), 50, resamples=60, seed=0)  # noqa: B023
        hits.append(low <= 1.0 <= high)
    assert np.mean(hits) > 0.8
    drawn = []
    bootstrap_interval(lambda rows: drawn.append(rows) or 0.0, 9, resamples=4, seed=1)
    bootstrap_interval(lambda rows: drawn.append(rows) or 0.0, 9, resamples=4, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(drawn[:4], drawn[4:], strict=True))
    assert not np.array_equal(drawn[0], drawn[1])
    numbers = iter([*range(41), math.nan])  # what is not defined is left out
    assert bootstrap_interval(lambda rows: next(numbers), 3, resamples=42, seed=0) == pytest.approx((1.0, 39.0))
    assert all(map(math.isnan, bootstrap_interval(lambda rows: math.nan, 3, resamples=4, seed=0)))


def test_bins_hold_equally_many_values_and_never_part_equal_ones():
    assert [bin.tolist() for bin in quantile_bins(np.arange(6.0)[::-1], 3)] == [[4, 5], [2, 3], [0, 1]]
    values = np.array([0.5] * 7 + [0.1, 0.9, 0.9])
    bins = quantile_bins(values)
    assert sorted(np.concatenate(bins).tolist()) == list(range(10))
    assert [set(values[each]) for each in bins] == [{0.1}, {0.5}, {0.9}]


def test_the_simplest_choice_within_one_standard_error_is_taken():
    lowest, spread = np.zeros(100), np.tile([0.1, -0.1], 50)
    error = 0.1 * math.sqrt(100 / 99) / 10  # of the mean of the differences
    near, far = spread + 0.9 * error, spread + 1.1 * error
    assert simplest_within_one_error({"far": far, "near": near, "lowest": lowest}) == "near"
    assert simplest_within_one_error({"lowest": lowest, "near": near}) == "lowest"
    # Prompts differ far more than choices do; a choice that is worse on each of them is worse.
    hard = np.random.default_rng(0).random(200)
    assert simplest_within_one_error({"worse": hard + 0.001, "better": hard}) == "better"
