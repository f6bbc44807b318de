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

from poise.baselines import sibling_means
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
    """Noise of the gradient over batches."""

    steps: list[int]
    sums: NDArray[np.float64]
    """A row a batch: sums over its rollouts of w (r - b)^2 with the run's own baselines, of w r^2, of w (r - mean of
    the siblings' rewards)^2, of w, and of w r."""
    weighted: bool
    """Whether all files had weights; without, every rollout counts alike."""

    @property
    def used(self) -> NDArray[np.float64]:
        """With the run's own baselines."""
        return self.sums[:, 0]

    @property
    def late(self) -> "Noise":
        """The last third of the batches."""
        first = len(self.steps) - max(1, len(self.steps) // 3)
        return Noise(self.steps[first:], self.sums[first:], self.weighted)

    def faded(self) -> "Noise":
        """The same with running sums."""
        running = np.zeros_like(self.sums)
        for row, sums in enumerate(self.sums):
            running[row] = sums + (DECAY * running[row - 1] if row else 0.0)
        return Noise(self.steps, running, self.weighted)

    def of(self, name: str) -> NDArray[np.float64]:
        """With a baseline that the run is compared with."""
        _, none, rloo, total, first = self.sums.T
        if name == CONSTANT:
            best: NDArray[np.float64] = np.divide(first**2, total, out=np.zeros_like(first), where=total > 0)
            return none - best
        return {NONE: none, RLOO: rloo}[name]


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
        graded = torch.from_numpy(np.isfinite(batch.rewards))
        means, _ = sibling_means(torch.from_numpy(r)[:, None], torch.from_numpy(batch.groups), graded)
        siblings = means[:, 0].numpy()
        w, b = np.where(kept, weights, 0.0), np.where(kept, baselines, 0.0)
        terms = (w * (r - b) ** 2, w * r**2, w * (r - siblings) ** 2, w, w * r)
        rows.append([float(term[kept].sum()) for term in terms])
        steps.append(batch.step)
    if not rows:
        return None
    return Noise(steps, np.array(rows), weighted)


def ratios(found: Noise | None) -> list[Ratio]:
    """The run's baseline against each other one over the last third of the batches; empty of too few batches.

    Intervals are those of the delete-one-batch jackknife.
    """
    late = None if found is None else found.late
    if late is None or len(late.steps) < FEWEST_BATCHES:
        return []
    told = []
    for against in (NONE, RLOO, CONSTANT):

        def ratio(sums: NDArray[np.float64], against: str = against) -> float:
            whole = Noise([0], sums[None], late.weighted)
            other = float(whole.of(against)[0])
            return float(whole.used[0]) / other if other > 0 else float("nan")

        n = len(late.steps)
        total = late.sums.sum(axis=0)
        everything = ratio(total)
        left_out = np.array([ratio(total - sums) for sums in late.sums])
        reach = Z_95 * float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
        if np.isfinite(everything + reach):
            told.append(Ratio(against, everything, max(0.0, everything - reach), everything + reach))
    return told


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
