"""The few directions of a wide hidden state that matter, settled without looking at its own batch.

First every row is multiplied by a fixed orthonormal matrix drawn from a seed, which depends on nothing, and is all that
there is to save. What remains is turned into scores on principal axes that were settled on *other* rows: those of
earlier steps. So the fit stays exact.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def projected_states(states: Float[Tensor, "rows width"], *, size: int, seed: int) -> Float[Tensor, "rows size"]:
    """Project each row on `size` fixed orthonormal directions; states no wider than that are left as they are.

    The projection is scaled by sqrt(width / size), so that squared norms keep their mean.
    """
    states = states.to(torch.float32)
    width = states.shape[1]
    return states if width <= size else states @ _orthonormal(width, size, seed).to(states.device)


_ROWS_AT_ONCE = 1024  # brought to float64: a window of states is never held twice

FARTHEST = 6.0
"""Where scores are cut off, in standard deviations: hidden states have outliers, and a fit should not hang on one."""


@dataclass(frozen=True)
class PrincipalAxes:
    """Directions of largest variance of some settled rows, the first ones first."""

    mean: Float[Tensor, " width"]
    directions: Float[Tensor, "width components"]
    """Orthogonal columns, each divided by the standard deviation along it."""

    def scores(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows components"]:
        """Coordinates of rows, of variance 1 over the settled rows; outliers are held at `FARTHEST` deviations."""
        parts = [(part.to(torch.float64) - self.mean) @ self.directions for part in rows.split(_ROWS_AT_ONCE)]
        return torch.cat(parts).clamp_(-FARTHEST, FARTHEST)


def principal_axes(rows: Float[Tensor, "rows width"], *, components: int) -> PrincipalAxes:
    """Settle principal axes on rows; directions without variance are left out, so there may be fewer.

    With no rows at all the axes have no direction.
    """
    width = rows.shape[1]
    mean = rows.new_zeros(width, dtype=torch.float64)
    covariance = rows.new_zeros(width, width, dtype=torch.float64)
    for part in rows.split(_ROWS_AT_ONCE):
        mean += part.sum(dim=0, dtype=torch.float64) / max(len(rows), 1)
    for part in rows.split(_ROWS_AT_ONCE):
        centred = part.to(torch.float64) - mean
        covariance += centred.T @ centred / max(len(rows), 1)
    variances, axes = torch.linalg.eigh(covariance)
    variances, axes = variances.flip(0)[:components], axes.flip(1)[:, :components]
    kept = variances > 1e-9 * variances.sum()
    return PrincipalAxes(mean, axes[:, kept] / variances[kept].sqrt())


@lru_cache(maxsize=8)
def _orthonormal(width: int, size: int, seed: int) -> Float[Tensor, "width size"]:
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(width, size, generator=generator, dtype=torch.float64)
    basis, triangular = torch.linalg.qr(gaussian)
    signs = torch.where(triangular.diagonal() < 0, -1.0, 1.0)  # QR alone leaves the signs to the LAPACK at hand
    return (basis * signs * (width / size) ** 0.5).to(torch.float32)
