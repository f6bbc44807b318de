"""The choice among candidates: which evidence, how much of it, and whose rows a baseline rests on.

Where there is nothing to know, knowing must cost nothing. So a baseline is not one fit but a mean of the best
among several: nested evidence sets, from none to all, each with several ridge penalties, fitted on all rows or on
those of the rollout's own domain. Every candidate predicts every batch without having seen the prompt; what it would
have cost, sum w (r - b)^2, is remembered per domain, and the cheapest so far count most.

How much a candidate counts for a rollout never looks at its own prompt: it rests on earlier steps, and at the very
first step, where there are none, on the other half of the prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.probe.evidence import EVIDENCE_SETS, HIDDEN_BLOCKS, EvidenceMatrix, EvidenceRows
from poise.probe.leave_one_out import LeaveOnePromptOut

_PRIOR_ROWS = 64.0  # a domain's record counts as if this many rows behaved like all domains together
_TEMPERATURE = 8.0  # of exponential weights, in units of the noise's variance
_FEWEST_DOMAIN_ROWS = 128  # a domain with fewer rows of earlier steps is not fitted alone


@dataclass(frozen=True)
class Candidate:
    """One way to make a baseline: evidence set, ridge penalty (per mean row weight), principal axes, whose rows."""

    evidence: str
    penalty: float = 0.0
    components: int = 0
    own_domain: bool = False

    def described(self) -> str:
        """In words, for people."""
        if self.evidence == "zero":
            return "zero"
        scope = "own domain" if self.own_domain else "all rows"
        axes = f", {self.components} axes" if self.components else ""
        return f"{self.evidence} (penalty {self.penalty:g}{axes}, {scope})"


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
    matrix: EvidenceMatrix,
    rows: EvidenceRows,
    weights: Float[Tensor, " rows"],
    groups: Int[Tensor, " batch"],
) -> Float[Tensor, "candidates batch"]:
    """Every candidate's leave-one-prompt-out prediction of the batch, which is the last rows of `rows`.

    A domain with too few rows of earlier steps for a fit of its own gets the predictions of the common fit.
    """
    start = len(rows) - len(groups)
    out = torch.zeros(len(listed), len(groups), dtype=torch.float64)
    _fill(out, listed, matrix, LeaveOnePromptOut(matrix.columns, rows.reward, weights, groups))
    alone = [k for k, candidate in enumerate(listed) if candidate.own_domain]
    batch_domains = rows.domain[start:].unique().tolist()
    if not alone or (len(batch_domains) == 1 and bool((rows.domain == batch_domains[0]).all())):
        return out
    for domain in batch_domains:
        inside = rows.domain == domain
        if int(inside[:start].sum()) < _FEWEST_DOMAIN_ROWS:
            continue
        batch = inside[start:]
        own_groups = groups[batch].unique(return_inverse=True)[1]
        fit = LeaveOnePromptOut(matrix.columns[inside], rows.reward[inside], weights[inside], own_groups)
        own = torch.zeros(len(alone), int(batch.sum()), dtype=torch.float64)
        _fill(own, [listed[k] for k in alone], matrix, fit)
        out[torch.tensor(alone)[:, None], batch.nonzero()[:, 0]] = own
    return out


def _fill(
    out: Float[Tensor, "candidates batch"], listed: Sequence[Candidate], matrix: EvidenceMatrix, fit: LeaveOnePromptOut
) -> None:
    """Predict by one fit for all candidates, those that differ only in whose rows they use alike."""
    asked: dict[tuple[str, int], dict[float, list[int]]] = {}
    for k, c in enumerate(listed):
        asked.setdefault((c.evidence, c.components), {}).setdefault(c.penalty, []).append(k)
    for (name, components), penalties in asked.items():
        if name == "zero":
            continue
        blocks = [block for block in EVIDENCE_SETS[name] if block in matrix.blocks]
        predictions = fit.baselines(list(penalties), columns=matrix.chosen(blocks, components=components))
        for prediction, candidates_alike in zip(predictions, penalties.values(), strict=True):
            out[candidates_alike] = prediction


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
        """Add one batch; older batches fade by `decay`. Rows of weight 0 do not count, nor does a batch of them."""
        grown = num_domains - len(self.weights)
        kept = self.decay if bool((weights > 0).any()) else 1.0
        self.losses = torch.cat([self.losses * kept, self.losses.new_zeros(grown, len(predictions))])
        self.weights = torch.cat([self.weights * kept, self.weights.new_zeros(grown)])
        self.rows = torch.cat([self.rows * kept, self.rows.new_zeros(grown)])
        self.losses.index_add_(0, domains, (weights * (rewards - predictions) ** 2).T)
        self.weights.index_add_(0, domains, weights)
        self.rows.index_add_(0, domains, (weights > 0).to(torch.float64))
        return self

    def shares(self, domains: Int[Tensor, " batch"]) -> Float[Tensor, "candidates batch"]:
        """How much each candidate counts in the baselines of each row's domain; they add up to 1.

            share_c  proportional to  exp(-n (R_c - R_best) / (8 R_best))

        R is the mean cost so far, n the rows behind it: aggregation by exponential weights (Dalalyan and Tsybakov 2008,
        whose guarantee holds from a temperature of four times the noise's variance; R_best stands for that variance,
        and siblings' rows are half as many as they look). Candidates that are about as good are averaged, which is
        better than each of them; one that is worse by more than the record's noise counts for nothing.

        A domain with a short record leans on the record of all domains together; without any record the second
        candidate, the leave-out mean, counts alone.
        """
        total = self.weights.sum()
        if not total > 0:
            alone = torch.zeros(self.losses.shape[1], len(domains), dtype=torch.float64)
            alone[min(1, len(alone) - 1)] = 1
            return alone
        common = self.losses.sum(dim=0, keepdim=True) / total
        prior = _PRIOR_ROWS * total / self.rows.sum()
        risks = torch.cat([(self.losses + prior * common) / (self.weights + prior)[:, None], common])
        risks = risks.nan_to_num(nan=torch.finfo(torch.float64).max)  # costs may overflow
        rows = torch.cat([self.rows, self.rows.new_zeros(1)])
        rows += (self.rows.sum() - rows).clamp(max=_PRIOR_ROWS)
        best = risks.amin(dim=1, keepdim=True)
        excess = (risks - best) / best.clamp(min=torch.finfo(torch.float64).tiny)
        shares = torch.softmax(-rows[:, None] * excess / _TEMPERATURE, dim=1)
        return shares[domains.clamp(max=len(self.rows))].T  # the last are those of a domain without a record
