"""How does poise's own baseline come about?

One ridge on everything that a rollout may know, fitted on the window and the batch itself, each prompt left out of
its own fit (`probe`); which evidence, penalty and scope count is settled by what they cost before (`choice`). The
score-norm-weighted fit gives the baselines; the unweighted one beside it, from the same evidence, gives the values.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.batch import Batch
from poise.presets import LeaveOnePromptOutRecipe
from poise.probe.evidence import BLOCKS, EvidenceMatrix, EvidenceRows, evidence_matrix, evidence_rows, settled_frame
from poise.probe.history import PromptHistory
from poise.probe.mixture import RiskRecord, candidate_baselines, candidates
from poise.probe.principal_axes import projected_states


class LearnedBaseline:
    """Window, prompt history and risk records of the leave-one-prompt-out ridge.

    Attributes:
        solved: Whether every fit of the newest step could be solved.
    """

    def __init__(self, recipe: LeaveOnePromptOutRecipe) -> None:
        self.recipe = recipe
        self.candidates = candidates(recipe.evidence, recipe.penalties, recipe.components)
        self.domains: list[str] = []
        self.history = PromptHistory(forgetting=recipe.history_forgetting, capacity=recipe.history_prompts)
        self.window: EvidenceRows | None = None
        targets = ("baseline", "value") if recipe.weighted else ("baseline",)
        self.solved = True
        self.records = {t: RiskRecord(len(self.candidates), decay=recipe.risk_decay) for t in targets}

    def step(self, batch: Batch) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Baselines, values, and for each row the candidate that counts most; then learn from the batch."""
        domains = self._domain_numbers(batch.domains)
        new = self._evidence(batch, domains)
        rows = self.window.followed_by(new) if self.window else new
        out = {}
        for target, (predictions, shares) in self._fits(new, rows, batch).items():
            out[target] = (shares * predictions).sum(dim=0), shares.argmax(dim=0)
            self._observe(self.records[target], predictions, new, weighted=self._is_weighted(target))
        baselines, in_charge = out["baseline"]
        values, _ = out.get("value", out["baseline"])
        self.window = rows.gradable_only()[-self.recipe.window_rows :] if self.recipe.window_rows else rows[:0]
        gradable = batch.gradable.tolist()
        seen = [(k, r) for k, r, g in zip(batch.keys, batch.rewards.tolist(), gradable, strict=True) if g]
        self.history.observe([k for k, _ in seen], [r for _, r in seen])
        return baselines, values, in_charge

    def _fits(
        self, new: EvidenceRows, rows: EvidenceRows, batch: Batch
    ) -> dict[str, tuple[Float[Tensor, "candidates batch"], Float[Tensor, "candidates batch"]]]:
        """For each target every candidate's predictions, and how much each of them counts.

        Where a fit cannot be solved, or gives no finite number, the leave-out mean of the rewards stands in.
        """
        fits = {}
        try:
            matrix = self._matrix(rows, settled_on=self.window) if self.window else None
            for target, record in self.records.items():
                weighted = self._is_weighted(target)
                if matrix is None:
                    fits[target] = self._first_predictions(new, batch, weighted=weighted)
                else:
                    predictions = self._predictions(matrix, rows, batch.groups, weighted=weighted)
                    fits[target] = predictions, record.shares(new.domain)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            unsolved = torch.full((len(self.candidates), len(batch.groups)), torch.nan, dtype=torch.float64)
            unsolved[0] = 0  # the zero baseline, which needs no fit
            fits = {target: (unsolved, record.shares(new.domain)) for target, record in self.records.items()}
        self.solved = all(bool(predictions.isfinite().all()) for predictions, _ in fits.values())
        if self.solved:
            return fits
        means = {
            t: _leave_out_means(rows, self._weights(rows, weighted=self._is_weighted(t)), batch.groups) for t in fits
        }
        return {t: (torch.where(p.isfinite(), p, means[t]), shares) for t, (p, shares) in fits.items()}

    def _is_weighted(self, target: str) -> bool:
        return self.recipe.weighted and target == "baseline"

    def _domain_numbers(self, names: list[str]) -> Int[Tensor, " rows"]:
        self.domains += [name for name in dict.fromkeys(names) if name not in self.domains]
        number = {name: k for k, name in enumerate(self.domains)}
        return torch.tensor([number[name] for name in names], dtype=torch.int64)

    def _evidence(self, batch: Batch, domains: Int[Tensor, " rows"]) -> EvidenceRows:
        size, seed = self.recipe.projection_size, self.recipe.projection_seed
        nothing = torch.zeros(len(batch.keys), 0)
        prompt, completion = (
            (nothing, nothing) if batch.features is None else (batch.features.prompt, batch.features.completion)
        )
        history_reward, history_count = self.history.recall(batch.keys)
        return evidence_rows(
            projected_states(prompt, size=size, seed=seed),
            projected_states(completion, size=size, seed=seed + 1),
            batch.scalars,
            batch.rewards,
            batch.weights,
            groups=batch.groups,
            gradable=batch.gradable,
            domains=domains,
            history_reward=history_reward,
            history_count=history_count,
        )

    def _weights(self, rows: EvidenceRows, *, weighted: bool) -> Float[Tensor, " rows"]:
        return rows.weight if weighted else rows.gradable.to(torch.float64)

    def _matrix(self, rows: EvidenceRows, *, settled_on: EvidenceRows) -> EvidenceMatrix:
        frame = settled_frame(settled_on.gradable_only(), components=max(self.recipe.components))
        blocks = [block for block in BLOCKS if block in self.recipe.evidence]
        return evidence_matrix(rows, blocks, frame, num_domains=len(self.domains))

    def _predictions(
        self, matrix: EvidenceMatrix, rows: EvidenceRows, groups: Int[Tensor, " batch"], *, weighted: bool
    ) -> Float[Tensor, "candidates batch"]:
        """Every candidate's baselines of the batch, none outside the rewards of other prompts."""
        weights = self._weights(rows, weighted=weighted)
        predictions = candidate_baselines(self.candidates, matrix, rows, weights, groups)
        lowest, highest = _outside_range(rows, groups)
        predictions[1:] = predictions[1:].clamp(lowest, highest)  # all but the zero baseline
        return predictions

    def _first_predictions(
        self, new: EvidenceRows, batch: Batch, *, weighted: bool
    ) -> tuple[Float[Tensor, "candidates batch"], Float[Tensor, "candidates batch"]]:
        """Without earlier steps: axes and shares for each half of the prompts come from the other half."""
        groups = batch.groups
        predictions = torch.zeros(len(self.candidates), len(groups), dtype=torch.float64)
        shares = torch.zeros_like(predictions)
        # By the rank of the prompts' keys: balanced, and blind to the order of rows and to what was sampled.
        halves = torch.tensor(batch.keys).unique(return_inverse=True)[1] % 2
        for half in (0, 1):
            mine = halves == half
            others = new[~mine]
            matrix = self._matrix(new, settled_on=others)
            predictions[:, mine] = self._predictions(matrix, new, groups, weighted=weighted)[:, mine]
            record = RiskRecord(len(self.candidates), decay=self.recipe.risk_decay)
            renumbered = groups[~mine].unique(return_inverse=True)[1]
            if len(renumbered.unique()) > 1:  # a single prompt is predicted from nothing, and tells nothing
                seen = EvidenceMatrix(matrix.columns[~mine], matrix.blocks)
                cost = self._predictions(seen, others, renumbered, weighted=weighted)
                self._observe(record, cost, others, weighted=weighted)
            shares[:, mine] = record.shares(new.domain[mine])
        return predictions, shares

    def _observe(
        self, record: RiskRecord, predictions: Float[Tensor, "candidates batch"], rows: EvidenceRows, *, weighted: bool
    ) -> None:
        weights = self._weights(rows, weighted=weighted)
        record.observe(predictions, rows.reward, weights, rows.domain, num_domains=len(self.domains))

    def state_dict(self) -> dict[str, Any]:
        """Plain arrays and names."""
        state: dict[str, Any] = {"domains": list(self.domains)}
        if self.window is not None:
            state |= {f"window.{name}": getattr(self.window, name) for name in self.window.__dataclass_fields__}
        state |= {f"history.{name}": value for name, value in self.history.state_dict().items()}
        for target, record in self.records.items():
            state |= {f"risk.{target}.{name}": getattr(record, name) for name in ("losses", "weights", "rows")}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.domains = list(state["domains"])
        names = EvidenceRows.__dataclass_fields__
        if f"window.{next(iter(names))}" in state:
            self.window = EvidenceRows(*(state[f"window.{name}"] for name in names))
        self.history.load_state_dict({name: state[f"history.{name}"] for name in ("keys", "past")})
        for target, record in self.records.items():
            for name in ("losses", "weights", "rows"):
                setattr(record, name, state[f"risk.{target}.{name}"])


def _leave_out_means(
    rows: EvidenceRows, weights: Float[Tensor, " rows"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Weighted mean reward of all rows but those of the own prompt in the batch; 0 where there are none."""
    start = len(rows) - len(groups)
    paid = torch.where(weights > 0, weights * rows.reward, 0)
    own = torch.zeros(2, int(groups.max()) + 1, dtype=torch.float64)
    own[0].index_add_(0, groups, paid[start:])
    own[1].index_add_(0, groups, weights[start:])
    paid_outside, weight_outside = paid.sum() - own[0], weights.sum() - own[1]
    return torch.where(weight_outside > 0, paid_outside / weight_outside, 0)[groups]


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
