"""The protocol of everything that makes baselines, and the baselines that are made of rewards alone.

A policy gradient stays unbiased under any baseline that, given the prompt, does not depend on the completion it is
subtracted from. Everything here that is called *sibling* leaves a rollout's own row out; `group_mean` does not, and
is biased.

Rows are rollouts. `groups[i]` is the index of row i's prompt; rows of one prompt need not be neighbours. Rows that
are not gradable take no part in any mean.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poise.batch import Batch

_COLUMNS_AT_ONCE = 32  # brought to float64: a batch of states is never held twice


@dataclass(frozen=True)
class Step:
    """The outcome of one step; one entry a rollout, in the order given."""

    baselines: Float[Tensor, " rows"]
    """What to subtract from each reward."""
    advantages: Float[Tensor, " rows"]
    """reward - baseline; 0 where the rollout is ungradable."""
    values: Float[Tensor, " rows"]
    """Leave-one-prompt-out estimates of V(x); the published presets give their probe's values. NaN without either."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Keys `poise/...`; `docs/metrics.md` has a line for each."""
    in_charge: dict[str, str] = field(default_factory=dict)
    """For each domain, the evidence in charge: what counts most in its baselines. Empty where nothing is chosen."""


def step_of(
    batch: Batch, baselines: Float[Tensor, " rows"], values: Float[Tensor, " rows"] | None = None, **rest: Any
) -> Step:
    """The outcome of a batch from its baselines; `rest` are `metrics` and `in_charge`."""
    values = torch.full_like(baselines, torch.nan) if values is None else values
    return Step(baselines, torch.where(batch.gradable, batch.rewards - baselines, 0), values, **rest)


@runtime_checkable
class Method(Protocol):
    """One way to make baselines, with what it remembers of earlier steps."""

    def step(self, batch: Batch) -> Step:
        """Baselines of this batch from it and from earlier steps; then learn from it. Metrics have no prefix."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and lists of them: everything that the next step depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore exactly what `state_dict` gave."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a method, as a frozen dataclass whose fields are plain data, and what the method asks for."""

    exact = True
    """Whether a rollout's baseline is independent of that rollout, given its prompt."""
    control = False
    """Whether it is biased on purpose, for comparisons alone."""
    needs_features = False
    """Whether it reads a forward pass."""
    needs_siblings = False
    """Whether a lone rollout has no baseline."""
    reads_siblings = False
    """Whether siblings are part of the evidence."""
    weighted = False
    """Whether score-norm weights are used."""
    values_see_own_rollout = False
    """Whether a rollout's value is read from that rollout: it is then judged by its siblings' rewards."""
    scalars_read = tuple[str, ...]()
    """Names of the scalars that a batch must hold."""

    def build(self) -> Method:
        """The method, before its first step."""
        raise NotImplementedError


@dataclass(frozen=True)
class RewardsRecipe(Recipe):
    """A baseline made of this prompt's rewards alone: "rloo", "group-mean" or "none"."""

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in ("rloo", "group-mean", "none"):
            raise ValueError(f"kind is one of rloo, group-mean, none, got {self.kind!r}")

    def build(self) -> Method:
        """The method, which remembers nothing."""
        return RewardsBaseline(self.kind)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether the own reward stays out of the baseline."""
        return self.kind != "group-mean"

    @property
    def needs_siblings(self) -> bool:  # type: ignore[override]
        """Whether a lone rollout has no baseline."""
        return self.kind == "rloo"

    @property
    def reads_siblings(self) -> bool:  # type: ignore[override]
        """Whether siblings' rewards are part of the baseline."""
        return self.kind != "none"


class RewardsBaseline:
    """Baselines of a `RewardsRecipe`."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def step(self, batch: Batch) -> Step:
        """Baselines of the batch."""
        of = {"rloo": rloo_baselines, "group-mean": group_mean_baselines}.get(self._kind)
        rewards = batch.rewards
        return step_of(batch, of(rewards, batch.groups, batch.gradable) if of else torch.zeros_like(rewards))

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def sibling_means(
    columns: Float[Tensor, "rows width"], groups: Int[Tensor, " rows"], gradable: Bool[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows width"], Float[Tensor, " rows"]]:
    """Average each column over the gradable siblings of every row, the row itself left out.

        m_i = 1/|S_i| * sum_{j in S_i} c_j,   S_i = gradable rows j != i with groups[j] == groups[i]

    Returns:
        The means (0 where a row has no gradable sibling), taken in float64 and given in the columns' type, and the
        number of siblings behind each.
    """
    tables = rows_by_group_size(groups)  # (prompts, group_size) each
    counts = torch.zeros(len(columns), dtype=torch.float64)
    for rows in tables:
        count = gradable[rows].to(torch.float64)
        counts[rows] = count.sum(dim=1, keepdim=True) - count
    means = torch.empty_like(columns)
    for first in range(0, columns.shape[1], _COLUMNS_AT_ONCE):
        part = slice(first, first + _COLUMNS_AT_ONCE)
        masked = torch.where(gradable[:, None], columns[:, part].to(torch.float64), 0)
        for rows in tables:
            sums = sums_of_others(masked[rows].transpose(0, 1)).transpose(0, 1)
            means[rows, part] = (sums / counts[rows].clamp(min=1)[:, :, None]).to(columns.dtype)
    return means, counts


def rows_by_group_size(groups: Int[Tensor, " rows"]) -> list[Int[Tensor, "prompts group_size"]]:
    """Row indices arranged one prompt a line, one table for each group size that occurs."""
    order = torch.argsort(groups, stable=True)
    sizes = torch.bincount(groups)
    starts = sizes.cumsum(0) - sizes
    return [order[starts[sizes == size][:, None] + torch.arange(size)] for size in sizes.unique().tolist() if size > 0]


def sums_of_others(amounts: Float[Tensor, "first *rest"]) -> Float[Tensor, "first *rest"]:
    """For each entry of the first dimension the sum over all others, to which it contributes nothing, not a rounding.

    It is added up from both sides: total - own would carry the rounding of a huge own number.
    """
    out = torch.zeros_like(amounts)
    out[1:] += amounts[:-1].cumsum(dim=0)
    out[:-1] += amounts[1:].flip(0).cumsum(dim=0).flip(0)
    return out


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
