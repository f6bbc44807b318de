"""What a rollout's baseline may see, as rows and as regression columns.

That is everything but the rollout itself: its siblings' features and rewards, its prompt's own states and history,
its domain. One row of evidence a rollout, in blocks that can be switched on and off; nothing in row i is made from
rollout i. (The prompt's states come from siblings; a rollout without siblings uses its own, which are read at prompt
positions and, attention being causal, know nothing of the completion.)

Columns other than hidden states are scaled by a constant, so that one ridge penalty bears on them a hundred times less.
What may have any size (rewards, the user's own scalars) is first brought to a size near 1 by settled rows: those of
earlier steps, or of other prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from poise.baselines import sibling_means
from poise.batch import Batch
from poise.probe.principal_axes import FARTHEST, PrincipalAxes, principal_axes, projected_states

BLOCKS = ("constant", "domain", "sibling_reward", "history", "sibling_entropies", "sibling_states", "prompt_states")
"""The blocks of evidence columns, the cheapest to know first."""

EVIDENCE_SETS: dict[str, tuple[str, ...]] = {
    "zero": (),
    "constant": BLOCKS[:2],
    "sibling_reward": BLOCKS[:3],
    "scalars": BLOCKS[:5],
    "prompt": (*BLOCKS[:5], "prompt_states"),
    "sibling": BLOCKS[:6],
    "all": BLOCKS,
}
"""Sets of blocks to choose among, from knowing nothing to knowing everything that is allowed."""

SIBLING_BLOCKS = frozenset({"sibling_reward", "sibling_entropies", "sibling_states"})
FEATURE_BLOCKS = frozenset({"sibling_entropies", "sibling_states", "prompt_states"})
HIDDEN_BLOCKS = frozenset({"sibling_states", "prompt_states"})

_SCALAR_SCALE = 10.0  # a column scaled by s is penalised by penalty / s^2
_UNITS_APART = 64.0  # rewards up to 8 have the unit 1, up to 512 the unit 64


@dataclass(frozen=True)
class EvidenceRows:
    """What is known for each rollout, what it earned, and how much it weighs: the raw material of evidence columns."""

    prompt_states: Float[Tensor, "rows prompt_size"]
    sibling_states: Float[Tensor, "rows completion_size"]
    sibling_entropies: Float[Tensor, "rows stats"]
    sibling_reward: Float[Tensor, " rows"]
    sibling_count: Float[Tensor, " rows"]
    history_reward: Float[Tensor, " rows"]
    history_count: Float[Tensor, " rows"]
    domain: Int[Tensor, " rows"]
    reward: Float[Tensor, " rows"]
    weight: Float[Tensor, " rows"]
    gradable: Bool[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, rows: slice | Tensor) -> "EvidenceRows":
        return EvidenceRows(*(getattr(self, field.name)[rows] for field in fields(self)))

    def gradable_only(self) -> "EvidenceRows":
        """Those rows that could be graded; of a window, all of them, and nothing is copied."""
        return self if bool(self.gradable.all()) else self[self.gradable]

    def followed_by(self, later: "EvidenceRows") -> "EvidenceRows":
        """These rows, then `later`'s."""
        return EvidenceRows(*(torch.cat([getattr(rows, f.name) for rows in (self, later)]) for f in fields(self)))


def evidence_rows(
    batch: Batch,
    *,
    domains: Int[Tensor, " rows"],
    history: tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]],
    projection_size: int,
    projection_seed: int,
) -> EvidenceRows:
    """Gather, for every rollout of a batch, what its gradable siblings and its prompt's past tell.

    Args:
        batch: The rollouts.
        domains: The number of each row's domain.
        history: Mean reward and number of earlier rollouts of each row's prompt.
        projection_size: Directions on which each wide hidden state is projected.
        projection_seed: Of the directions for prompts; those for completions have the next one.
    """
    rewards, groups, gradable = batch.rewards, batch.groups, batch.gradable
    nothing = torch.zeros(len(rewards), 0)
    states = (nothing, nothing) if batch.features is None else (batch.features.prompt, batch.features.completion)
    own_prompt, own_completion = (
        projected_states(each, size=projection_size, seed=projection_seed + k) for k, each in enumerate(states)
    )

    def of_siblings(own: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        wide = own.to(torch.promote_types(own.dtype, torch.float32))
        return sibling_means(wide, groups, gradable)[0].to(torch.float32)

    reward, count = sibling_means(rewards[:, None], groups, gradable)
    return EvidenceRows(
        prompt_states=torch.where(count[:, None] > 0, of_siblings(own_prompt), own_prompt),
        sibling_states=of_siblings(own_completion),
        sibling_entropies=of_siblings(batch.scalars),
        sibling_reward=reward[:, 0],
        sibling_count=count,
        history_reward=history[0],
        history_count=history[1],
        domain=domains,
        reward=torch.where(gradable, rewards, 0),
        weight=torch.where(gradable, batch.weights, 0),
        gradable=gradable,
    )


@dataclass(frozen=True)
class Frame:
    """The axes on which hidden states are scored, the unit of rewards, and centre and factor of each scalar."""

    prompt: PrincipalAxes
    sibling: PrincipalAxes
    reward_unit: float
    centre: Float[Tensor, " stats"]
    factor: Float[Tensor, " stats"]


def settled_frame(rows: EvidenceRows, *, components: int, own_scalars: Sequence[bool] = ()) -> Frame:
    """What brings evidence to one scale, from settled rows: of earlier steps, or of other prompts.

    Args:
        rows: The settled rows.
        components: Principal axes to keep of each hidden state.
        own_scalars: Whether each scalar is the user's own, so that its size is not known; default none is.
    """
    known = rows.sibling_count > 0
    scalars = rows.sibling_entropies[known].to(torch.float64)
    centre, factor = scalars.new_zeros(scalars.shape[1]), scalars.new_ones(scalars.shape[1])
    if any(own_scalars):
        own = torch.tensor(own_scalars)
        mean = scalars.sum(dim=0) / max(len(scalars), 1)
        deviation = ((scalars - mean) ** 2).sum(dim=0).div(max(len(scalars), 1)).sqrt()
        centre = torch.where(own, mean, centre)
        factor = torch.where(own, torch.where(deviation > 1e-9 * mean.abs(), 1 / deviation, 0), factor)
    return Frame(
        prompt=principal_axes(rows.prompt_states, components=components),
        sibling=principal_axes(rows.sibling_states[known], components=components),
        reward_unit=_unit(float(rows.reward.abs().max()) if len(rows) else 0.0),
        centre=centre,
        factor=factor,
    )


def _unit(largest: float) -> float:
    """The power of 64 that is nearest to the largest reward; 1 where all rewards are 0."""
    return _UNITS_APART ** round(math.log(largest, _UNITS_APART)) if largest > 0 else 1.0


@dataclass(frozen=True)
class EvidenceMatrix:
    """Regression columns, and which of them belong to each block."""

    columns: Float[Tensor, "rows columns"]
    blocks: Mapping[str, range]

    def chosen(self, blocks: Sequence[str], *, components: int) -> list[int]:
        """Indices of the columns of some blocks; of hidden states, the first `components` axes only."""
        return [
            column
            for block in blocks
            for column in (self.blocks[block][:components] if block in HIDDEN_BLOCKS else self.blocks[block])
        ]


def evidence_matrix(rows: EvidenceRows, blocks: Sequence[str], frame: Frame, *, num_domains: int) -> EvidenceMatrix:
    """Lay the switched-on blocks side by side as regression columns.

    A sibling mean of m rewards enters as its value and a 1, both times m / (m + 1), and a history of n rollouts
    likewise, so that one fit serves groups of unequal size; a rollout without siblings has a column of its own.
    """
    missing = (rows.sibling_count == 0).to(torch.float64)
    trust = rows.sibling_count / (rows.sibling_count + 1)
    familiarity = rows.history_count / (rows.history_count + 1)

    def in_units(rewards: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        return (rewards / frame.reward_unit).clamp(-_UNITS_APART, _UNITS_APART)

    def columns(block: str) -> Float[Tensor, "rows columns"]:
        match block:
            case "constant":
                return _SCALAR_SCALE * torch.stack([torch.ones_like(missing), missing], dim=1)
            case "domain":
                several = num_domains if num_domains > 1 else 0
                return _SCALAR_SCALE * one_hot(rows.domain, num_domains)[:, :several].to(torch.float64)
            case "sibling_reward":
                return _SCALAR_SCALE * torch.stack([trust * in_units(rows.sibling_reward), trust], dim=1)
            case "history":
                return _SCALAR_SCALE * torch.stack([familiarity * in_units(rows.history_reward), familiarity], dim=1)
            case "sibling_entropies":
                scaled = (rows.sibling_entropies.to(torch.float64) - frame.centre) * frame.factor
                farthest = torch.where(frame.factor == 1, torch.inf, FARTHEST)
                return _SCALAR_SCALE * (1 - missing)[:, None] * scaled.clamp(-farthest, farthest)
            case "sibling_states":
                return (1 - missing)[:, None] * frame.sibling.scores(rows.sibling_states)
            case "prompt_states":
                return frame.prompt.scores(rows.prompt_states)
        raise ValueError(f"evidence blocks are {', '.join(BLOCKS)}; got {block!r}")

    made = {block: columns(block) for block in blocks}
    ends = list(accumulate((part.shape[1] for part in made.values()), initial=0))
    return EvidenceMatrix(
        torch.cat([torch.zeros(len(rows), 0, dtype=torch.float64), *made.values()], dim=1),
        {block: range(*bounds) for block, bounds in zip(made, pairwise(ends), strict=True)},
    )
