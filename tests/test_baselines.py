"""Sibling means and the baselines made of rewards alone, against loops and by hand."""

import pytest
import torch
from torch.testing import assert_close

from oracles import sibling_mean
from poise.baselines import (
    cross_rollout_baselines,
    group_mean_baselines,
    rloo_baselines,
    sibling_means,
)
from poise.batch import prompt_groups

PROMPTS = ["a", "b", "a", "c", "b", "a", "d", "d", "d", "d"]
GRADABLE = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0, 1]).bool()


def columns(*widths):
    return torch.rand(len(PROMPTS), *widths, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_equal_prompts_are_siblings_wherever_they_stand():
    assert prompt_groups(PROMPTS).tolist() == [0, 1, 0, 2, 1, 0, 3, 3, 3, 3]
    assert prompt_groups([("x", 1), 1, ("x", 1)]).tolist() == [0, 1, 0]
    assert prompt_groups([]).shape == (0,)


def test_sibling_means_equal_a_loop_that_skips_ungradable_rows():
    table = columns(3)
    means, counts = sibling_means(table, prompt_groups(PROMPTS), GRADABLE)
    expected = [sibling_mean(table[:, k].tolist(), PROMPTS, GRADABLE.tolist()) for k in range(3)]
    assert_close(means, torch.tensor(expected, dtype=torch.float64).T)
    assert counts.tolist() == [1, 1, 2, 0, 1, 1, 2, 2, 3, 2]


def test_what_is_written_in_an_ungradable_row_does_not_matter_even_nan():
    table = columns(2)
    means, _ = sibling_means(table, prompt_groups(PROMPTS), GRADABLE)
    table[~GRADABLE] = torch.nan
    assert_close(sibling_means(table, prompt_groups(PROMPTS), GRADABLE)[0], means)


def test_rloo_by_hand():
    groups = torch.tensor([0, 0, 0, 1, 1])
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    answer = rloo_baselines(rewards, groups, torch.ones(5, dtype=torch.bool))
    assert_close(answer, torch.tensor([0.5, 1.0, 0.5, 1.0, 0.0], dtype=torch.float64))


def test_cross_rollout_baselines_of_rewards_are_rloo_and_of_pairs_are_swapped():
    groups, every = torch.tensor([0, 1, 0, 1]), torch.ones(4, dtype=torch.bool)
    values = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert cross_rollout_baselines(values, groups, every).tolist() == pytest.approx([0.3, 0.4, 0.1, 0.2])
    assert_close(cross_rollout_baselines(values, groups, every), rloo_baselines(values, groups, every))


def test_group_mean_counts_the_own_reward_and_not_the_ungradable():
    rewards = columns()
    answer = group_mean_baselines(rewards, prompt_groups(PROMPTS), GRADABLE)
    for i, prompt in enumerate(PROMPTS):
        group = [float(rewards[j]) for j in range(len(PROMPTS)) if PROMPTS[j] == prompt and GRADABLE[j]]
        assert float(answer[i]) == pytest.approx(sum(group) / len(group))


def test_group_mean_shrinks_rloos_advantage_by_one_over_the_group_size():
    groups, every = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.ones(8, dtype=torch.bool)
    rewards = columns()[:8]
    grpo = rewards - group_mean_baselines(rewards, groups, every)
    assert_close(grpo, 3 / 4 * (rewards - rloo_baselines(rewards, groups, every)))


@pytest.mark.parametrize("baselines", [rloo_baselines, cross_rollout_baselines])
def test_a_prompt_with_one_rollout_has_no_sibling_baseline(baselines):
    rewards = torch.rand(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs at least 2 rollouts per prompt, got 1"):
        baselines(rewards, torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.bool))


def test_a_rollout_whose_siblings_are_all_ungradable_gets_zero():
    answer = rloo_baselines(torch.ones(2, dtype=torch.float64), torch.tensor([0, 0]), torch.tensor([True, False]))
    assert answer.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("baselines", [rloo_baselines, cross_rollout_baselines, group_mean_baselines])
def test_no_rows_give_no_baselines(baselines):
    nothing = torch.zeros(0, dtype=torch.float64)
    assert baselines(nothing, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)).shape == (0,)
