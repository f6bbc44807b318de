"""Which learning rate does an arm get, and which ones have still to be tried?

The rule: every arm chooses from the same grid by the same score, and a best rate at the edge of what was tried is no
best rate yet. Runs that diverged count as the worst.
"""

import math
from collections.abc import Mapping, Sequence

MOST_WIDENINGS = 3
"""Rates tried beyond each end of the grid."""


def best_learning_rate(scores: Mapping[float, float]) -> float:
    """The rate with the highest score, of equal ones the lower; NaN is the worst.

    Raises:
        ValueError: If nothing was tried.
    """
    if not scores:
        raise ValueError("a learning rate is chosen from 1 or more, got none")
    return max(sorted(scores), key=lambda rate: -math.inf if math.isnan(scores[rate]) else scores[rate])


def next_learning_rate(scores: Mapping[float, float], grid: Sequence[float]) -> float | None:
    """One more rate to try: of the grid, else beyond the edge at which the best one lies; None where it lies inside.

    Args:
        scores: Of the rates that were tried.
        grid: Rising; its outermost ratios are kept beyond it.
    """
    untried = [rate for rate in grid if not any(math.isclose(rate, tried) for tried in scores)]
    if untried:
        return untried[0]
    if len(grid) < 2:
        return None
    best, tried = best_learning_rate(scores), sorted(scores)
    beyond = len([rate for rate in tried if rate > grid[-1] or rate < grid[0]])
    above = len([rate for rate in tried if rate > grid[-1]])
    if best == tried[-1] and above < MOST_WIDENINGS:
        return rounded(best * grid[-1] / grid[-2])
    if best == tried[0] and beyond - above < MOST_WIDENINGS:
        return rounded(best * grid[0] / grid[1])
    return None


def rounded(rate: float) -> float:
    """To one digit that can be read: 3.333e-05 becomes 3e-05."""
    return float(f"{rate:.0e}")
