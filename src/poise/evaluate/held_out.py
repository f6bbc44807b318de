"""Which share of problems is answered right, of all and of each domain?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Gradable(Protocol):
    """A problem with a prompt, the text of its answer, and the name of its domain."""

    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def domain(self) -> str: ...


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Shares of problems answered right, from 0 to 1."""

    accuracy: float
    by_domain: dict[str, float]
    num_prompts: int

    @property
    def standard_error(self) -> float:
        """Of `accuracy`, as of independent tosses: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_prompts)


def accuracy_of_rewards(rewards: Sequence[float], *, domains: Sequence[str]) -> HeldOutAccuracy:
    """Means of rewards, of all and of each domain; what could not be graded (NaN) is left out.

    With rewards of 0 and 1 they are the shares of problems answered right. NaN where nothing could be graded.

    Args:
        rewards: One a problem.
        domains: Its problem's.
    """
    gradable = [(domain, reward) for domain, reward in zip(domains, rewards, strict=True) if not math.isnan(reward)]
    of_domain: dict[str, list[float]] = {domain: [] for domain in sorted(set(domains))}
    for domain, reward in gradable:
        of_domain[domain].append(reward)
    return HeldOutAccuracy(
        accuracy=_mean([reward for _, reward in gradable]),
        by_domain={domain: _mean(each) for domain, each in of_domain.items()},
        num_prompts=len(gradable),
    )


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan


def held_out_accuracy(
    problems: Sequence[Gradable],
    complete: Callable[[list[str]], Sequence[str]],
    *,
    is_correct: Callable[[str, str], bool],
) -> HeldOutAccuracy:
    """Complete every problem's prompt once and count the right answers.

    Args:
        problems: What to solve.
        complete: From prompts to one completion each, in their order.
        is_correct: Whether a completion (first) gives an answer (second).

    Raises:
        ValueError: If there are no problems, or not one completion for each.
    """
    if not problems:
        raise ValueError("accuracy needs at least 1 problem, got none")
    completions = complete([problem.prompt for problem in problems])
    if len(completions) != len(problems):
        raise ValueError(f"{len(problems)} problems need one completion each, got {len(completions)}")
    right: dict[str, list[bool]] = {}
    for problem, completion in zip(problems, completions, strict=True):
        right.setdefault(problem.domain, []).append(is_correct(completion, problem.answer))
    return HeldOutAccuracy(
        accuracy=sum(map(sum, right.values())) / len(problems),
        by_domain={domain: sum(each) / len(each) for domain, each in sorted(right.items())},
        num_prompts=len(problems),
    )
