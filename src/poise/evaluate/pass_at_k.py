"""The chance that one of k completions is right, estimated from n of them.

Every choice of k out of the n completions counts the same, so that the estimate is unbiased for whatever n;
whole numbers are divided only once, so that nothing is lost to cancellation.
"""

from math import comb


def pass_at_k(num_right: int, num_completions: int, *, k: int) -> float:
    """The share of the subsets of k completions that hold a right one (Chen et al. 2021, arXiv:2107.03374, eq. 1).

        1 - C(n - c, k) / C(n, k)

    With k = 1 this is c / n.

    Args:
        num_right: c.
        num_completions: n.
        k: Size of the subsets.

    Raises:
        ValueError: If k is not from 1 to n, or c not from 0 to n.
    """
    if not 1 <= k <= num_completions:
        raise ValueError(f"pass@k needs k from 1 to the {num_completions} completions, got {k}")
    if not 0 <= num_right <= num_completions:
        raise ValueError(f"pass@k needs from 0 to {num_completions} right completions, got {num_right}")
    subsets = comb(num_completions, k)
    return (subsets - comb(num_completions - num_right, k)) / subsets


def sizes_of_subsets(num_completions: int) -> list[int]:
    """1, 2, 4 and so on, and the number of completions itself."""
    powers = [1 << bit for bit in range(num_completions.bit_length())]
    return [*(k for k in powers if k < num_completions), num_completions]
