"""Rollouts of a minibatch that the policy is updated on, where it is not updated on all of them.

With a good baseline most advantages are small, and a small advantage takes as long to backpropagate as a large one. So
rollouts are drawn by the size of their gradients, and what is drawn counts for what is not:

    p_i = min(1, c a_i),  sum_i p_i = m;      sum_{i drawn} g_i / p_i   has the mean   sum_i g_i

(Horvitz and Thompson 1952; drawn systematically, Madow 1949, so that exactly m are). With a_i the norm of g_i, here
|A_i| times the estimated norm of the rollout's score, no other p of that sum has a lower variance.

Dimensions: n rollouts.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def inclusion_probabilities(sizes: Float[Tensor, " n"], num: int) -> Float[Tensor, " n"]:
    """p_i = min(1, c a_i) with the sum `num`; with fewer sizes above 0 than that, 1 for each of them and 0 elsewhere.

    Args:
        sizes: a_i, at least 0.
        num: Rollouts to be drawn.
    """
    certain = torch.zeros_like(sizes, dtype=torch.bool)
    while True:
        rest = torch.where(certain, 0.0, sizes)
        left = num - int(certain.sum())
        if left <= 0 or not rest.any():
            return certain.to(sizes.dtype)
        probabilities = rest * (left / rest.sum())
        if not bool((probabilities >= 1).any()):
            return torch.where(certain, 1.0, probabilities)
        certain |= probabilities >= 1


def systematic_draw(probabilities: Float[Tensor, " n"], start: float) -> Int[Tensor, " drawn"]:
    """The rows in whose stretch of the cumulated probabilities one of the points start, start + 1, ... lies.

    Args:
        probabilities: Each between 0 and 1.
        start: Uniform on [0, 1).
    """
    points = (probabilities.cumsum(0) - start).ceil().clamp(min=0)
    before = torch.cat([points.new_zeros(1), points[:-1]])
    return (points > before).nonzero()[:, 0]


def drawn_rollouts(
    sizes: Float[Tensor, " n"], share: float
) -> tuple[Int[Tensor, " drawn"], Float[Tensor, " drawn"], float]:
    """Rollouts to update on, drawn with torch's global generator; what each counts for; and what the draw costs.

    Args:
        sizes: Norms of the rollouts' gradients, in any unit.
        share: Of the rollouts, rounded up to a whole number of them.

    Returns:
        Rows, in order; 1 / p of each; and sum_i a_i^2 / p_i over sum_i a_i^2, by which the expected squared gradients
        grow: 1 for nothing. Where no rollout has a size, the first one stands for all.
    """
    sizes = sizes.detach().cpu().double()
    start = float(torch.rand(()))  # drawn in any case: what follows must not hang on the batch
    if not sizes.any():
        return torch.tensor([0]), torch.ones(1, dtype=sizes.dtype), 1.0
    probabilities = inclusion_probabilities(sizes, math.ceil(share * len(sizes)))
    rows = systematic_draw(probabilities, start)
    sized = sizes > 0
    grown = (sizes[sized].square() / probabilities[sized]).sum() / sizes.square().sum()
    return rows, 1 / probabilities[rows], float(grown)
