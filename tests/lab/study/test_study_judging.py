"""Measures of value estimates: against scikit-learn, scipy and loops; the noise of what judges is taken off rightly."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import brier_score_loss, roc_auc_score

from poise.lab.study.comparisons import noise_of
from poise.lab.study.judging import (
    MEASURES,
    calibration_points,
    judged,
    judged_oracle,
    value_error,
)


@pytest.fixture
def estimates_and_rewards():
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(40, generator=generator, dtype=torch.float64)
    rewards = (torch.rand(40, 6, generator=generator, dtype=torch.float64) < values[:, None]).double()
    estimates = (values[:, None] + 0.2 * torch.randn(40, 2, generator=generator)).clamp(0, 1)
    estimates[:5] = 0.5  # ties
    return estimates, rewards


def each_column(estimates, rewards):
    """For each choice of evidence: its estimates, the mean of the other rewards, and these rewards."""
    for j in range(estimates.shape[1]):
        others = np.delete(rewards.numpy(), j, axis=1)
        yield estimates[:, j].numpy(), others.mean(axis=1), others


@pytest.mark.parametrize(
    ("measure", "oracle"),
    [
        ("mae", lambda e, a, _: np.mean([abs(x - y) for x, y in zip(e, a, strict=True)])),
        ("pearson", lambda e, a, _: stats.pearsonr(e, a).statistic),
        ("spearman", lambda e, a, _: stats.spearmanr(e, a).statistic),
        ("auroc", lambda e, _, r: roc_auc_score(r.ravel(), np.repeat(e, r.shape[1]))),
        (
            "brier_skill",
            lambda e, _, r: (
                1
                - brier_score_loss(r.ravel(), np.repeat(e, r.shape[1]))
                / brier_score_loss(r.ravel(), np.full(r.size, r.mean()))
            ),
        ),
    ],
)
def test_measures_agree_with_independent_ones(estimates_and_rewards, measure, oracle):
    expected = np.mean([oracle(*column) for column in each_column(*estimates_and_rewards)])
    assert MEASURES[measure](judged(*estimates_and_rewards)) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_is_that_of_ten_bins_of_equally_many():
    estimates = torch.arange(20, dtype=torch.float64)[:, None] / 20
    rewards = torch.zeros(20, 4, dtype=torch.float64)
    rewards[10:, 1:] = 1.0  # the first draw is the evidence, and judges nothing
    by_hand = [abs((2 * k + 0.5) / 20 - (k >= 5)) for k in range(10)]
    assert MEASURES["calibration_error"](judged(estimates, rewards)) == pytest.approx(np.mean(by_hand))
    assert calibration_points(judged(estimates, rewards))[0] == pytest.approx((0.025, 0.0))


def simulated(times, *, draws=4):
    """Estimates that err in a known way, and rewards, of one world many times over."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(50, generator=generator, dtype=torch.float64)
    for _ in range(times):
        rewards = (torch.rand(50, draws, generator=generator, dtype=torch.float64) < values[:, None]).double()
        yield values, rewards, (values[:, None] + torch.tensor([0.1, -0.2])).expand(50, 2)


def test_squared_error_is_that_to_the_true_value_on_average():
    truth = (0.1**2 + 0.2**2) / 2
    runs = [judged(estimates, rewards) for _, rewards, estimates in simulated(150)]
    errors = [value_error(each) for each in runs]
    standard_error = np.std(errors) / len(errors) ** 0.5
    assert np.mean(errors) == pytest.approx(truth, abs=4 * standard_error)
    # The control: with the noise of the judging mean left in, it is far off.
    raw = [((each.estimates - each.means) ** 2).mean() for each in runs]
    assert np.mean(raw) - truth > 10 * standard_error


def test_the_oracle_errs_by_the_noise_of_its_own_mean_on_average():
    runs = list(simulated(150))
    errors = [value_error(judged_oracle(rewards)) for _, rewards, _ in runs]
    values = runs[0][0]
    expected = float((values * (1 - values)).mean()) / 3  # a mean of three others
    assert np.mean(errors) == pytest.approx(expected, abs=4 * np.std(errors) / len(errors) ** 0.5)


def test_the_reward_of_the_evidence_judges_nothing(estimates_and_rewards):
    estimates, rewards = estimates_and_rewards
    changed = rewards.clone()
    changed[:, 0] = 1 - changed[:, 0]
    before, after = judged(estimates, rewards), judged(estimates, changed)
    for name in ("means", "noise", "squares", "right", "wrong"):
        assert np.array_equal(getattr(before, name)[:, 0], getattr(after, name)[:, 0])
        assert not np.array_equal(getattr(before, name)[:, 1], getattr(after, name)[:, 1])  # there it does


def test_one_judging_rollout_is_too_few():
    with pytest.raises(ValueError, match="2 other rollouts of its prompt or more, got 1"):
        judged(torch.zeros(3, 1), torch.zeros(3, 2, dtype=torch.float64))


def test_measures_that_are_not_defined_are_nan():
    constant = judged(torch.full((6, 1), 0.5), torch.zeros(6, 4, dtype=torch.float64))
    assert all(np.isnan(MEASURES[name](constant)) for name in ("pearson", "spearman", "auroc", "brier_skill"))


def test_the_noise_ceiling_is_the_share_of_variance_that_lies_between_prompts():
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(20000, generator=generator, dtype=torch.float64)
    rewards = (torch.rand(20000, 3, generator=generator, dtype=torch.float64) < values[:, None]).double()
    noise = noise_of(rewards)  # V is uniform: Var V = 1/12, Var r = 1/4
    assert noise.value_variance == pytest.approx(1 / 12, abs=0.004)
    assert noise.ceiling == pytest.approx(1 / 3, abs=0.015)
    assert not noise.says_nothing
    assert noise_of((torch.rand(500, 4, generator=generator) < 0.5).double()).says_nothing
