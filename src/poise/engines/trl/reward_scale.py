"""The number that advantages are divided by under `scale_rewards="batch"`: the spread of earlier steps' rewards.

It is known before a step samples anything, so nothing of a rollout is in what divides its advantage, and the gradient's
direction stays unbiased. TRL takes the spread of the batch itself, which each rollout has a part in.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

FILE = "reward_scale.json"


@dataclass
class RewardScale:
    """Moments of all rewards so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    @property
    def divisor(self) -> float:
        """The standard deviation; 1 before the first step, and while all rewards were equal."""
        return math.sqrt(self.squares / (self.count - 1)) if self.squares > 0 else 1.0

    def add(self, rewards: Float[Tensor, " N"]) -> None:
        """Take in the rewards of a step; NaN, of ungradable rollouts, is none."""
        graded = rewards[~rewards.isnan()].double()
        if not len(graded):
            return
        mean, count = float(graded.mean()), self.count + len(graded)
        between = (mean - self.mean) ** 2 * self.count * len(graded) / count
        self.squares += float((graded - mean).square().sum()) + between
        self.mean += (mean - self.mean) * len(graded) / count
        self.count = count

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        (folder / FILE).write_text(json.dumps(asdict(self)) + "\n")

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint; one without it leaves it as it is."""
        if (folder / FILE).exists():
            vars(self).update(json.loads((folder / FILE).read_text()))
