"""Steps whose numbers are not finite, and how they are skipped.

They reach neither the policy nor the baseline. The baseline does not learn from a generation batch with an
infinite reward, or with features or score-norm weights that are not finite; its advantages are NaN, and so is the loss
of its steps. A step whose loss or gradient is not finite has its gradient taken away before the optimizer sees it: the
policy, momentum and weight decay stay as they were. Such steps are counted, and the first one is explained in a file.

Dimensions: N rollouts of the generation batch over all processes, B of one minibatch, C completion columns.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor, nn
from transformers import TrainerCallback

from poise.features.rollout_features import Features
from poise.storage.whole_files import write_whole

logger = logging.getLogger(__name__)

FILE = "first_bad_step.json"
MOST_IN_A_ROW = 20
"""Steps skipped one after the other, after which training ends: it is not going to recover."""


class FiniteSteps(TrainerCallback):  # type: ignore[misc]
    """Skips steps whose numbers are not finite.

    Args:
        accelerator: Of the trainer.
        file: Where the first such step is explained.
        count: Told of every step, 1 if it was skipped and 0 if not.

    Attributes:
        skipped: Whether the newest step was skipped.
    """

    def __init__(self, accelerator: Accelerator, file: Path, count: Callable[[float], None]) -> None:
        self.accelerator, self.file, self.count = accelerator, file, count
        self.skipped = False
        self._in_a_row = 0
        self._batch: dict[str, Any] = {}
        self._minibatch: dict[str, Any] = {}
        self._causes: list[str] = []

    def see_batch(
        self, rewards: Float[Tensor, " N"], features: Features | None, weights: Float[Tensor, " N"] | None
    ) -> bool:
        """Whether a generation batch may be learned from; NaN rewards may, they are ungradable."""
        seen: dict[str, Any] = {"rewards": rewards, "weights": weights}
        if features is not None:
            seen |= {f"features.{name}": getattr(features, name) for name in ("prompt", "completion", "entropies")}
            seen |= {f"features.{name}": scalar for name, scalar in features.scalars.items()}
        self._batch = {name: part for name, part in seen.items() if torch.is_tensor(part) and part.is_floating_point()}
        bad = [name for name, part in self._batch.items() if not part.isfinite().all() and name != "rewards"]
        self._batch["causes"] = bad + (["rewards"] if rewards.isinf().any() else [])
        return not self._batch["causes"]

    def see_loss(self, loss: Float[Tensor, ""], minibatch: dict[str, Any], logprobs: Float[Tensor, "B C"]) -> None:
        """Look at the loss of a minibatch and remember the first that is not finite; else the newest."""
        if self._causes:
            return
        self._minibatch = {**minibatch, "loss": loss.detach(), "new_logprobs": logprobs.detach()}
        if not loss.isfinite():
            self._causes.append("loss")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **named: Any) -> None:
        """Take away a gradient that must not reach the weights.

        Raises:
            FloatingPointError: If this has happened too often in a row.
        """
        # fp16's loss scaling looks for its scale by gradients that are not finite, and skips those steps itself.
        scaled = self.accelerator.scaler is not None
        if not self._causes and not scaled and not gradient_is_finite(model):
            self._causes.append("gradient")
        anywhere = self.accelerator.gather(torch.tensor([float(bool(self._causes))], device=self.accelerator.device))
        self.skipped = bool(anywhere.any())
        if self.skipped:
            self._explain(state.global_step + 1, model)
            if not scaled:
                for parameter in model.parameters():
                    parameter.grad = None
        self.count(float(self.skipped))
        self._in_a_row = self._in_a_row + 1 if self.skipped else 0
        self._causes.clear()
        if self._in_a_row == MOST_IN_A_ROW:
            raise FloatingPointError(
                f"{MOST_IN_A_ROW} steps in a row had numbers that are not finite, the last of them step "
                f"{state.global_step + 1}; {self.file} says which were the first"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Forget what an earlier run in the same folder left."""
        if state.global_step == 0 and self.accelerator.is_main_process:
            self.file.unlink(missing_ok=True)

    def _explain(self, step: int, model: nn.Module) -> None:
        """Write about the first bad step, once a run."""
        of_process = {
            "causes": [*self._batch.get("causes", []), *self._causes],
            **minibatch_numbers(self._minibatch),
            **{name: numbers(part) for name, part in self._batch.items() if name != "causes"},
            "gradients_not_finite": [
                name
                for name, each in model.named_parameters()
                if each.grad is not None and not each.grad.isfinite().all()
            ],
        }
        of_all = gather_object([of_process])
        if not self.accelerator.is_main_process or self.file.exists():
            return
        causes = sorted({cause for each in of_all for cause in each["causes"]})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, json.dumps({"step": step, "causes": causes, "processes": of_all}, indent=1) + "\n")
        logger.warning("step %d is skipped, not finite: %s; %s says more", step, ", ".join(causes), self.file)


def gradient_is_finite(model: nn.Module) -> bool:
    """Whether the norm of this process's part of the gradient is a finite number."""
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    local = [each.to_local() if hasattr(each, "to_local") else each for each in gradients]
    return not local or bool(nn.utils.get_total_norm(local).isfinite())


def minibatch_numbers(minibatch: dict[str, Any]) -> dict[str, Any]:
    """Loss, new and old log-probs, their ratio and the advantages of the tokens that count."""
    if not minibatch:
        return {}
    counted = minibatch["completion_mask"].bool()
    new = minibatch["new_logprobs"]
    old = minibatch.get("old_per_token_logps")
    old = new if old is None else old  # TRL trains with the policy that sampled, and keeps no others
    tensors = {"new_logprobs": new[counted], "old_logprobs": old[counted], "ratio": (new - old)[counted].exp()}
    return {name: numbers(minibatch[name]) for name in ("loss", "advantages")} | {
        name: numbers(tensor) for name, tensor in tensors.items()
    }


def numbers(tensor: Tensor) -> dict[str, Any]:
    """The smallest and the largest finite number (None without one), how many are not finite, and of how many."""
    finite = tensor[tensor.isfinite()].double()
    ends = {"min": float(finite.min()), "max": float(finite.max())} if len(finite) else {"min": None, "max": None}
    return ends | {"not_finite": tensor.numel() - len(finite), "of": tensor.numel()}
