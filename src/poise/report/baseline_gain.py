"""What the baseline saves: the noise of the gradient with it, without any, with RLOO and with the best constant.

The noise of a policy gradient grows with the mean of w (r - b)^2, r the reward, b the baseline, and w the squared
length of the rollout's score, which files of rollouts hold where the run computed it. Every baseline is judged on the
same rollouts: graded ones of prompts with two or more. Beside it, what pairs tell about values, and how hard prompts
are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from poise.diagnostics.pairs import PairScoreboard
from poise.report.rollout_files import RolloutBatch

DECAY = 0.9
"""A step, of running sums."""
FEWEST_BATCHES = 4
"""That a ratio is told of."""
Z_95 = 1.96

NONE, RLOO, CONSTANT = "no baseline", "RLOO", "the best constant"


@dataclass(frozen=True)
class Noise:
    """Noise of the gradient over batches: one row a batch, sums over its rollouts."""

    steps: list[int]
    used: NDArray[np.float64]
    """sum w (r - b)^2 with the run's own baselines."""
    none: NDArray[np.float64]
    """sum w r^2."""
    rloo: NDArray[np.float64]
    """sum w (r - mean of the siblings' rewards)^2."""
    moments: NDArray[np.float64]
    """sum w, sum w r: what the best constant is made of."""
    weighted: bool
    """Whether all files had weights; without, every rollout counts alike."""

    @property
    def late(self) -> "Noise":
        """The last third of the batches."""
        first = len(self.steps) - max(1, len(self.steps) // 3)
        columns = (each[first:] for each in (self.used, self.none, self.rloo, self.moments))
        return Noise(self.steps[first:], *columns, weighted=self.weighted)

    def faded(self) -> "Noise":
        """The same with running sums."""
        columns = (faded(each) for each in (self.used, self.none, self.rloo, self.moments))
        return Noise(self.steps, *columns, weighted=self.weighted)

    def of(self, name: str) -> NDArray[np.float64]:
        """The sums of a baseline that the run is compared with."""
        if name == CONSTANT:
            total, first = self.moments.T
            return self.none - np.divide(first**2, total, out=np.zeros_like(first), where=total > 0)
        return {NONE: self.none, RLOO: self.rloo}[name]


@dataclass(frozen=True)
class Ratio:
    """Noise with the run's baseline over noise with another, with a 95 % interval."""

    against: str
    ratio: float
    low: float
    high: float


def noise(batches: Sequence[RolloutBatch]) -> Noise | None:
    """The noise in every batch that has prompts with two graded rollouts; None without any."""
    weighted = all(any(weight is not None for weight in batch.columns["weight"]) for batch in batches)
    rows, steps = [], []
    for batch in batches:
        baselines = batch.numbers("baseline")
        weights = batch.numbers("weight") if weighted else np.ones(len(batch))
        kept = (batch.graded_siblings > 1) & np.isfinite(baselines) & np.isfinite(weights)
        if not kept.any():
            continue
        r = np.where(np.isfinite(batch.rewards), batch.rewards, 0.0)
        others = np.bincount(batch.groups, weights=r)[batch.groups] - r
        siblings = others / np.maximum(1, batch.graded_siblings - 1)
        w, b = np.where(kept, weights, 0.0), np.where(kept, baselines, 0.0)
        terms = (w * (r - b) ** 2, w * r**2, w * (r - siblings) ** 2, w, w * r)
        rows.append([float(term[kept].sum()) for term in terms])
        steps.append(batch.step)
    if not rows:
        return None
    table = np.array(rows)
    return Noise(steps, table[:, 0], table[:, 1], table[:, 2], table[:, 3:], weighted=weighted)


def ratios(found: Noise | None) -> list[Ratio]:
    """The run's baseline against each other one over the last third of the batches; empty of too few batches.

    Intervals are those of the delete-one-batch jackknife.
    """
    late = None if found is None else found.late
    if late is None or len(late.steps) < FEWEST_BATCHES:
        return []
    told = []
    for against in (NONE, RLOO, CONSTANT):

        def ratio(keep: NDArray[np.bool_], against: str = against) -> float:
            sums = [each[keep].sum(axis=0, keepdims=True) for each in (late.used, late.none, late.rloo, late.moments)]
            other = float(Noise([0], *sums, weighted=late.weighted).of(against)[0])
            return float(sums[0][0]) / other if other > 0 else float("nan")

        n = len(late.steps)
        everything = ratio(np.ones(n, dtype=bool))
        left_out = np.array([ratio(np.arange(n) != row) for row in range(n)])
        reach = Z_95 * float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
        if np.isfinite(everything + reach):
            told.append(Ratio(against, everything, max(0.0, everything - reach), everything + reach))
    return told


def faded(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums of rows that fade by `DECAY` a row."""
    out, total = np.zeros_like(column), np.zeros_like(column[:1])
    for row in range(len(column)):
        total = DECAY * total + column[row : row + 1]
        out[row] = total[0]
    return out


def errors_of_simple_values(batches: Sequence[RolloutBatch]) -> tuple[list[int], list[float], list[float]]:
    """Steps; squared error to V of the best constant, and of the siblings' mean reward.

    The first is Var V; the second is the mean over prompts of s_x^2 / (G_x - 1). Both are ratios of running sums, which
    fade as those of `PairScoreboard` do.
    """
    board = PairScoreboard(decay=DECAY)
    steps: list[int] = []
    constant, sibling = [], []
    error_sum = prompt_sum = 0.0
    for batch in batches:
        kept = batch.graded_siblings > 1
        if len(np.unique(batch.groups[kept])) < 2:
            continue
        r = torch.from_numpy(np.where(kept, np.nan_to_num(batch.rewards), 0.0))
        board.observe(r, torch.zeros_like(r), torch.from_numpy(batch.groups), torch.from_numpy(kept))
        n = np.bincount(batch.groups, weights=kept)
        sums, squares = (np.bincount(batch.groups, weights=each.numpy() * kept) for each in (r, r**2))
        n, sums, squares = (each[n > 1] for each in (n, sums, squares))
        error_sum = DECAY * error_sum + float(((squares - sums**2 / n) / (n - 1) ** 2).sum())
        prompt_sum = DECAY * prompt_sum + len(n)
        count, _, square, products, _, _ = board.sums.tolist()
        steps.append(batch.step)
        constant.append(max(0.0, (products - square) / count))
        sibling.append(error_sum / prompt_sum)
    return steps, constant, sibling


def difficulty(batches: Sequence[RolloutBatch]) -> tuple[list[int], NDArray[np.float64]]:
    """Steps; shares of prompts that are never solved, sometimes, and always: all rewards lowest, neither, all highest.

    Of prompts with two graded rollouts or more; lowest and highest are those of the whole run.
    """
    graded = [batch.rewards[np.isfinite(batch.rewards)] for batch in batches]
    known = np.concatenate([each for each in graded if len(each)] or [np.zeros(1)])
    lowest, highest = float(known.min()), float(known.max())
    steps: list[int] = []
    shares = []
    for batch in batches:
        kept = batch.graded_siblings > 1
        if not kept.any() or lowest == highest:
            continue
        n, low, high = (
            np.bincount(batch.groups[kept], weights=each[kept].astype(float))
            for each in (np.ones(len(batch)), batch.rewards <= lowest, batch.rewards >= highest)
        )
        n, low, high = (each[n > 0] for each in (n, low, high))
        never, always = float((low == n).mean()), float((high == n).mean())
        steps.append(batch.step)
        shares.append([never, 1 - never - always, always])
    return steps, np.array(shares).reshape(-1, 3)
