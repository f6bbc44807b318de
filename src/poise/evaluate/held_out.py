"""Held-out problems: the share that is answered right, of all and of each domain, and what the answers earn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Shares of problems answered right, from 0 to 1."""

    accuracy: float
    by_domain: dict[str, float]
    num_prompts: int
    reward: float = math.nan
    """Mean of what training rewards, where that is not whether answers are right; NaN elsewhere."""
    reward_error: float = math.nan
    """Standard error of `reward`, from the spread of the rewards."""

    @property
    def standard_error(self) -> float:
        """Of `accuracy`, as of independent tosses: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_prompts)

    def metrics(self) -> dict[str, float | int]:
        """Under the names of `metrics.jsonl`; what is not known is left out."""
        found: dict[str, float | int] = {"held_out/accuracy": self.accuracy, "held_out/prompts": self.num_prompts}
        found |= {f"held_out/accuracy/{domain}": share for domain, share in self.by_domain.items()}
        found |= {"held_out/reward": self.reward, "held_out/reward_error": self.reward_error}
        return {name: number for name, number in found.items() if not math.isnan(number)}


def with_rewards(measured: HeldOutAccuracy, rewards: Sequence[float]) -> HeldOutAccuracy:
    """The same with the mean of rewards and its standard error; NaN rewards are left out."""
    known = [reward for reward in rewards if not math.isnan(reward)]
    if not known:
        return measured
    mean = _mean(known)
    spread = sum((reward - mean) ** 2 for reward in known) / max(1, len(known) - 1)
    return replace(measured, reward=mean, reward_error=math.sqrt(spread / len(known)))


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
