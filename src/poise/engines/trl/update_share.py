"""The rows of a minibatch that TRL's loss is taken of, where the policy is updated on a share of them.

All passes but those of the update see every rollout. Sizes of gradients are known once a generation batch has
its advantages; they travel with TRL's rows, and rows are drawn when a minibatch's loss is due.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from poise.engines.subsampling import drawn_rollouts

SIZES = "gradient_sizes"
"""The key under which they travel."""


def gradient_sizes(advantages: Float[Tensor, "B"], weights: Float[Tensor, "B"] | None) -> Float[Tensor, "B"]:
    """|A| times the estimated norm of the score, the root of its weight; |A| alone without weights."""
    sizes: Tensor = advantages.abs()
    return sizes if weights is None else sizes * weights.sqrt().to(sizes)


def drawn_minibatch(minibatch: dict[str, Any], share: float) -> tuple[dict[str, Any], float | None]:
    """Rows that stand for a minibatch, and the noise of drawing them (`drawn_rollouts`).

    Where a size is not finite it is the whole minibatch, for `finite_steps` to see, and None.
    """
    sizes = minibatch[SIZES]
    if not bool(sizes.isfinite().all()):
        return minibatch, None
    rows, counts_for, noise = drawn_rollouts(sizes, share)
    rows = rows.to(sizes.device)
    drawn = {name: part[rows] if isinstance(part, Tensor) and part.ndim else part for name, part in minibatch.items()}
    # The loss is a mean over rows, and those that were not drawn belong to it.
    drawn["advantages"] = drawn["advantages"] * (counts_for * len(rows) / len(sizes)).to(drawn["advantages"])
    return drawn, noise
