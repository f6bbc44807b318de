"""Scores of graded completions: avg@k and pass@k with intervals, lengths, what was cut off.

Prompts weigh the same. Completions that could not be graded are neither right nor wrong; they are left out
and counted, and a prompt with fewer than k graded completions has no pass@k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poise.evaluate.pass_at_k import pass_at_k, sizes_of_subsets
from poise.evaluate.statistics import score_interval
from poise.evaluate.tables import NONE, with_interval
from poise.evaluate.tables import markdown_table as table_in_markdown
from poise.tasks.verifiers import FULL_MARKS


@dataclass(frozen=True)
class GradedCompletion:
    """One completion of an evaluation."""

    problem: int
    """Index of its problem."""
    draw: int
    """Which of the problem's completions it is, from 0."""
    domain: str
    prompt: str
    completion: str
    num_tokens: int
    truncated: bool
    """Cut off at the largest length."""
    reward: float | None
    """None where it could not be graded."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts."""

    mean: float
    interval: tuple[float, float]
    """95 %, over prompts."""
    num_prompts: int


@dataclass(frozen=True)
class Scores:
    """Of all problems, or of those of one domain."""

    pass_at: dict[int, Estimate]
    """By k; pass@1 is avg@n, the share of right completions."""
    mean_reward: float | None
    num_prompts: int
    num_completions: int
    ungradable_share: float
    truncated_share: float
    mean_length: float
    """Tokens."""

    def as_json(self, *, k: int) -> dict[str, Any]:
        """In plain values."""
        shown: dict[str, Any] = {
            "prompts": self.num_prompts,
            "completions": self.num_completions,
            f"avg@{k}": _estimate(self.pass_at.get(1)),
        }
        shown |= {f"pass@{size}": _estimate(each) for size, each in self.pass_at.items()}
        return shown | {
            "mean_reward": self.mean_reward,
            "ungradable_share": self.ungradable_share,
            "truncated_share": self.truncated_share,
            "mean_length": self.mean_length,
        }


def _estimate(each: Estimate | None) -> dict[str, Any] | None:
    if each is None:
        return None
    return {"mean": each.mean, "interval_95": list(each.interval), "prompts": each.num_prompts}


def scores(completions: Sequence[GradedCompletion], *, k: int) -> Scores:
    """The scores of some completions.

    Args:
        completions: Of one domain or of all, up to k a problem.
        k: Completions drawn for each problem.

    Raises:
        ValueError: If there are none.
    """
    if not completions:
        raise ValueError("scores need at least 1 completion, got none")
    graded: dict[int, list[float]] = {each.problem: [] for each in completions}
    for each in completions:
        if each.reward is not None:
            graded[each.problem].append(each.reward)
    counts = [(sum(reward >= FULL_MARKS for reward in rewards), len(rewards)) for rewards in graded.values()]
    pass_at = {}
    for size in sizes_of_subsets(k):
        each_prompt = [pass_at_k(right, drawn, k=size) for right, drawn in counts if drawn >= size]
        if each_prompt:
            mean = sum(each_prompt) / len(each_prompt)
            interval = score_interval(each_prompt, completions=k // size)
            pass_at[size] = Estimate(mean, interval, len(each_prompt))
    means = [sum(rewards) / len(rewards) for rewards in graded.values() if rewards]
    total = len(completions)
    return Scores(
        pass_at=pass_at,
        mean_reward=sum(means) / len(means) if means else None,
        num_prompts=len(graded),
        num_completions=total,
        ungradable_share=sum(each.reward is None for each in completions) / total,
        truncated_share=sum(each.truncated for each in completions) / total,
        mean_length=sum(each.num_tokens for each in completions) / total,
    )


def scores_by_domain(completions: Sequence[GradedCompletion], *, k: int) -> dict[str, Scores]:
    """The scores of each domain, by its name."""
    by_domain: dict[str, list[GradedCompletion]] = {}
    for each in completions:
        by_domain.setdefault(each.domain, []).append(each)
    return {domain: scores(each, k=k) for domain, each in sorted(by_domain.items())}


def markdown_table(everything: Scores, by_domain: dict[str, Scores], *, k: int) -> str:
    """A row for each domain and one for all, with 95 % intervals."""
    sizes = [size for size in sizes_of_subsets(k) if size > 1]
    heads = ["domain", "prompts", f"avg@{k}", *(f"pass@{size}" for size in sizes), "truncated", "mean length"]
    own_rewards = any(
        each.mean_reward is not None and abs(each.mean_reward - each.pass_at[1].mean) > 1e-9
        for each in by_domain.values()
    )
    heads += ["mean reward"] * own_rewards
    rows = []
    for name, each in (by_domain | {"all": everything} if len(by_domain) > 1 else by_domain).items():
        ungraded = f" ({each.ungradable_share:.1%} of completions ungradable)" if each.ungradable_share else ""
        cells = [_cell(each.pass_at.get(size)) for size in (1, *sizes)]
        cells += [f"{each.truncated_share:.3f}", f"{each.mean_length:.1f}"]
        cells += [NONE if each.mean_reward is None else f"{each.mean_reward:.3f}"] * own_rewards
        rows.append([name + ungraded, str(each.num_prompts), *cells])
    return table_in_markdown(heads, rows)


def _cell(estimate: Estimate | None) -> str:
    return NONE if estimate is None else with_interval(estimate.mean, estimate.interval)
