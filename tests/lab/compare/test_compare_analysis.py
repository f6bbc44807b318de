"""What runs on the same seeds allow to conclude: times with censoring by hand, paired intervals, and what is chance."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from poise.lab.compare.analysis import (
    Interval,
    Reach,
    common_horizon,
    first_reach,
    mean_interval,
    median_reach,
    noise_floor,
    paired_difference,
    ratio_of_sums,
    ratio_verdict,
    reach_ratio,
    restricted_mean,
    smoothed,
    survival,
    value_at,
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


def test_survival_is_kaplan_and_meiers():
    # Five runs: reached at 2, censored at 3, reached at 4 and 4, censored at 5.
    # At 2: 5 at risk, S = 4/5. At 4: 3 at risk, 2 reach, S = 4/5 * 1/3 = 4/15.
    runs = reached(2, 4, 4) + censored(3, 5)
    assert survival(runs) == [(0.0, 1.0), (2, pytest.approx(4 / 5)), (4, pytest.approx(4 / 15))]
    # Up to 5: 2 * 1 + 2 * 4/5 + 1 * 4/15; up to 3 the run that is censored there counts whole.
    assert restricted_mean(runs, 5.0) == pytest.approx(2 + 8 / 5 + 4 / 15)
    assert restricted_mean(runs, 3.0) == pytest.approx(2 + 4 / 5)
    assert median_reach(runs) == 4


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


def test_intervals_are_students():
    ours, theirs = [0.5, 0.62, 0.58, 0.6], [0.4, 0.55, 0.57, 0.5]
    found = paired_difference(ours, theirs)
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    expected = ttest_1samp(ours, 0).confidence_interval(0.95)
    assert (mean_interval(ours).low, mean_interval(ours).high) == pytest.approx((expected.low, expected.high))


def test_pairing_narrows_an_interval_where_seeds_matter():
    ours, theirs = [0.35, 0.56, 0.75, 0.94], [0.3, 0.5, 0.7, 0.9]
    assert paired_difference(ours, theirs).excludes(0.0)
    mixed_up = [theirs[k] for k in (2, 0, 3, 1)]  # the control
    assert not paired_difference(ours, mixed_up).excludes(0.0)


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


def test_noise_to_signal_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    ours, theirs = [(4.0, 1.0), (2.0, 2.0)], [(3.0, 1.0), (3.0, 0.5)]
    assert ratio_of_sums(ours, theirs).value == pytest.approx((6 / 3) / (6 / 1.5))
    assert math.isnan(ratio_of_sums([(4.0, -1.0), (2.0, 0.5)], theirs).value)


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


def test_accuracy_at_a_time_lies_between_means_of_three():
    assert value_at([0.0, 1.0, 2.0, 3.0], [0.0, 0.3, 0.6, 0.9], 2.5) == pytest.approx((0.3 + 0.6) / 2)


@pytest.mark.parametrize("asked", [lambda: mean_interval([0.5]), lambda: noise_floor([0.1])])
def test_one_seed_has_no_interval(asked):
    with pytest.raises(ValueError, match="2 seeds or more, got 1"):
        asked()


def test_arms_with_other_numbers_of_seeds_are_not_paired():
    with pytest.raises(ValueError, match="got 3 and 2"):
        reach_ratio(reached(1, 2, 3), reached(1, 2), 5.0)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
