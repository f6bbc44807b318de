"""Advantages for training loops that have rewards and sampled log-probabilities, and no hidden states at hand."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from poise.features.rollout_features import (
    MEAN_ENTROPIES,
    SEGMENTS,
    Features,
    entropy_statistic,
    score_norm_weights,
)
from poise.online import OnlineBaseline
from poise.probe.evidence import HIDDEN_BLOCKS

Tokens = Sequence[float] | Tensor | NDArray[Any]
"""One number for each token of a completion that the policy sampled."""

_SHARPEST = 1e3  # nats: the sum of squared probabilities at the lower end of its range, where entropies are not known


def advantages(
    rewards: Tensor | Sequence[float],
    prompts: Sequence[Hashable] | Tensor | NDArray[Any],
    *,
    baseline: OnlineBaseline,
    logprobs: Sequence[Tokens] | None = None,
    entropies: Sequence[Tokens] | None = None,
    domains: Sequence[str] | None = None,
) -> Float[Tensor, " rollouts"]:
    """The advantages of one step's N rollouts, for loops without hidden states; then `baseline` learns from the step.

        A_i = r_i - b_i,   b_i from the siblings' rewards and mean entropies, the prompt's earlier rewards and domain,
                           and what all that says of other prompts; from nothing of rollout i

    so that sum_i A_i grad log pi(y_i) is unbiased. Call it once a step, on the whole batch, before anything is dropped
    or divided by a standard deviation; each entry of a completion's tokens gets its rollout's advantage.

    Args:
        rewards: (N,), one a rollout; NaN where it could not be graded.
        prompts: N hashables; equal ones are siblings, any number of them, wherever they stand. Name a prompt in the
            same way in every step (its text, its row's id): its earlier rewards are found by that name.
        baseline: What is kept from step to step, `poise.OnlineBaseline(poise.preset("poise-light"))` or that of another
            preset that reads no hidden states; `save` and `restore` it with the policy.
        logprobs: For each rollout the log-probabilities, in nats, of the tokens that the policy sampled, at the
            sampling temperature; tokens of tools or of an environment left out. They tell how long a rollout's score
            is, and, where there are no `entropies`, how sure the policy was.
        entropies: Token entropies of the same tokens, in nats.
        domains: N names of what kind of task a prompt is.

    Returns:
        (N,) in float64, in the units of the rewards, on the CPU; 0 where the reward is NaN.

    Raises:
        ValueError: If lengths differ, a number is not finite that must be, or the preset reads hidden states.
    """
    recipe = baseline.preset.recipe
    if recipe.needs_features and not HIDDEN_BLOCKS.isdisjoint(getattr(recipe, "evidence", HIDDEN_BLOCKS)):
        raise ValueError(
            f"preset {baseline.preset.name!r} reads hidden states, and this loop has none: take 'poise-light', "
            "or OnlineBaseline.step with features"
        )
    rows = len(rewards)
    logprob, of_logprobs = _padded(logprobs, rows, "logprobs")
    entropy, of_entropies = _padded(entropies, rows, "entropies")
    if logprobs is not None and entropies is not None and not torch.equal(of_logprobs, of_entropies):
        raise ValueError("logprobs and entropies must be of the same tokens, and their numbers of tokens differ")
    surprise, mask = (-logprob, of_logprobs) if entropies is None else (entropy, of_entropies)
    weights = None
    if logprobs is not None:
        spread = torch.full_like(logprob, _SHARPEST) if entropies is None else entropy
        weights = score_norm_weights(logprob, spread, mask)
    mean = entropy_statistic(surprise, mask, "mean")
    features = Features(
        prompt=torch.zeros(rows, 0),
        completion=torch.zeros(rows, 0),
        entropies=torch.stack([mean, *[torch.zeros(rows)] * (len(MEAN_ENTROPIES) - 1)], dim=1),
        missing=~mask.any(dim=1)[:, None].repeat(1, len(SEGMENTS)),
    )
    return baseline.step(features, rewards, prompts=prompts, domains=domains, weights=weights).advantages


def _padded(
    each: Sequence[Tokens] | None, rows: int, name: str
) -> tuple[Float[Tensor, "rollouts tokens"], Bool[Tensor, "rollouts tokens"]]:
    """Numbers of tokens as a rectangle, 0 where there is no token, and where there is one."""
    if each is None or rows == 0:
        return torch.zeros(rows, 0), torch.zeros(rows, 0, dtype=torch.bool)
    if len(each) != rows:
        raise ValueError(f"{name} must have one row for each of the {rows} rewards, got {len(each)}")
    tokens = [torch.as_tensor(row, dtype=torch.float32).detach().cpu().reshape(-1) for row in each]
    numbers = pad_sequence(tokens, batch_first=True)
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"{name} must be finite, got one that is not")
    lengths = torch.tensor([len(row) for row in tokens])
    return numbers, torch.arange(numbers.shape[1]) < lengths[:, None]
