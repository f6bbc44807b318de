"""verl's reward function for mathematics, with the verifier of the TRL engine: 1 for a right answer, 0 for a wrong one.

verl's own function for DAPO-Math gives 1 and -1, and knows its data by name; probabilities and clipped baselines of the
published method need 0 and 1, and evaluation sets have names of their own. For `reward.custom_reward_function`.
"""

from typing import Any

from poise.tasks.embedded import END_OF_THINKING
from poise.tasks.problem import Problem
from poise.tasks.verifiers import verdict, with_usual_marks


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Any = None,
    *,
    end_of_thinking: str | None = END_OF_THINKING,
    **named: Any,
) -> float:
    """The reward of a solution; NaN, which poise counts as ungradable, where the gold answer cannot be read.

    A policy's own `end_of_thinking` is given as `reward.custom_reward_function.reward_kwargs`.
    """
    solution_str = with_usual_marks(solution_str, end_of_thinking)
    return verdict(solution_str, Problem("", str(ground_truth), data_source, verifier="math")).reward
