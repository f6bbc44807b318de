"""Calibration of values: bins of equal counts, their intervals, and what scikit-learn finds."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from poise.evaluate.statistics import wilson_interval
from poise.report.calibration import calibration


def test_calibration_equals_a_direct_computation():
    random = np.random.default_rng(0)
    values = random.beta(0.5, 0.5, size=400)
    rewards = (random.random(400) < values**2).astype(float)
    prompts = [index // 2 for index in range(400)]
    found = calibration(values.tolist(), rewards.tolist(), prompts, num_bins=8)
    order = np.argsort(values)
    chunks = np.array_split(order, 8)
    assert [each.num_rollouts for each in found.bins] == [len(chunk) for chunk in chunks]
    for each, chunk in zip(found.bins, chunks, strict=True):
        assert each.mean_value == pytest.approx(values[chunk].mean())
        assert each.mean_reward == pytest.approx(rewards[chunk].mean())
        assert (each.lowest, each.highest) == (values[chunk].min(), values[chunk].max())
        assert each.num_prompts == len({prompts[index] for index in chunk})
        assert each.interval == pytest.approx(wilson_interval(each.mean_reward, each.num_prompts))
    assert found.bias == pytest.approx(values.mean() - rewards.mean())
    gaps = [len(chunk) / 400 * abs(values[chunk].mean() - rewards[chunk].mean()) for chunk in chunks]
    assert found.error == pytest.approx(sum(gaps))
    # scikit-learn's quantile bins lie where ours do.
    true, predicted = calibration_curve(rewards, values, n_bins=8, strategy="quantile")
    assert [each.mean_reward for each in found.bins] == pytest.approx(true.tolist(), abs=0.03)
    assert [each.mean_value for each in found.bins] == pytest.approx(predicted.tolist(), abs=0.03)


def test_values_that_are_right_are_found_calibrated_and_others_are_not():
    random = np.random.default_rng(1)
    truth = random.random(4000)
    rewards = (random.random(4000) < truth).astype(float).tolist()
    prompts = list(range(4000))
    right = calibration(truth.tolist(), rewards, prompts)
    assert sum(low <= each.mean_value <= high for each in right.bins for low, high in [each.interval]) >= 9
    assert right.error < 0.03
    wrong = calibration((0.5 + truth / 2).tolist(), rewards, prompts)
    assert sum(low <= each.mean_value <= high for each in wrong.bins for low, high in [each.interval]) <= 2
    assert wrong.error > 0.2


def test_equal_values_stay_in_one_bin_and_rewards_may_leave_zero_to_one():
    found = calibration([0.5] * 6 + [0.9] * 2, [-2.0, 3.0, 3.0, 3.0, 3.0, -2.0, 0.0, 1.0], list("aabbccdd"))
    assert [each.num_rollouts for each in found.bins] == [6, 2]
    assert found.bins[0].mean_reward == pytest.approx(8 / 6)
    low, high = wilson_interval((8 / 6 + 2) / 5, 3)
    assert found.bins[0].interval == pytest.approx((-2 + 5 * low, -2 + 5 * high))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], [], []), "calibration needs at least 1 rollout, got none"),
        (([0.5], [1.0, 0.0], ["x"]), "needs a reward and a prompt for each of 1 values, got 2 and 1"),
    ],
)
def test_nothing_to_calibrate_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        calibration(*arguments)
