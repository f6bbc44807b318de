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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poise.baselines import rows_by_group_size, sums_of_others

# Digits are lost where the condition number of A, times the size of rewards over their range, over the smallest
# eigenvalue of I - K_S W_S, exceeds this, and where S all but determines the fit: S is then refitted outright.
_LARGEST_TRUSTED_CONDITION = 3e7
_SMALLEST_TRUSTED_EIGENVALUE = 1e-3
_PROMPTS_AT_ONCE = 64


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
                shift = penalty * scale
                inverse = 1 / (eigenvalues + shift[:, None])  # (prompts, columns), falling
                least = _least_trusted_eigenvalue(inverse, self._size_over_range)
                solved = z * inverse[:, None, :]
                out[k, rows], trusted = _without_own(solved @ target, solved @ z.transpose(1, 2), w, r, least)
                # Blocks of prompts are the same whichever of them are refitted: so are sums, to the last bit.
                for block in (~trusted).nonzero()[:, 0].div(_PROMPTS_AT_ONCE, rounding_mode="floor").unique().tolist():
                    part = slice(block * _PROMPTS_AT_ONCE, (block + 1) * _PROMPTS_AT_ONCE)
                    out[k, rows[part][~trusted[part]]] = self._refitted(rows[part], ~trusted[part], used, shift[part])
        return out

    @cached_property
    def _size_over_range(self) -> float:
        """The largest reward's size over the range of rewards; 1 where all are equal."""
        spread = float(self.rewards.max() - self.rewards.min())
        return float(self.rewards.abs().max()) / spread if spread > 0 else 1.0

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
            own = torch.zeros(num_prompts, dtype=torch.float64).index_add_(0, self.groups, amounts)
            return elsewhere + sums_of_others(own)

        total = outside(batch, window.sum())
        count = outside((batch > 0).to(torch.float64), (window > 0).sum())
        return torch.where(count > 0, total / count.clamp(min=1), 1.0)

    def _refitted(
        self,
        rows: Int[Tensor, "block group_size"],
        asked: Bool[Tensor, " block"],
        used: list[int],
        penalty: Float[Tensor, " block"],
    ) -> Float[Tensor, "prompts group_size"]:
        """Predict the rows of those prompts of a block that are asked for, from fits that have never seen them."""
        own = rows + len(self.rewards) - len(self.groups)
        outside = torch.ones(len(self.rewards), dtype=torch.bool)
        outside[own.flatten()] = False
        evidence, paid = self.evidence[:, used], self.weights * self.rewards
        scaled = self.weights.sqrt()[:, None] * evidence
        gram = scaled[outside].T @ scaled[outside] + sums_of_others(scaled[own].transpose(1, 2) @ scaled[own])[asked]
        moment = evidence[outside].T @ paid[outside]
        moment = moment + sums_of_others(torch.einsum("pgc,pg->pc", evidence[own], paid[own]))[asked]
        gram.diagonal(dim1=1, dim2=2).add_(penalty[asked, None])
        root = gram.diagonal(dim1=1, dim2=2).rsqrt()  # columns of any size are brought to one
        scaled_gram = root[:, :, None] * gram * root[:, None, :]
        # Columns that say the same are told apart by nothing but the penalty, which may be below rounding.
        scaled_gram.diagonal(dim1=1, dim2=2).add_(len(used) * torch.finfo(torch.float64).eps)
        slopes, _ = torch.linalg.solve_ex(scaled_gram, (root * moment)[:, :, None])
        return torch.einsum("pgc,pc->pg", evidence[own[asked]], root * slopes[:, :, 0])


def _least_trusted_eigenvalue(
    inverse: Float[Tensor, "prompts rank"], size_over_range: float
) -> Float[Tensor, " prompts"]:
    """How small an eigenvalue of I - K_S W_S may be without the loss of digits that count."""
    condition = inverse[:, 0] / inverse[:, -1] if inverse.shape[1] else inverse.new_ones(len(inverse))
    return (condition * size_over_range / _LARGEST_TRUSTED_CONDITION).clamp(min=_SMALLEST_TRUSTED_EIGENVALUE)


def _without_own(
    fitted: Float[Tensor, "prompts group_size"],
    kernel: Float[Tensor, "prompts group_size group_size"],
    w: Float[Tensor, "prompts group_size"],
    r: Float[Tensor, "prompts group_size"],
    least: Float[Tensor, " prompts"],
) -> tuple[Float[Tensor, "prompts group_size"], Bool[Tensor, " prompts"]]:
    """Predictions of the fit with S turned into those without it, and where they keep their digits."""
    root = w.sqrt()
    identity = torch.eye(w.shape[1], dtype=torch.float64)
    # W^1/2 K W^1/2 has the eigenvalues of K W, and is symmetric; none is larger than its trace.
    seen = root[:, :, None] * kernel * root[:, None, :]
    trusted = 1 - seen.diagonal(dim1=1, dim2=2).sum(dim=1) > least
    doubtful = (~trusted & (least < 1)).nonzero()[:, 0]
    trusted[doubtful] = torch.linalg.eigvalsh(identity - seen[doubtful])[:, 0] > least[doubtful]
    right = fitted - torch.einsum("pgh,ph->pg", kernel, w * r)
    left = torch.where(trusted[:, None, None], identity - kernel * w[:, None, :], identity)
    return torch.linalg.solve(left, right[:, :, None])[:, :, 0], trusted


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
