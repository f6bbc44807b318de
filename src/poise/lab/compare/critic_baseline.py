"""What would a value model beside the policy give as a baseline, learning on the same rewards as training goes on?

Order of a step: the critic of earlier steps gives the values; only then does it learn from this batch. Read from the
prompt, a value is the baseline of every rollout of that prompt; read from rollouts, siblings swap values, and a value
is fitted to the siblings' mean reward. Either way a baseline is independent of the rollout it is subtracted from.

Dimensions: N rollouts, P columns of prompts, C of completions.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

import poise
from poise.baselines import cross_rollout_baselines, prompt_groups, sibling_means
from poise.diagnostics.pairs import PairScoreboard
from poise.lab.critic import SequenceCritic


class CriticBaseline(poise.OnlineBaseline):
    """Stands in the place of the engine's baseline; `read` comes before each `step`.

    Args:
        policy: Is copied.
        reads: The "prompt", or the "rollout" with the prompt before it.
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
        reads: Literal["prompt", "rollout"] = "prompt",
        seed: int = 0,
        learning_rate: float = 3e-4,
        batch_size: int = 32,
    ) -> None:
        super().__init__(poise.preset("none"))  # one that needs nothing of the engine
        self.extra_bytes = 0
        self._critic = SequenceCritic(policy)
        self._reads, self._seed = reads, seed
        self._learning_rate, self._batch_size = learning_rate, batch_size
        self._scoreboard = PairScoreboard()
        self._sequences: list[list[int]] = []
        self._steps = 0

    def read(
        self,
        prompt_ids: Int[Tensor, "N P"],
        prompt_mask: Int[Tensor, "N P"],
        completion_ids: Int[Tensor, "N C"],
        completion_mask: Int[Tensor, "N C"],
    ) -> None:
        """Show the tokens of the batch that the next `step` is about."""
        ids, mask = prompt_ids, prompt_mask
        if self._reads == "rollout":
            ids, mask = torch.cat([ids, completion_ids], dim=1), torch.cat([mask, completion_mask], dim=1)
        self._sequences = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]

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
        values = self._values(groups)
        if self._reads == "rollout":
            baselines = cross_rollout_baselines(values, groups, gradable)
            siblings, counts = sibling_means(known[:, None], groups, gradable)
            targets, fitted = siblings[:, 0], counts > 0
        else:
            baselines, targets, fitted = values, known, gradable
        self._learn(targets, fitted, groups)
        self._scoreboard.observe(known, baselines, groups, gradable)
        metrics = {f"poise/{name}": number for name, number in self._scoreboard.metrics().items()}
        advantages = torch.where(gradable, known - baselines, 0)
        return poise.Step(baselines, advantages, values, metrics, {})

    def _values(self, groups: Int[Tensor, " N"]) -> Tensor:
        if self._reads == "rollout":
            return self._critic.values(self._sequences)
        # Rollouts of one prompt are one sequence.
        first = {group: row for row, group in reversed(list(enumerate(groups.tolist())))}
        rows = [first[group] for group in range(len(first))]
        return self._critic.values([self._sequences[row] for row in rows])[groups]

    def _learn(self, targets: Tensor, fitted: Tensor, groups: Int[Tensor, " N"]) -> None:
        rows = fitted.nonzero()[:, 0].tolist()
        self._steps += 1
        if not rows:
            return
        done = self._critic.fit(
            [self._sequences[row] for row in rows],
            targets[rows].clamp(0, 1),
            learning_rate=self._learning_rate,
            batch_size=self._batch_size,
            seed=self._seed + self._steps,
        )
        self.extra_bytes = done.extra_bytes
