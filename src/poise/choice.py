"""Which evidence, how much of it, and whose rows should a baseline rest on?

Where there is nothing to know, knowing must cost nothing. So a baseline is not one fit but the best of several:
nested evidence sets, from none to all, each with several ridge penalties, fitted on all rows or on those of the
rollout's own domain. Every candidate predicts every batch without having seen the prompt; what it would have cost,
sum w (r - b)^2, is remembered per domain, and the cheapest so far is in charge.

A choice for a rollout never looks at its own prompt: it rests on earlier steps, and at the very first step, where
there are none, on the other half of the prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.evidence import EVIDENCE_SETS, HIDDEN_BLOCKS, EvidenceRows, Frame, evidence_matrix
from poise.probe import LeaveOnePromptOut

_PRIOR_ROWS = 64.0  # a domain's record counts as if this many rows behaved like all domains together
_FEWEST_DOMAIN_ROWS = 128  # a domain with fewer rows is not fitted alone


@dataclass(frozen=True)
class Candidate:
    """One way to make a baseline: evidence set, ridge penalty (per mean row weight), principal axes, whose rows."""

    evidence: str
    penalty: float = 0.0
    components: int = 0
    own_domain: bool = False


def candidates(evidence: Sequence[str], penalties: Sequence[float], components: Sequence[int]) -> tuple[Candidate, ...]:
    """List the candidates that the switched-on evidence blocks allow, the simplest first.

    Sets that differ only in blocks that are switched off are one; without hidden states a single penalty serves.
    """
    listed = [Candidate("zero")]
    seen: set[tuple[str, ...]] = {()}
    for name, blocks in EVIDENCE_SETS.items():
        allowed = tuple(block for block in blocks if block in evidence)
        if allowed in seen:
            continue
        seen.add(allowed)
        if HIDDEN_BLOCKS.isdisjoint(allowed):
            listed.append(Candidate(name, min(penalties)))
        else:
            listed += [Candidate(name, p, k, own) for own in (False, True) for k in components for p in penalties]
    return tuple(listed)


def candidate_baselines(
    listed: Sequence[Candidate],
    rows: EvidenceRows,
    weights: Float[Tensor, " rows"],
    groups: Int[Tensor, " batch"],
    frame: Frame,
    *,
    evidence: Sequence[str],
    num_domains: int,
) -> Float[Tensor, "candidates batch"]:
    """Every candidate's leave-one-prompt-out prediction of the batch, which is the last rows of `rows`.

    A domain too small for a fit of its own gets the predictions of the common fit.
    """
    start = len(rows) - len(groups)
    out = torch.zeros(len(listed), len(groups), dtype=torch.float64)
    fits = dict.fromkeys((c.evidence, c.components) for c in listed if c.evidence != "zero")
    for name, components in fits:
        blocks = [block for block in EVIDENCE_SETS[name] if block in evidence]
        columns = evidence_matrix(rows, blocks, frame, components=components, num_domains=num_domains)
        alike = [k for k, c in enumerate(listed) if (c.evidence, c.components) == (name, components)]
        common = [k for k in alike if not listed[k].own_domain]
        own = [k for k in alike if listed[k].own_domain]
        penalties = [listed[k].penalty for k in common]
        out[common] = LeaveOnePromptOut(columns, rows.reward, weights, groups).baselines(penalties)
        if not own:
            continue
        out[own] = out[common]
        if num_domains < 2:
            continue
        for domain in rows.domain[start:].unique().tolist():
            inside = rows.domain == domain
            batch = inside[start:].nonzero()[:, 0]
            if int(inside.sum()) < _FEWEST_DOMAIN_ROWS:
                continue
            _, own_groups = groups[batch].unique(return_inverse=True)
            fit = LeaveOnePromptOut(columns[inside], rows.reward[inside], weights[inside], own_groups)
            out[torch.tensor(own)[:, None], batch] = fit.baselines(penalties)
    return out


class RiskRecord:
    """What each candidate has cost so far in each domain: decayed sums of w (r - b)^2 and of w."""

    def __init__(self, num_candidates: int, *, decay: float) -> None:
        self.decay = decay
        self.losses = torch.zeros(0, num_candidates, dtype=torch.float64)
        self.weights = torch.zeros(0, dtype=torch.float64)
        self.rows = torch.zeros(0, dtype=torch.float64)

    def observe(
        self,
        predictions: Float[Tensor, "candidates batch"],
        rewards: Float[Tensor, " batch"],
        weights: Float[Tensor, " batch"],
        domains: Int[Tensor, " batch"],
        *,
        num_domains: int,
    ) -> "RiskRecord":
        """Add one batch; older batches fade by `decay`. Rows of weight 0 do not count."""
        grown = num_domains - len(self.weights)
        self.losses = torch.cat([self.losses * self.decay, self.losses.new_zeros(grown, len(predictions))])
        self.weights = torch.cat([self.weights * self.decay, self.weights.new_zeros(grown)])
        self.rows = torch.cat([self.rows * self.decay, self.rows.new_zeros(grown)])
        self.losses.index_add_(0, domains, (weights * (rewards - predictions) ** 2).T)
        self.weights.index_add_(0, domains, weights)
        self.rows.index_add_(0, domains, (weights > 0).to(torch.float64))
        return self

    def in_charge(self, domains: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The cheapest candidate (the simplest among equals) for each row's domain.

        A domain with a short record leans on the record of all domains together; without any record the second
        candidate, the leave-out mean, is in charge.
        """
        total = self.weights.sum()
        if not total > 0:
            return torch.full_like(domains, min(1, self.losses.shape[1] - 1))
        common = self.losses.sum(dim=0) / total
        prior = _PRIOR_ROWS * total / self.rows.sum()
        risks = (self.losses + prior * common) / (self.weights + prior)[:, None]
        known = domains.clamp(max=len(risks) - 1)
        best = torch.where(domains < len(risks), risks.argmin(dim=1)[known], common.argmin())
        return best
