"""How is a wide hidden state made narrow without looking at the batch?

Every row is divided by its own root mean square and multiplied by a fixed orthonormal matrix drawn from a seed. Both
depend on nothing but the row itself, so a projected state leaks nothing about other rows, the fit stays exact, and the
state to save is the seed.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def projected_states(states: Float[Tensor, "rows width"], *, size: int, seed: int) -> Float[Tensor, "rows size"]:
    """Scale each row to root mean square 1 and project it on `size` fixed orthonormal directions.

    The projection is scaled by sqrt(width / size), so that squared norms keep their mean. States no wider than `size`
    are only scaled. A row of zeros (a segment without tokens) stays zero.
    """
    states = states.to(torch.float32)
    width = states.shape[1]
    rms = states.pow(2).mean(dim=1, keepdim=True).sqrt() if width else states
    scaled = states / torch.where(rms > 0, rms, 1.0)
    if width <= size:
        return scaled
    return scaled @ _orthonormal(width, size, seed).to(scaled.device)


@lru_cache(maxsize=8)
def _orthonormal(width: int, size: int, seed: int) -> Float[Tensor, "width size"]:
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(width, size, generator=generator, dtype=torch.float64)
    basis, triangular = torch.linalg.qr(gaussian)
    signs = torch.where(triangular.diagonal() < 0, -1.0, 1.0)  # QR alone leaves the signs to the LAPACK at hand
    return (basis * signs * (width / size) ** 0.5).to(torch.float32)
