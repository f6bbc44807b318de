"""1 for a right answer to a math problem and 0 for a wrong one, as verl tells them apart.

verl's own function for DAPO-Math gives 1 and -1, and knows its data by name; probabilities and clipped baselines of the
published method need 0 and 1, and evaluation sets have names of their own. For `reward.custom_reward_function`.
"""

from typing import Any

from verl.utils.reward_score import math_dapo


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **named: Any
) -> float:
    """The reward of a solution that ends in "Answer: ..." or has a boxed answer."""
    return float(math_dapo.compute_score(solution_str, ground_truth)["acc"])
