"""poise's own baseline: one ridge on everything that a rollout may know, each prompt left out of its own fit.

The ridge is fitted on the window and the batch itself; which evidence, penalty and scope count is settled by what they
cost before (`mixture`). The score-norm-weighted fit gives the baselines; the unweighted one beside it, from the same
evidence, gives the values.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.baselines import Recipe, Step, step_of, sums_of_others
from poise.batch import Batch
from poise.features.rollout_features import MEAN_ENTROPIES
from poise.features.scalars import OWN, check_scalar_names
from poise.probe.evidence import (
    BLOCKS,
    EVIDENCE_SETS,
    FEATURE_BLOCKS,
    SIBLING_BLOCKS,
    EvidenceMatrix,
    EvidenceRows,
    evidence_matrix,
    evidence_rows,
    settled_frame,
)
from poise.probe.history import PromptHistory
from poise.probe.mixture import Candidate, RiskRecord, candidate_baselines, candidates

Predictions = Float[Tensor, "candidates batch"]


@dataclass(frozen=True)
class LeaveOnePromptOutRecipe(Recipe):
    """One ridge on switched-on evidence, fitted on window and batch, the prompt's own batch rows left out exactly."""

    evidence: tuple[str, ...] = BLOCKS
    """Evidence blocks that may be used, of `poise.probe.evidence.BLOCKS`."""
    scalars: tuple[str, ...] = MEAN_ENTROPIES
    """What the block `sibling_entropies` holds, of `scalars.SCALARS`; a name that begins with `own:` is yours."""
    weighted: bool = False
    """Weigh rows by score norms: the target is then the score-norm-weighted mean of rewards, not the value."""
    penalties: tuple[float, ...] = (3.0, 30.0, 300.0, 3000.0)
    """Ridge penalties to choose from, per unit of mean row weight; hidden-state columns have variance 1."""
    components: tuple[int, ...] = (40,)
    """Numbers of principal axes to choose from, for each hidden state."""
    window_rows: int = 4096
    """Rows of earlier steps that stay in the fit."""
    projection_size: int = 256
    """Directions on which each wide hidden state is projected."""
    projection_seed: int = 0
    risk_decay: float = 0.9
    """How the record of what candidates cost fades with each step."""
    history_forgetting: float = 0.5
    """How a prompt's earlier rewards fade each time that it is seen."""
    history_prompts: int = 1_000_000
    """Prompts that are remembered, those seen last."""

    def __post_init__(self) -> None:
        for block in self.evidence:
            if block not in BLOCKS:
                raise ValueError(f"evidence blocks are {', '.join(BLOCKS)}; got {block!r}")
        check_scalar_names(self.scalars, own=True)
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be positive numbers, got {self.penalties}")
        if self.window_rows < 0 or self.projection_size < 1:
            raise ValueError(
                f"window_rows must be at least 0 and projection_size at least 1, "
                f"got {self.window_rows} and {self.projection_size}"
            )

    def build(self) -> "LearnedBaseline":
        """The method, before its first step."""
        return LearnedBaseline(self)

    @property
    def scalars_read(self) -> tuple[str, ...]:  # type: ignore[override]
        """The scalars, where their block is switched on."""
        return self.scalars if "sibling_entropies" in self.evidence else ()

    @property
    def needs_features(self) -> bool:  # type: ignore[override]
        """Whether a switched-on block is read from a forward pass."""
        return not FEATURE_BLOCKS.isdisjoint(self.evidence)

    @property
    def needs_siblings(self) -> bool:  # type: ignore[override]
        """Whether nothing but siblings is known, so that a lone rollout has no baseline."""
        return bool(self.evidence) and SIBLING_BLOCKS.issuperset(self.evidence)

    @property
    def reads_siblings(self) -> bool:  # type: ignore[override]
        """Whether siblings are part of the evidence."""
        return not SIBLING_BLOCKS.isdisjoint(self.evidence)


@dataclass(frozen=True)
class Target:
    """What a fit is for: rows weighed by score norms for the baseline, alike for the value, and its risk record."""

    name: str
    weighted: bool
    record: RiskRecord

    def weights(self, rows: EvidenceRows) -> Float[Tensor, " rows"]:
        """How much each row counts; 0 where it is ungradable."""
        return rows.weight if self.weighted else rows.gradable.to(torch.float64)


@dataclass(frozen=True)
class FitRows:
    """Rows of evidence in columns, the last of them the batch that is predicted."""

    matrix: EvidenceMatrix
    rows: EvidenceRows
    groups: Int[Tensor, " batch"]

    def predictions(self, listed: tuple[Candidate, ...], target: Target) -> Predictions:
        """Every candidate's baselines of the batch, none outside the rewards of other prompts."""
        predictions = candidate_baselines(listed, self.matrix, self.rows, target.weights(self.rows), self.groups)
        lowest, highest = _outside_range(self.rows, self.groups)
        predictions[1:] = predictions[1:].clamp(lowest, highest)  # all but the zero baseline
        return predictions


class LearnedBaseline:
    """Window, prompt history and risk records of the leave-one-prompt-out ridge."""

    def __init__(self, recipe: LeaveOnePromptOutRecipe) -> None:
        self.recipe = recipe
        self.candidates = candidates(recipe.evidence, recipe.penalties, recipe.components)
        self.domains: list[str] = []
        self.history = PromptHistory(forgetting=recipe.history_forgetting, capacity=recipe.history_prompts)
        self.window: EvidenceRows | None = None
        self.targets = [Target("baseline", recipe.weighted, self._empty_record())]
        if recipe.weighted:
            self.targets.append(Target("value", False, self._empty_record()))

    def step(self, batch: Batch) -> Step:
        """Baselines, values, and the evidence in charge of each domain; then learn from the batch."""
        domains = self._domain_numbers(batch.domains)
        size, seed = self.recipe.projection_size, self.recipe.projection_seed
        past = self.history.recall(batch.keys)
        new = evidence_rows(batch, domains=domains, history=past, projection_size=size, projection_seed=seed)
        rows = self.window.followed_by(new) if self.window else new
        made, solved = [], True
        for target, predictions, shares in self._fits(new, rows, batch):
            known = predictions.isfinite()
            if not bool(known.all()):
                solved = False
                predictions = torch.where(
                    known, predictions, _leave_out_means(rows, target.weights(rows), batch.groups)
                )
            made.append(((shares * predictions).sum(dim=0), shares.argmax(dim=0)))
            self._observe(target.record, target, predictions, new)
        (baselines, chosen), (values, _) = made[0], made[-1]
        self.window = rows.gradable_only()[-self.recipe.window_rows :] if self.recipe.window_rows else rows[:0]
        gradable = batch.gradable.tolist()
        seen = [(k, r) for k, r, g in zip(batch.keys, batch.rewards.tolist(), gradable, strict=True) if g]
        self.history.observe([k for k, _ in seen], [r for _, r in seen])
        return self._outcome(batch, baselines, values, chosen.tolist(), solved=solved)

    def _outcome(
        self,
        batch: Batch,
        baselines: Float[Tensor, " rows"],
        values: Float[Tensor, " rows"],
        chosen: list[int],
        *,
        solved: bool,
    ) -> Step:
        first = dict(zip(reversed(batch.domains), reversed(chosen), strict=True))
        levels = {domain: list(EVIDENCE_SETS).index(self.candidates[k].evidence) for domain, k in first.items()}
        metrics = {
            "inexact_share": float(not solved),
            "evidence_level": sum(levels[domain] for domain in batch.domains) / len(batch.domains),
        }
        in_charge = {domain: self.candidates[k].described() for domain, k in sorted(first.items())}
        return step_of(batch, baselines, values, metrics=metrics, in_charge=in_charge)

    def _fits(
        self, new: EvidenceRows, rows: EvidenceRows, batch: Batch
    ) -> list[tuple[Target, Predictions, Predictions]]:
        """For each target every candidate's predictions, NaN where there is none, and how much each counts."""
        try:
            if self.window is None:
                return [(target, *self._first_predictions(new, batch, target)) for target in self.targets]
            fit = FitRows(self._matrix(rows, settled_on=self.window), rows, batch.groups)
            made = [fit.predictions(self.candidates, target) for target in self.targets]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            unsolved = torch.full((len(self.candidates), len(batch.groups)), torch.nan, dtype=torch.float64)
            unsolved[0] = 0  # the zero baseline, which needs no fit
            made = [unsolved for _ in self.targets]
        return [(t, each, t.record.shares(new.domain)) for t, each in zip(self.targets, made, strict=True)]

    def _empty_record(self) -> RiskRecord:
        return RiskRecord(len(self.candidates), decay=self.recipe.risk_decay)

    def _domain_numbers(self, names: list[str]) -> Int[Tensor, " rows"]:
        self.domains += [name for name in dict.fromkeys(names) if name not in self.domains]
        number = {name: k for k, name in enumerate(self.domains)}
        return torch.tensor([number[name] for name in names], dtype=torch.int64)

    def _matrix(self, rows: EvidenceRows, *, settled_on: EvidenceRows) -> EvidenceMatrix:
        own = [name.startswith(OWN) for name in self.recipe.scalars_read]
        frame = settled_frame(settled_on.gradable_only(), components=max(self.recipe.components), own_scalars=own)
        blocks = [block for block in BLOCKS if block in self.recipe.evidence]
        return evidence_matrix(rows, blocks, frame, num_domains=len(self.domains))

    def _first_predictions(self, new: EvidenceRows, batch: Batch, target: Target) -> tuple[Predictions, Predictions]:
        """Without earlier steps: axes and shares for each half of the prompts come from the other half."""
        groups = batch.groups
        predictions = torch.zeros(len(self.candidates), len(groups), dtype=torch.float64)
        shares = torch.zeros_like(predictions)
        if len(groups.unique()) == 1:  # nothing else is known than what the siblings earned
            predictions[1:] = new.sibling_reward
            return predictions, self._empty_record().shares(new.domain)
        # By the rank of the prompts' keys: balanced, and blind to the order of rows and to what was sampled.
        halves = torch.tensor(batch.keys).unique(return_inverse=True)[1] % 2
        for half in (0, 1):
            mine = halves == half
            others = new[~mine]
            matrix = self._matrix(new, settled_on=others)
            predictions[:, mine] = FitRows(matrix, new, groups).predictions(self.candidates, target)[:, mine]
            record = self._empty_record()
            renumbered = groups[~mine].unique(return_inverse=True)[1]
            if len(renumbered.unique()) > 1:  # a single prompt is predicted from nothing, and tells nothing
                seen = FitRows(EvidenceMatrix(matrix.columns[~mine], matrix.blocks), others, renumbered)
                self._observe(record, target, seen.predictions(self.candidates, target), others)
            shares[:, mine] = record.shares(new.domain[mine])
        return predictions, shares

    def _observe(self, record: RiskRecord, target: Target, predictions: Predictions, rows: EvidenceRows) -> None:
        record.observe(predictions, rows.reward, target.weights(rows), rows.domain, num_domains=len(self.domains))

    def state_dict(self) -> dict[str, Any]:
        """Plain arrays and names."""
        state: dict[str, Any] = {"domains": list(self.domains)}
        if self.window is not None:
            state |= {f"window.{name}": getattr(self.window, name) for name in self.window.__dataclass_fields__}
        state |= {f"history.{name}": value for name, value in self.history.state_dict().items()}
        for target in self.targets:
            state |= {
                f"risk.{target.name}.{name}": getattr(target.record, name) for name in ("losses", "weights", "rows")
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.domains = list(state["domains"])
        names = EvidenceRows.__dataclass_fields__
        if f"window.{next(iter(names))}" in state:
            self.window = EvidenceRows(*(state[f"window.{name}"] for name in names))
        self.history.load_state_dict({name: state[f"history.{name}"] for name in ("keys", "past")})
        for target in self.targets:
            for name in ("losses", "weights", "rows"):
                setattr(target.record, name, state[f"risk.{target.name}.{name}"])


def _leave_out_means(
    rows: EvidenceRows, weights: Float[Tensor, " rows"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Weighted mean reward of all rows but those of the own prompt in the batch; 0 where there are none."""
    start = len(rows) - len(groups)
    amounts = torch.stack([weights * rows.reward, weights], dim=1)
    own = torch.zeros(int(groups.max()) + 1, 2, dtype=torch.float64).index_add_(0, groups, amounts[start:])
    paid, weight = (amounts[:start].sum(dim=0) + sums_of_others(own)).unbind(dim=1)
    return torch.where(weight > 0, paid / weight, 0)[groups]


def _outside_range(
    rows: EvidenceRows, groups: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The lowest and highest gradable reward outside each batch row's prompt; unbounded where there is none."""
    start = len(rows) - len(groups)
    num_prompts = int(groups.max()) + 1 if len(groups) else 0
    sides = []
    for sign in (1.0, -1.0):
        reward = torch.where(rows.gradable, sign * rows.reward, torch.inf)
        window = reward[:start].min() if start else torch.tensor(torch.inf, dtype=torch.float64)
        own = torch.full((num_prompts,), torch.inf, dtype=torch.float64)
        own = own.scatter_reduce_(0, groups, reward[start:], "amin")
        least = torch.full((num_prompts + 2,), float(window), dtype=torch.float64)
        least[1:-1] = own
        before, after = least.cummin(0).values[:-2], least.flip(0).cummin(0).values.flip(0)[2:]
        outside = torch.minimum(before, after)[groups]
        sides.append(sign * torch.where(outside.isinf(), -torch.inf, outside))
    return sides[0], sides[1]
