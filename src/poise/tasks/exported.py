"""Problems as rows of verl's data sets."""

from collections.abc import Iterable, Iterator
from typing import Any

from poise.tasks.problem import Problem


def verl_rows(problems: Iterable[Problem]) -> Iterator[dict[str, Any]]:
    """One row a problem, with the columns that verl and poise's reward function on verl read.

    Args:
        problems: Each becomes a row: `prompt` as messages, `data_source` as the source names it or else the domain,
            `reward_model.ground_truth`, and in `extra_info` the verifier with what it needs.
    """
    for index, problem in enumerate(problems):
        yield {
            "data_source": str(problem.columns.get("data_source") or problem.domain),
            "prompt": problem.asked(as_chat=True),
            "domain": problem.domain,
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "verifier": problem.verifier, "details": problem.details},
        }
