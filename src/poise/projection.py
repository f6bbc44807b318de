"""How is a wide hidden state brought to the few directions that matter, without looking at its own batch?

First every row is divided by its own root mean square and multiplied by a fixed orthonormal matrix drawn from a seed:
both depend on nothing but the row, and the state to save is the seed. What remains is turned into scores on principal
axes that were settled on *other* rows: those of earlier steps. So the fit stays exact.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class PrincipalAxes:
    """Directions of largest variance of some settled rows, the first ones first."""

    mean: Float[Tensor, " width"]
    directions: Float[Tensor, "width components"]
    """Orthogonal columns, each divided by the standard deviation along it."""

    def scores(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows components"]:
        """Coordinates of rows; each has variance 1 over the rows that the axes were settled on."""
        return (rows.to(torch.float64) - self.mean) @ self.directions


def principal_axes(rows: Float[Tensor, "rows width"], *, components: int) -> PrincipalAxes:
    """Settle principal axes on rows; directions without variance are left out, so there may be fewer.

    With no rows at all the axes have no direction.
    """
    rows = rows.to(torch.float64)
    mean = rows.mean(dim=0) if len(rows) else rows.new_zeros(rows.shape[1])
    centred = rows - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / max(len(rows), 1))
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
