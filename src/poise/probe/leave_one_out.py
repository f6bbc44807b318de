"""Leave-one-prompt-out predictions of a ridge regression.

The current batch takes part in its own fit, and every prompt S gets its baseline from the fit without its current
rows: exactly, for every prompt and every penalty, from one eigendecomposition. With E the evidence of all rows
(window and batch), w >= 0 their weights, W = diag(w) and c_S the mean of the positive weights outside S,

    A_S = E'WE + penalty * c_S * I,   K_S = E_S A_S^-1 E_S'
    b_S = (I - K_S W_S)^-1 (E_S A_S^-1 E'Wr - K_S W_S r_S)

which equals E_S times the ridge coefficients fitted on the rows outside S (Woodbury). Measuring the penalty in units
of c_S makes the baselines independent of the unit of the weights, and c_S leaves S out, so nothing of S leaks in.

Dimensions: rows = window and batch; columns = evidence columns; batch = rows of this step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Below this, I - K_S W_S loses too many digits (the rows of S all but determine the fit), and S is refitted outright.
_SMALLEST_TRUSTED_EIGENVALUE = 1e-3


@dataclass(frozen=True)
class LeaveOnePromptOut:
    """Leave-one-prompt-out ridge predictions of one batch, for a list of penalties.

    `groups` numbers the prompts of the batch rows 0..P-1; the batch rows are the last ones of `evidence`.
    """

    evidence: Float[Tensor, "rows columns"]
    rewards: Float[Tensor, " rows"]
    weights: Float[Tensor, " rows"]
    groups: Int[Tensor, " batch"]

    def baselines(
        self, penalties: Sequence[float], *, columns: Sequence[int] | None = None
    ) -> Float[Tensor, "penalties batch"]:
        """Predict every batch row from the fit without the batch rows of its prompt.

        Rows of weight 0 take no part in any fit and are predicted like the others. The primal form (columns x
        columns) serves when there are at least as many rows as columns, the dual form (rows x rows) otherwise.

        Args:
            penalties: Ridge penalties, in units of the mean weight of a row.
            columns: The columns of `evidence` that are used; default all.

        Raises:
            ValueError: If a penalty is not positive.
        """
        if any(penalty <= 0 for penalty in penalties):
            raise ValueError(f"a ridge penalty must be positive, got {min(penalties)}")
        batch = len(self.groups)
        start = len(self.rewards) - batch
        used = list(range(self.evidence.shape[1])) if columns is None else list(columns)
        eigenvalues, coordinates, target = self._eigenbasis(used)
        outside_weight = self._mean_outside_weights()
        out = torch.empty(len(penalties), batch, dtype=torch.float64)
        for rows in rows_by_group_size(self.groups):  # (prompts, group_size)
            z, w = coordinates[rows], self.weights[start + rows]
            r = self.rewards[start + rows]
            scale = outside_weight[self.groups[rows[:, 0]]]
            for k, penalty in enumerate(penalties):
                inverse = 1 / (eigenvalues + penalty * scale[:, None])  # (prompts, columns)
                fitted = torch.einsum("pgc,pc->pg", z, inverse * target)
                kernel = torch.einsum("pgc,pc,phc->pgh", z, inverse, z)
                out[k, rows] = self._without_own(fitted, kernel, w, r, rows, used, penalty * scale)
        return out

    @cached_property
    def _gram(self) -> Float[Tensor, "columns columns"]:
        scaled = self.weights.sqrt()[:, None] * self.evidence
        return scaled.T @ scaled

    @cached_property
    def _moment(self) -> Float[Tensor, " columns"]:
        return self.evidence.T @ (self.weights * self.rewards)

    def _eigenbasis(
        self, used: list[int]
    ) -> tuple[Float[Tensor, " rank"], Float[Tensor, "batch rank"], Float[Tensor, " rank"]]:
        """Eigenvalues of E'WE, the batch rows in its eigenbasis Q, and Q'E'Wr, for the used columns."""
        rows = len(self.rewards)
        start = rows - len(self.groups)
        if rows >= len(used):
            eigenvalues, basis = torch.linalg.eigh(self._gram[used][:, used])
        else:
            scaled = self.weights.sqrt()[:, None] * self.evidence[:, used]
            eigenvalues, vectors = torch.linalg.eigh(scaled @ scaled.T)
            # Directions below rounding carry nothing but noise.
            kept = eigenvalues > eigenvalues.max().clamp(min=1e-300) * rows * torch.finfo(torch.float64).eps
            eigenvalues = eigenvalues[kept]
            basis = scaled.T @ vectors[:, kept] / eigenvalues.sqrt()
        return eigenvalues.clamp(min=0), self.evidence[start:, used] @ basis, basis.T @ self._moment[used]

    def _mean_outside_weights(self) -> Float[Tensor, " prompts"]:
        """c_S: mean of the positive weights of rows outside each prompt's batch rows; 1 where there are none."""
        start = len(self.rewards) - len(self.groups)
        num_prompts = int(self.groups.max()) + 1
        window, batch = self.weights[:start], self.weights[start:]

        def outside(amounts: Float[Tensor, " batch"], elsewhere: Tensor) -> Float[Tensor, " prompts"]:
            # Added up from both sides of the prompt: total - own would carry the rounding of a huge own weight.
            own = torch.zeros(num_prompts + 2, dtype=torch.float64).index_add_(0, self.groups + 1, amounts)
            return elsewhere + own.cumsum(0)[:-2] + own.flip(0).cumsum(0).flip(0)[2:]

        total = outside(batch, window.sum())
        count = outside((batch > 0).to(torch.float64), (window > 0).sum())
        return torch.where(count > 0, total / count.clamp(min=1), 1.0)

    def _without_own(
        self,
        fitted: Float[Tensor, "prompts group_size"],
        kernel: Float[Tensor, "prompts group_size group_size"],
        w: Float[Tensor, "prompts group_size"],
        r: Float[Tensor, "prompts group_size"],
        rows: Int[Tensor, "prompts group_size"],
        used: list[int],
        penalty: Float[Tensor, " prompts"],
    ) -> Float[Tensor, "prompts group_size"]:
        group_size = rows.shape[1]
        root = w.sqrt()
        identity = torch.eye(group_size, dtype=torch.float64)
        # I - W^1/2 K W^1/2 has the eigenvalues of I - K W, and is symmetric.
        remaining = torch.linalg.eigvalsh(identity - root[:, :, None] * kernel * root[:, None, :])[:, 0]
        right = fitted - torch.einsum("pgh,ph->pg", kernel, w * r)
        trusted = remaining > _SMALLEST_TRUSTED_EIGENVALUE
        left = torch.where(trusted[:, None, None], identity - kernel * w[:, None, :], identity)
        out = torch.linalg.solve(left, right[:, :, None])[:, :, 0]
        for p in (~trusted).nonzero()[:, 0].tolist():
            out[p] = self._refitted(rows[p], used, float(penalty[p]))
        return out

    def _refitted(
        self, rows: Int[Tensor, " group_size"], used: list[int], penalty: float
    ) -> Float[Tensor, " group_size"]:
        """Predict the batch rows `rows` from a fit that has never seen them."""
        own = rows + len(self.rewards) - len(self.groups)
        outside = torch.ones(len(self.rewards), dtype=torch.bool)
        outside[own] = False
        evidence = self.evidence[:, used]
        return evidence[own] @ ridge(evidence[outside], self.rewards[outside], self.weights[outside], penalty)


def ridge(
    evidence: Float[Tensor, "rows columns"],
    rewards: Float[Tensor, " rows"],
    weights: Float[Tensor, " rows"],
    penalty: float,
) -> Float[Tensor, " columns"]:
    """Solve (E'WE + penalty I) beta = E'Wr, in the dual where there are fewer rows than columns.

    Every column is penalised, a constant one too.
    """
    scaled, target = weights.sqrt()[:, None] * evidence, weights.sqrt() * rewards
    rows, columns = evidence.shape
    if rows >= columns:
        gram = scaled.T @ scaled + penalty * torch.eye(columns, dtype=torch.float64)
        return torch.linalg.solve(gram, scaled.T @ target)
    kernel = scaled @ scaled.T + penalty * torch.eye(rows, dtype=torch.float64)
    return scaled.T @ torch.linalg.solve(kernel, target)


def rows_by_group_size(groups: Int[Tensor, " rows"]) -> list[Int[Tensor, "prompts group_size"]]:
    """Row indices arranged one prompt a line, one table for each group size that occurs."""
    order = torch.argsort(groups, stable=True)
    sizes = torch.bincount(groups)
    starts = sizes.cumsum(0) - sizes
    return [order[starts[sizes == size][:, None] + torch.arange(size)] for size in sizes.unique().tolist() if size > 0]
