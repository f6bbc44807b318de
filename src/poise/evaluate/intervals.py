"""How far may a mean over prompts be from the truth?

The rule: prompts are the independent draws, not completions; and a share of 0 or 1 has an interval too.
"""

from collections.abc import Sequence

NORMAL_95 = 1.959964
"""Standard errors on each side of a 95 % interval."""


def wilson_interval(share: float, tosses: int | float) -> tuple[float, float]:
    """The 95 % score interval of a share in [0, 1] (Wilson 1927, JASA 22).

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    For means of anything else in [0, 1] it is too wide rather than too narrow: no variance exceeds p (1 - p).

    Raises:
        ValueError: If there are no tosses, or the share is not one.
    """
    if tosses <= 0:
        raise ValueError(f"an interval needs more than 0 tosses, got {tosses:g}")
    if not 0 <= share <= 1:
        raise ValueError(f"an interval needs a share from 0 to 1, got {share:g}")
    z2 = NORMAL_95**2
    middle = share + z2 / (2 * tosses)
    reach = NORMAL_95 * (share * (1 - share) / tosses + z2 / (4 * tosses**2)) ** 0.5
    scale = 1 + z2 / tosses
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def mean_interval(scores: Sequence[float], *, completions: int = 1) -> tuple[float, float]:
    """The 95 % interval of the mean of one score in [0, 1] a prompt.

    Wilson's, with as many tosses as would have the variance that the scores show:

        n_eff = p (1 - p) / (s^2 / n),   n <= n_eff <= n * completions

    With scores of 0 and 1 this is Wilson's interval for n prompts.

    Args:
        scores: One a prompt.
        completions: That a score is made of: prompts that are all alike are no better known than that many tosses.

    Raises:
        ValueError: If there are no scores.
    """
    n = len(scores)
    if not n:
        raise ValueError("an interval needs at least 1 prompt, got none")
    mean = min(1.0, max(0.0, sum(scores) / n))
    squares = sum((score - mean) ** 2 for score in scores)
    most = float(n * max(1, completions))
    alike = mean * (1 - mean) == 0
    tosses = n if alike or n == 1 else most if squares == 0 else mean * (1 - mean) * n * (n - 1) / squares
    return wilson_interval(mean, min(most, max(float(n), tosses)))
