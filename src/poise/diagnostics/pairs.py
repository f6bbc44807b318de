"""The scoreboard of pairs: how much of the rewards' variance any baseline could remove, and how much this one does.

Two rollouts of a prompt tell it without a single extra rollout. For prompts with at least two gradable rollouts
(the same prompts in every term), with r_xi the rewards, rbar_x their mean and s_x^2 their 1/(G-1) variance:

    within    = mean_x s_x^2                         estimates E[V (1 - V)] for 0/1 rewards
    square    = mean_{x != x'} rbar_x rbar_x'        estimates (E V)^2
    Var V     = mean_x mean_{i != j} r_xi r_xj - square
    Var r     = mean_x mean_i r_xi^2 - square
    ceiling   = Var V / Var r                        the largest variance reduction that there is
    reduction = 1 - E[(r - b)^2] / Var r
    captured  = reduction / ceiling                  NaN below a ceiling of .02
    MSE(b, V) = E[(r - b)^2] - within                for any b that leaves the rollout out

Ratios are ratios of running sums. Each estimate is unbiased for its step; prompts weigh the same.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LOWEST_CEILING = 0.02


@dataclass
class PairScoreboard:
    """Running sums, over steps, of what pairs of rollouts tell about rewards and about one column of baselines."""

    decay: float = 0.9
    sums: Float[Tensor, " terms"] = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))
    """Decayed sums over prompts of [1, within, square, product of two rewards, r^2, (r - b)^2]."""

    def observe(
        self,
        rewards: Float[Tensor, " rows"],
        baselines: Float[Tensor, " rows"],
        groups: Int[Tensor, " rows"],
        gradable: Bool[Tensor, " rows"],
    ) -> "PairScoreboard":
        """Add one step. Prompts with fewer than two gradable rollouts do not count; nor do steps with one prompt."""
        num_groups = int(groups.max()) + 1 if len(groups) else 0

        def per_prompt(column: Float[Tensor, " rows"]) -> Float[Tensor, " prompts"]:
            return torch.zeros(num_groups, dtype=torch.float64).index_add_(0, groups, torch.where(gradable, column, 0))

        counts = per_prompt(torch.ones_like(rewards))
        pairs = counts >= 2
        n = counts[pairs]
        prompts = len(n)
        if prompts < 2:
            return self
        total, squares, losses = (
            per_prompt(column)[pairs] for column in (rewards, rewards**2, (rewards - baselines) ** 2)
        )
        means = total / n
        square = (means.sum() ** 2 - (means**2).sum()) / (prompts * (prompts - 1))
        products = ((total**2 - squares) / (n * (n - 1))).mean()
        within = ((squares - n * means**2) / (n - 1)).mean()
        terms = torch.stack(
            [torch.ones_like(square), within, square, products, (squares / n).mean(), (losses / n).mean()]
        )
        self.sums = self.decay * self.sums + prompts * terms
        return self

    def metrics(self) -> dict[str, float]:
        """`noise_ceiling`, `variance_reduction`, `ceiling_share` and `value_error` (MSE to V); NaN where undefined."""
        count, within, square, products, squares, losses = self.sums.tolist()
        nan = float("nan")
        variance = squares - square
        ceiling = (products - square) / variance if variance > 0 else nan
        reduction = 1 - losses / variance if variance > 0 else nan
        return {
            "noise_ceiling": ceiling,
            "variance_reduction": reduction,
            "ceiling_share": reduction / ceiling if ceiling >= _LOWEST_CEILING else nan,
            "value_error": (losses - within) / count if count > 0 else nan,
        }
