"""Rows that stand for verl's minibatches where the policy is updated on a share of them, drawn as in the TRL engine.

verl gives every data parallel rank one stretch of a batch and cuts it into minibatches. Rows are drawn in each of them
over all ranks, and dealt out again so that every rank gets as many rows and about as many tokens.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from poise.engines.subsampling import drawn_rollouts


def drawn_size(share: float, minibatch: int, *, rollouts: int, ranks: int) -> int:
    """Rows to draw of a minibatch: its share, rounded up to whole prompts and to as many rows on every rank."""
    step = math.lcm(rollouts, ranks)
    return min(minibatch, step * math.ceil(share * minibatch / step))


def drawn_rows(
    sizes: Float[Tensor, " rows"], lengths: list[int], *, minibatch: int, drawn: int, ranks: int
) -> tuple[list[int], Float[Tensor, " drawn_rows"], float]:
    """Rows to update on, drawn with torch's global generator; what each counts for; the mean noise of the draws.

    Args:
        sizes: Norms of the rows' gradients, in any unit.
        lengths: Tokens of every row.
        minibatch: Rows of a minibatch, over all ranks.
        drawn: Rows to draw of each.
        ranks: Data parallel ranks.

    Returns:
        Rows in verl's order: the first rank's minibatches, then the next one's; 1 / p of each, and 0 for rows that fill
        up a minibatch where fewer have a gradient.
    """
    stretch, part = len(sizes) // ranks, minibatch // ranks
    dealt: list[list[tuple[int, float]]] = [[] for _ in range(ranks)]
    noises = []
    for begin in range(0, stretch, part):
        rows = torch.cat([torch.arange(part) + rank * stretch + begin for rank in range(ranks)])
        places, counts_for, noise = drawn_rollouts(sizes[rows], (drawn - 0.5) / minibatch)
        chosen = dict(zip(rows[places].tolist(), counts_for.tolist(), strict=True))
        idle = (row for row in rows.tolist() if row not in chosen)
        chosen |= {next(idle): 0.0 for _ in range(drawn - len(chosen))}
        names = list(chosen)
        parts = get_seqlen_balanced_partitions([lengths[row] for row in names], k_partitions=ranks, equal_size=True)
        for rank, places_of_rank in enumerate(parts):
            dealt[rank] += [(names[place], chosen[names[place]]) for place in places_of_rank]
        noises.append(noise)
    pairs = [pair for of_rank in dealt for pair in of_rank]
    counts = torch.tensor([count for _, count in pairs], dtype=torch.float64)
    return [row for row, _ in pairs], counts, sum(noises) / len(noises)
