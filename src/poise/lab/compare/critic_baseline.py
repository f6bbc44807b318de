"""A value model beside the policy as a baseline, learning on the same rewards as training goes on.

It reads the prompt alone. The critic of earlier steps gives the values, and only then does it learn from this batch, so
that a baseline is independent of the rollout it is subtracted from.

Dimensions: N rollouts, P columns of prompts.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

import poise
from poise.baselines import prompt_groups
from poise.diagnostics.pairs import PairScoreboard
from poise.lab.critic import SequenceCritic


class CriticBaseline(poise.OnlineBaseline):
    """Stands in the place of the engine's baseline; `read` comes before each `step`.

    Args:
        policy: Is copied.
        seed: Of the order in which it learns.
        learning_rate: Of the copy; its head learns faster (see `SequenceCritic`).
        batch_size: Rows a critic update.

    Attributes:
        extra_bytes: Parameters, gradients and optimizer state of the critic, after the first step.
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        seed: int = 0,
        learning_rate: float = 3e-4,
        batch_size: int = 32,
    ) -> None:
        super().__init__(poise.preset("none"))  # one that needs nothing of the engine
        self.extra_bytes = 0
        self._critic = SequenceCritic(policy)
        self._seed = seed
        self._learning_rate, self._batch_size = learning_rate, batch_size
        self._scoreboard = PairScoreboard()
        self._sequences: list[list[int]] = []
        self._steps = 0

    def read(self, prompt_ids: Int[Tensor, "N P"], prompt_mask: Int[Tensor, "N P"]) -> None:
        """Show the prompts of the batch that the next `step` is about."""
        self._sequences = [row[kept].tolist() for row, kept in zip(prompt_ids, prompt_mask.bool(), strict=True)]

    def step(
        self,
        features: poise.Features | None,
        rewards: Tensor | Sequence[float],
        *,
        prompts: Sequence[Hashable] | Tensor | NDArray[Any],
        domains: Sequence[str] | None = None,
        weights: Tensor | Sequence[float] | None = None,
    ) -> poise.Step:
        """Baselines of this batch; then learn from it. Of the arguments rewards (in [0, 1], or NaN) and prompts count.

        Raises:
            ValueError: If `read` did not show as many rollouts as there are rewards.
        """
        if len(self._sequences) != len(rewards):
            raise ValueError(f"the critic has read {len(self._sequences)} rollouts, and {len(rewards)} have rewards")
        rewards = torch.as_tensor(rewards, dtype=torch.float64).cpu()
        gradable = ~rewards.isnan()
        known = torch.where(gradable, rewards, 0)
        groups = prompt_groups(list(prompts))
        # Rollouts of one prompt are one sequence.
        first = {group: row for row, group in reversed(list(enumerate(groups.tolist())))}
        values = self._critic.values([self._sequences[first[group]] for group in range(len(first))])[groups]
        self._learn(known, gradable.nonzero()[:, 0].tolist())
        self._scoreboard.observe(known, values, groups, gradable)
        metrics = {f"poise/{name}": number for name, number in self._scoreboard.metrics().items()}
        return poise.Step(values, torch.where(gradable, known - values, 0), values, metrics, {})

    def _learn(self, rewards: Tensor, rows: list[int]) -> None:
        self._steps += 1
        if not rows:
            return
        done = self._critic.fit(
            [self._sequences[row] for row in rows],
            rewards[rows].clamp(0, 1),
            learning_rate=self._learning_rate,
            batch_size=self._batch_size,
            seed=self._seed + self._steps,
        )
        self.extra_bytes = done.extra_bytes
