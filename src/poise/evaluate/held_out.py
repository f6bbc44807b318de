"""The share of problems that is answered right, of all and of each domain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
