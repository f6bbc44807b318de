"""A value model beside the policy as a baseline, learning on the same rewards as training goes on.

It reads the prompt alone. The critic of earlier steps gives the values, and only then does it learn from this batch, so
that a baseline is independent of the rollout it is subtracted from.
"""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Any

from torch import Tensor, nn

from poise.baselines import Recipe, Step, step_of
from poise.batch import Batch
from poise.lab.critic import SequenceCritic


@dataclass(frozen=True)
class CriticRecipe(Recipe):
    """A copy of the policy that learns values."""

    policy: InitVar[nn.Module]
    """Is copied, once, when the recipe is made."""
    seed: int = 0
    """Of the order in which it learns."""
    learning_rate: float = 3e-4
    """Of the copy; its head learns faster (see `SequenceCritic`)."""
    batch_size: int = 32
    """Rows a critic update."""

    def __post_init__(self, policy: nn.Module) -> None:
        object.__setattr__(self, "method", CriticBaseline(self, policy))

    def build(self) -> "CriticBaseline":
        """The one method of this recipe's copy."""
        method: CriticBaseline = self.__dict__["method"]
        return method


class CriticBaseline:
    """The method of a `CriticRecipe`; `look` comes before each `step`.

    Attributes:
        extra_bytes: Parameters, gradients and optimizer state of the critic, after the first step.
    """

    def __init__(self, recipe: CriticRecipe, policy: nn.Module) -> None:
        self.extra_bytes = 0
        self._recipe = recipe
        self._critic = SequenceCritic(policy)
        self._sequences: list[list[int]] = []
        self._steps = 0

    def look(self, trainer: Any, scored: dict[str, Any], keys: Sequence[int]) -> None:
        """See the prompts of the batch that the next `step` is about."""
        rows = zip(scored["prompt_ids"], scored["prompt_mask"].bool(), strict=True)
        self._sequences = [row[kept].tolist() for row, kept in rows]

    def step(self, batch: Batch) -> Step:
        """Baselines of this batch; then learn from it. Rewards lie in [0, 1].

        Raises:
            ValueError: If `look` did not show as many rollouts as there are rewards.
        """
        rewards = batch.rewards
        if len(self._sequences) != len(rewards):
            raise ValueError(f"the critic has read {len(self._sequences)} rollouts, and {len(rewards)} have rewards")
        # Rollouts of one prompt are one sequence.
        first = {group: row for row, group in reversed(list(enumerate(batch.groups.tolist())))}
        values = self._critic.values([self._sequences[first[group]] for group in range(len(first))])[batch.groups]
        self._learn(rewards, batch.gradable.nonzero()[:, 0].tolist())
        return step_of(batch, values, values)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a comparison begins anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def _learn(self, rewards: Tensor, rows: list[int]) -> None:
        self._steps += 1
        if not rows:
            return
        done = self._critic.fit(
            [self._sequences[row] for row in rows],
            rewards[rows].clamp(0, 1),
            learning_rate=self._recipe.learning_rate,
            batch_size=self._recipe.batch_size,
            seed=self._recipe.seed + self._steps,
        )
        self.extra_bytes = done.extra_bytes
