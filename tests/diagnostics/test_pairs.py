"""What pairs of rollouts tell: by hand, by full enumeration, and against a known V."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from poise.diagnostics.pairs import PairScoreboard


def scoreboard(rewards, baselines, prompts, gradable=None):
    rewards, baselines = torch.tensor(rewards).double(), torch.tensor(baselines).double()
    gradable = torch.ones(len(rewards)).bool() if gradable is None else torch.tensor(gradable).bool()
    return PairScoreboard().observe(rewards, baselines, torch.tensor(prompts), gradable)


def test_metrics_of_three_pairs_by_hand():
    # Pairs (1, 1), (1, 0), (0, 0): within = (0 + 1/2 + 0)/3 = 1/6; means 1, 1/2, 0, so square = 2 (1 * 1/2)/6 = 1/6;
    # products = (1 + 0 + 0)/3 = 1/3; mean r^2 = 1/2. Var r = 1/2 - 1/6 = 1/3; Var V = 1/3 - 1/6 = 1/6.
    # Baselines of 1/2 lose 1/4: reduction = 1 - (1/4)/(1/3) = 1/4; MSE = 1/4 - 1/6 = 1/12.
    metrics = scoreboard([1, 1, 1, 0, 0, 0], [0.5] * 6, [0, 0, 1, 1, 2, 2]).metrics()
    assert metrics == pytest.approx(
        {"noise_ceiling": 1 / 2, "variance_reduction": 1 / 4, "ceiling_share": 1 / 2, "value_error": 1 / 12}
    )


def test_unequal_groups_by_hand():
    # A group (1, 0, 1) and a pair (0, 0): within = (1/3 + 0)/2; square = 2/3 * 0 = 0; products = (1/3 + 0)/2;
    # mean r^2 = (2/3 + 0)/2.
    metrics = scoreboard([1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]).metrics()
    assert metrics == pytest.approx(
        {"noise_ceiling": 1 / 2, "variance_reduction": 0, "ceiling_share": 0, "value_error": 1 / 3 - 1 / 6}
    )


def test_prompts_without_two_gradable_rollouts_count_nowhere():
    whole = scoreboard([1, 0, 0.5, 1, 0, 0, 1], [0.3] * 7, [0, 0, 1, 2, 2, 2, 3], [1, 1, 1, 1, 1, 0, 1])
    kept = scoreboard([1, 0, 1, 0], [0.3] * 4, [0, 0, 1, 1])
    assert_close(whole.sums, kept.sums)


def test_nan_where_undefined():
    empty = PairScoreboard().metrics()
    assert all(math.isnan(value) for value in empty.values())
    single = scoreboard([1, 0], [0.5, 0.5], [0, 0]).metrics()  # one prompt has no variance over prompts
    assert all(math.isnan(value) for value in single.values())
    flat = scoreboard([1.0] * 4, [1.0] * 4, [0, 0, 1, 1]).metrics()
    assert math.isnan(flat["noise_ceiling"])
    assert flat["value_error"] == 0
    noise = scoreboard([1, 0, 0, 1], [0.5] * 4, [0, 0, 1, 1]).metrics()  # V the same everywhere
    assert noise["noise_ceiling"] < 0.02
    assert math.isnan(noise["ceiling_share"])


def test_no_rows_change_nothing():
    nothing = torch.zeros(0).double()
    before = scoreboard([1, 0, 1, 1], [0.5] * 4, [0, 0, 1, 1])
    sums = before.sums.clone()
    before.observe(nothing, nothing, torch.zeros(0, dtype=torch.int64), torch.zeros(0).bool())
    assert torch.equal(before.sums, sums)


def test_ratios_are_ratios_of_faded_sums():
    board = PairScoreboard(decay=0.5)
    steps = [([1, 1, 0, 0], [0, 0, 1, 1]), ([1, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2])]
    for rewards, prompts in steps:
        board.observe(
            torch.tensor(rewards).double(),
            torch.full((len(rewards),), 0.5).double(),
            torch.tensor(prompts),
            torch.ones(len(rewards)).bool(),
        )
    alone = [scoreboard(rewards, [0.5] * len(rewards), prompts).sums for rewards, prompts in steps]
    assert_close(board.sums, 0.5 * alone[0] + alone[1])


@pytest.mark.parametrize("sizes", [(2, 2, 2), (2, 3, 2)])
def test_every_sum_is_unbiased_by_full_enumeration(sizes):
    # All outcomes of coins of known V; b leaves the own rollout out: the mean of the siblings, shrunk.
    values = torch.tensor([0.1, 0.6, 0.9]).double()
    groups = torch.tensor([p for p, size in enumerate(sizes) for _ in range(size)])
    expected, true_losses = torch.zeros(6).double(), 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=len(groups)):
        rewards = torch.tensor(outcome).double()
        chance = float(torch.where(rewards == 1, values[groups], 1 - values[groups]).prod())
        totals = torch.zeros(3).double().index_add_(0, groups, rewards)[groups]
        counts = torch.bincount(groups)[groups]
        baselines = 0.2 + 0.5 * (totals - rewards) / (counts - 1)
        board = PairScoreboard().observe(rewards, baselines, groups, torch.ones(len(groups)).bool())
        expected += chance * board.sums
        errors = (baselines - values[groups]) ** 2
        true_losses += chance * sum(float(errors[groups == p].mean()) for p in range(3))
    count, within, square, products, _, losses = expected.tolist()
    mean_square = float(values.sum() ** 2 - (values**2).sum()) / 6
    assert count == pytest.approx(3)
    assert within / 3 == pytest.approx(float((values * (1 - values)).mean()))
    assert square / 3 == pytest.approx(mean_square)
    assert products / 3 == pytest.approx(float((values**2).mean()))
    assert losses - within == pytest.approx(true_losses)


def test_ceiling_and_error_find_a_known_world():
    # V ~ Uniform(0, 1): Var V = 1/12, Var r = 1/4, ceiling 1/3. The baseline errs by .1 on every prompt.
    generator = torch.Generator().manual_seed(0)
    board = PairScoreboard(decay=1.0)
    for _ in range(20):
        values = torch.rand(1000, generator=generator, dtype=torch.float64)
        groups = torch.arange(1000).repeat_interleave(2)
        rewards = (torch.rand(2000, generator=generator, dtype=torch.float64) < values[groups]).double()
        board.observe(rewards, values[groups] + 0.1, groups, torch.ones(2000).bool())
    metrics = board.metrics()
    assert metrics["noise_ceiling"] == pytest.approx(1 / 3, abs=0.02)
    assert metrics["value_error"] == pytest.approx(0.01, abs=0.004)
    assert metrics["variance_reduction"] == pytest.approx(1 / 3 - 0.04, abs=0.02)


def test_control_a_baseline_that_holds_its_own_reward_seems_better_than_v():
    # MSE(b, V) = E (r - b)^2 - within is for leave-out baselines; the own reward drives it below zero.
    board = scoreboard([1, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2])
    assert board.metrics()["value_error"] < -0.1
