"""Rollouts whose expected rewards are known: made-up hidden states over a low-rank latent difficulty.

A prompt has a few latent traits; a nonlinear function of them, pushed through the quantiles of a chosen distribution,
is its expected reward V(x). Hidden states hold the traits in a few random directions, a large common mean, a spectrum
of nuisance directions that decays like a power law, two outlier dimensions, and, in completions, a trace of whether
this very rollout succeeded. Entropies fall with V, noisily.
"""

from dataclasses import dataclass

import torch
from scipy.stats import beta, norm
from torch import Tensor

from poise import Features

TRAITS = 6
SHAPES = {"u-shaped": (0.35, 0.45), "flat": (1.0, 1.0), "hard": (1.2, 2.2), "one rate": None}
"""Distributions of V over prompts: parameters of a Beta; "one rate" gives every prompt the same V, .15."""


@dataclass(frozen=True)
class Rollouts:
    """One step: `values` is the true V(x) of each rollout's prompt."""

    features: Features
    rewards: Tensor
    values: Tensor
    prompts: list[str]
    domains: list[str]


class World:
    """Fixed directions in which hidden states of a given width hold what matters."""

    def __init__(self, *, width: int, shape: str, seed: int, predictable: bool = True) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.width, self.shape, self.predictable = width, shape, predictable
        self.mean = self._normal(width) * 1.5
        self.mean[:2] *= 30  # outlier dimensions, as in real models
        self.prompt_directions = self._normal(TRAITS, width)
        self.completion_directions = self._normal(TRAITS + 1, width)
        rank = min(width, 200)
        self.nuisance = self._normal(rank, width) * (torch.arange(1, rank + 1) ** -0.7)[:, None] * 1.5
        self.served = 0

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def rollouts(self, num_prompts: int, *, group_size: int = 2, domain: str = "") -> Rollouts:
        """Draw new prompts and `group_size` rollouts of each."""
        traits = self._normal(num_prompts, TRAITS)
        difficulty = traits[:, 0] + 0.7 * traits[:, 1] + 0.5 * traits[:, 0] * traits[:, 2] + 0.3 * traits[:, 3] ** 2
        spread = 1.425  # the standard deviation of the line above
        quantile = norm.cdf(((difficulty - 0.3) / spread).numpy())
        parameters = SHAPES[self.shape]
        if parameters is None:
            value = torch.full((num_prompts,), 0.15, dtype=torch.float64)
        else:
            value = torch.from_numpy(beta.ppf(quantile, *parameters)).to(torch.float64)
        if not self.predictable:
            traits = self._normal(num_prompts, TRAITS)
            difficulty = self._normal(num_prompts)
        row = torch.arange(num_prompts).repeat_interleave(group_size)
        rows = len(row)
        rewards = (torch.rand(rows, generator=self.generator, dtype=torch.float64) < value[row]).to(torch.float64)
        surprise = (rewards - value[row]).to(torch.float32) if self.predictable else self._normal(rows)
        noisy = torch.cat([traits[row] + 0.3 * self._normal(rows, TRAITS), surprise[:, None]], dim=1)
        prompt = self.mean + (traits + 0.6 * self._normal(num_prompts, TRAITS)) @ self.prompt_directions
        prompt = (prompt + self._nuisance(num_prompts))[row]
        completion = self.mean.roll(7) + noisy @ self.completion_directions + self._nuisance(rows)
        entropy = torch.nn.functional.softplus(-0.7 * difficulty[row][:, None] - 1 + 0.5 * self._normal(rows, 3))
        names = [f"{domain}/{self.served + k}" for k in row.tolist()]
        self.served += num_prompts
        missing = torch.zeros(rows, 4, dtype=torch.bool)
        return Rollouts(
            Features(prompt, completion, entropy, missing), rewards, value[row], names, [domain or "all"] * rows
        )

    def _nuisance(self, rows: int) -> Tensor:
        return self._normal(rows, len(self.nuisance)) @ self.nuisance


def together(parts: list[Rollouts]) -> Rollouts:
    """One step made of several worlds' rollouts."""
    names = ("prompt", "completion", "entropies", "missing")
    prompt, completion, entropies, missing = (
        torch.cat([getattr(part.features, name) for part in parts]) for name in names
    )
    return Rollouts(
        Features(prompt, completion, entropies, missing),
        torch.cat([part.rewards for part in parts]),
        torch.cat([part.values for part in parts]),
        [prompt for part in parts for prompt in part.prompts],
        [domain for part in parts for domain in part.domains],
    )
