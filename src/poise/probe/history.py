"""The rewards that each prompt earned in earlier steps.

A tracker per prompt, as in single-stream policy optimisation (arXiv:2509.13232): a forgetting mean of its rewards.
It holds steps before the current one only, so it is evidence for every rollout of the prompt.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


class PromptHistory:
    """Forgetting reward sums and counts of the prompts seen last, at most `capacity` of them."""

    def __init__(self, *, forgetting: float, capacity: int) -> None:
        self.forgetting = forgetting
        self.capacity = capacity
        self._past: dict[int, tuple[float, float]] = {}  # key -> (reward sum, count), the longest unseen first

    def recall(self, keys: Sequence[int]) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Mean reward and (forgetting) number of earlier rollouts of every row's prompt; 0 and 0 for a new one."""
        past = [self._past.get(key, (0.0, 0.0)) for key in keys]
        sums, counts = torch.tensor(past, dtype=torch.float64).reshape(-1, 2).unbind(dim=1)
        return sums / torch.where(counts > 0, counts, 1.0), counts

    def observe(self, keys: Sequence[int], rewards: Sequence[float]) -> None:
        """Add one step's gradable rollouts; what these prompts earned before fades by `forgetting`."""
        earned: dict[int, list[float]] = {}
        for key, reward in zip(keys, rewards, strict=True):
            earned.setdefault(key, []).append(reward)
        for key, new in earned.items():
            total, count = self._past.pop(key, (0.0, 0.0))
            self._past[key] = (self.forgetting * total + sum(new), self.forgetting * count + len(new))
        while len(self._past) > self.capacity:
            self._past.pop(next(iter(self._past)))

    def state_dict(self) -> dict[str, Int[Tensor, " prompts"] | Float[Tensor, "prompts 2"]]:
        """Keys and (sum, count) pairs, the longest unseen first."""
        return {
            "keys": torch.tensor(list(self._past), dtype=torch.int64),
            "past": torch.tensor(list(self._past.values()), dtype=torch.float64).reshape(-1, 2),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        pairs = zip(state["keys"].tolist(), state["past"].tolist(), strict=True)
        self._past = {key: (total, count) for key, (total, count) in pairs}
