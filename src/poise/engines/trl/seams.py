"""TRL's seams under public names, for trainers that count, choose or replace what passes through them."""

from typing import Any

from torch import Tensor
from trl import GRPOTrainer


class OpenTrainer(GRPOTrainer):  # type: ignore[misc]
    """A `trl.GRPOTrainer`, alone or before another, whose sampling, grading and scoring may be overridden.

    Overrides call `super()` for TRL's own.
    """

    def sampled(self, prompts: list[Any]) -> Any:
        """TRL's completions: a tuple with prompts' ids first, then completions' ids, and completions fourth."""
        return super()._generate(prompts)

    def graded(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        """TRL's rewards of all processes, one row a rollout and one column a reward function."""
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        return rewards

    def scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's generation batch, with its advantages."""
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return batch

    def _generate(self, prompts: list[Any]) -> Any:
        return self.sampled(prompts)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        return self.graded(inputs, prompts, completions, completion_ids_list)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self.scored(inputs)
