"""Measures of how near an estimate of a prompt's value comes, judged by rollouts that it has not seen.

An estimate e_xj was made from rollout j of prompt x (and from nothing else of x); n other rollouts judge it, with mean
reward A_xj and variance s_xj^2 (the 1/(n-1) one). A is not V. Its own noise is taken off,

    E[(e - A)^2 - s^2 / n] = E[(e - V)^2],

so that squared errors are comparable whatever n is; an absolute error keeps the noise, and is comparable only between
estimates that the same rollouts judge. Measures are taken for each j over prompts, then averaged over j: the evidence
may be any rollout. Intervals resample prompts; nothing is fitted again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import Tensor

from poise.evaluate.statistics import quantile_bins
from poise.tasks.verifiers import FULL_MARKS

_ALIKE = 1e-12  # variance below which a column is constant up to rounding


@dataclass(frozen=True)
class Judged:
    """Estimates of prompts' values and what the rollouts that judge them say; a column for each choice of evidence."""

    estimates: Float[np.ndarray, "prompts evidence"]
    means: Float[np.ndarray, "prompts evidence"]
    """Of the judging rewards."""
    noise: Float[np.ndarray, "prompts evidence"]
    """Unbiased estimate of the variance of that mean."""
    squares: Float[np.ndarray, "prompts evidence"]
    """Mean squares of the judging rewards."""
    right: Float[np.ndarray, "prompts evidence"]
    """Judging rollouts with full marks."""
    wrong: Float[np.ndarray, "prompts evidence"]
    """The others."""

    def __len__(self) -> int:
        return len(self.estimates)

    def __getitem__(self, prompts: NDArray[np.int64]) -> "Judged":
        return Judged(*(getattr(self, name)[prompts] for name in self.__dataclass_fields__))


def judged(estimates: Float[Tensor, "prompts evidence"], rewards: Float[Tensor, "prompts draws"]) -> Judged:
    """Have each estimate judged by all draws but the one that it was made from; column j by all but draw j.

    Raises:
        ValueError: If fewer than two draws are left to judge.
    """
    r = rewards.numpy()
    others = [np.delete(r, j, axis=1) for j in range(estimates.shape[1])]
    num = r.shape[1] - 1
    if num < 2:
        raise ValueError(f"an estimate is judged by 2 other rollouts of its prompt or more, got {num}")
    return Judged(
        estimates.double().numpy(),
        np.stack([each.mean(axis=1) for each in others], axis=1),
        np.stack([each.var(axis=1, ddof=1) / num for each in others], axis=1),
        np.stack([(each**2).mean(axis=1) for each in others], axis=1),
        np.stack([(each >= FULL_MARKS).sum(axis=1) for each in others], axis=1).astype(float),
        np.stack([(each < FULL_MARKS).sum(axis=1) for each in others], axis=1).astype(float),
    )


def judged_oracle(rewards: Float[Tensor, "prompts draws"]) -> Judged:
    """What the mean of all other rollouts knows: each draw judges the mean of the others.

    Its absolute error and correlations are against single rewards, and not comparable with those of `judged`.
    """
    r = rewards.numpy()
    num = r.shape[1]
    right = (r >= FULL_MARKS).astype(float)
    return Judged(
        (r.sum(axis=1, keepdims=True) - r) / (num - 1),
        r,
        np.repeat(r.var(axis=1, ddof=1, keepdims=True), num, axis=1),
        r**2,
        right,
        1 - right,
    )


def absolute_error(j: Judged) -> float:
    """Mean |e - A|."""
    return float(np.abs(j.estimates - j.means).mean())


def value_error(j: Judged) -> float:
    """Mean squared error to V: mean (e - A)^2 - s^2 / n, which may come out below zero."""
    return float(((j.estimates - j.means) ** 2 - j.noise).mean())


def pearson(j: Judged) -> float:
    """Correlation of e and A over prompts; NaN where one of them is constant."""
    return _mean_over_evidence(_correlation, j)


def spearman(j: Judged) -> float:
    """Correlation of the ranks of e and A over prompts."""
    return _mean_over_evidence(lambda a, b: _correlation(rankdata(a), rankdata(b)), j)


def auroc(j: Judged) -> float:
    """Chance that a judging rollout with full marks has a higher estimate than one without; ties count half."""
    areas = []
    for column in range(j.estimates.shape[1]):
        right, wrong = j.right[:, column], j.wrong[:, column]
        if not right.any() or not wrong.any():
            return math.nan
        marks = np.repeat([1, 0], len(j))
        scores = np.tile(j.estimates[:, column], 2)
        areas.append(roc_auc_score(marks, scores, sample_weight=np.concatenate([right, wrong])))
    return float(np.mean(areas))


def brier_skill(j: Judged) -> float:
    """1 - E (r - e)^2 / E (r - rbar)^2: the share of the judging rewards' variance that the estimate takes off."""
    spent = (j.squares - 2 * j.estimates * j.means + j.estimates**2).mean(axis=0)
    variance = j.squares.mean(axis=0) - j.means.mean(axis=0) ** 2
    return float((1 - spent / variance).mean()) if (variance > _ALIKE).all() else math.nan


def calibration_error(j: Judged) -> float:
    """Mean |mean e - mean A| over ten bins of about equally many prompts, in the order of e."""
    errors = [
        np.mean([abs((e[rows] - a[rows]).mean()) for rows in quantile_bins(e)])
        for e, a in zip(j.estimates.T, j.means.T, strict=True)
    ]
    return float(np.mean(errors))


MEASURES: dict[str, Callable[[Judged], float]] = {
    "mae": absolute_error,
    "value_error": value_error,
    "pearson": pearson,
    "spearman": spearman,
    "auroc": auroc,
    "brier_skill": brier_skill,
    "calibration_error": calibration_error,
}
"""Every measure by name."""

OF_VALUE_ALONE = ("value_error", "auroc", "brier_skill")
"""Measures of `MEASURES` that `judged_oracle` shares with `judged`."""


def calibration_points(j: Judged) -> list[tuple[float, float]]:
    """Mean estimate and mean judging reward of ten bins of about equally many estimates."""
    e, a = j.estimates.ravel(), j.means.ravel()
    return [(float(e[rows].mean()), float(a[rows].mean())) for rows in quantile_bins(e)]


def _mean_over_evidence(measure: Callable[[NDArray[np.float64], NDArray[np.float64]], float], j: Judged) -> float:
    return float(np.mean([measure(e, a) for e, a in zip(j.estimates.T, j.means.T, strict=True)]))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if a.var() < _ALIKE or b.var() < _ALIKE:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
