"""Baselines made of rewards alone, and the sibling means that all others are made of.

A policy gradient stays unbiased under any baseline that, given the prompt, does not depend on the completion it is
subtracted from. Everything here that is called *sibling* leaves a rollout's own row out; `group_mean` does not, and
is biased.

Rows are rollouts. `groups[i]` is the index of row i's prompt; rows of one prompt need not be neighbours. Rows that
are not gradable take no part in any mean.
"""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def prompt_groups(prompts: Sequence[Hashable]) -> Int[Tensor, " rows"]:
    """Number the distinct prompts in order of first appearance; equal prompts are siblings."""
    index: dict[Hashable, int] = {}
    return torch.tensor([index.setdefault(prompt, len(index)) for prompt in prompts], dtype=torch.int64)


def sibling_means(
    columns: Float[Tensor, "rows width"], groups: Int[Tensor, " rows"], gradable: Bool[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows width"], Float[Tensor, " rows"]]:
    """Average each column over the gradable siblings of every row, the row itself left out.

        m_i = 1/|S_i| * sum_{j in S_i} c_j,   S_i = gradable rows j != i with groups[j] == groups[i]

    Returns:
        The means (0 where a row has no gradable sibling) and the number of siblings behind each.
    """
    mask = gradable.to(columns.dtype)
    masked = torch.where(gradable[:, None], columns, 0)
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    totals = columns.new_zeros(num_groups, columns.shape[1]).index_add_(0, groups, masked)[groups] - masked
    counts = columns.new_zeros(num_groups).index_add_(0, groups, mask)[groups] - mask
    return totals / counts.clamp(min=1)[:, None], counts


def rloo_baselines(
    rewards: Float[Tensor, " rows"], groups: Int[Tensor, " rows"], gradable: Bool[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Give each rollout the mean reward of its gradable siblings (RLOO, arXiv:2402.14740).

    Raises:
        ValueError: If a gradable rollout's prompt has a single rollout: there is no sibling to leave in.
    """
    _require_siblings(groups)
    means, _ = sibling_means(rewards[:, None], groups, gradable)
    return means[:, 0]


def cross_rollout_baselines(
    values: Float[Tensor, " rows"], groups: Int[Tensor, " rows"], gradable: Bool[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Give each rollout the mean value of its siblings; with two rollouts they swap (POISE, arXiv:2605.07579, eq. 12).

    Not checked here: `values` must come from a probe fitted on earlier steps only. One that has seen this batch
    carries r_i into b_i, and the gradient is biased again.

    Raises:
        ValueError: If a prompt has a single rollout.
    """
    return rloo_baselines(values, groups, gradable)


def group_mean_baselines(
    rewards: Float[Tensor, " rows"], groups: Int[Tensor, " rows"], gradable: Bool[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Give each rollout the mean reward of its whole group, its own included (GRPO, arXiv:2402.03300).

    The own reward makes it depend on the completion: the gradient shrinks by (G-1)/G.
    """
    masked = torch.where(gradable, rewards, 0)
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    totals = rewards.new_zeros(num_groups).index_add_(0, groups, masked)
    counts = rewards.new_zeros(num_groups).index_add_(0, groups, gradable.to(rewards.dtype))
    return (totals / counts.clamp(min=1))[groups]


def _require_siblings(groups: Int[Tensor, " rows"]) -> None:
    smallest = int(torch.bincount(groups).min()) if len(groups) else 2
    if smallest < 2:
        raise ValueError(f"a sibling baseline needs at least 2 rollouts per prompt, got {smallest}")
