"""How large are gradients, now that advantages are not divided by a standard deviation?

The same rollouts of the embedded model, one batch of 128 after another, under `poise` (G = 2), under GRPO's
(r - mean) / std (G = 2 and G = 8, TRL's formula) and under GRPO's without the division: root mean square of the
advantages and norm of the gradient of the loss that `dr_grpo` has, before clipping.

    python examples/trl_step_size.py [MODEL_FOLDER]
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from poise.engines.trl import PoiseConfig, PoiseTrainer
from poise.models.embedded import embedded_model_path
from poise.tasks.embedded import correctness_reward, problems

ROLLOUTS = 128


class Frozen(PoiseTrainer):
    """Samples and scores as training does, and keeps gradient norms in place of steps."""

    variants: dict[str, Callable[[Tensor, Tensor], Tensor]]
    sizes: dict[str, list[tuple[float, float]]]

    def training_step(
        self, model: torch.nn.Module, inputs: list[dict[str, Any]], num_items_in_batch: object = None
    ) -> Tensor:
        """The gradient of the whole generation batch, once for every kind of advantage."""
        model.train()
        scored = self._generate_and_score_completions(inputs)  # unshuffled: siblings stay adjacent
        assert self.last_rollouts is not None
        rewards = torch.tensor(self.last_rollouts["rewards"])
        for name, advantages in self.variants.items():
            model.zero_grad()
            loss = self._compute_loss(model, scored | {"advantages": advantages(scored["advantages"], rewards)})
            loss.backward()
            norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
            rms = advantages(scored["advantages"], rewards).square().mean().sqrt()
            self.sizes.setdefault(name, []).append((float(rms), float(norm)))
        model.zero_grad()
        self._step += 1
        return torch.zeros(())


def grpo(group_size: int, *, divided: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """TRL's advantages: (r - mean of the group) / (std of the group + 1e-4)."""

    def advantages(mine: Tensor, rewards: Tensor) -> Tensor:
        groups = rewards.to(mine).view(-1, group_size)
        centred = groups - groups.mean(dim=1, keepdim=True)
        scale = groups.std(dim=1, keepdim=True) + 1e-4 if divided else 1.0
        return (centred / scale).flatten()

    return advantages


def sizes(model: str, group_size: int, *, batches: int, filling: int) -> dict[str, list[tuple[float, float]]]:
    """(RMS of advantages, gradient norm) of every batch after those that fill the window, by kind of advantage."""
    data = [{"prompt": p.prompt, "answer": p.answer, "domain": p.domain} for p in problems(4096, seed=3)]
    args = PoiseConfig(
        str(Path(tempfile.gettempdir()) / "poise-step-size"),  # nothing is saved
        num_generations=group_size,
        per_device_train_batch_size=ROLLOUTS,
        steps_per_generation=1,
        max_completion_length=64,
        max_steps=filling + batches,
        learning_rate=0.0,
        bf16=False,
        use_cpu=True,
        shuffle_dataset=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = Frozen(policy, correctness_reward, args, Dataset.from_list(data), processing_class=tokenizer)
    trainer.variants = {
        f"GRPO / std, G = {group_size}": grpo(group_size, divided=True),
        f"GRPO, not divided, G = {group_size}": grpo(group_size, divided=False),
    }
    if group_size == 2:
        trainer.variants["poise, G = 2"] = lambda mine, rewards: mine
    trainer.sizes = {}
    trainer.train()
    return {name: values[filling:] for name, values in trainer.sizes.items()}


def main(model: str = "", *, batches: int = 16, filling: int = 8) -> dict[str, tuple[float, float, float]]:
    """Print means over batches; returns (RMS of advantages, gradient norm, its largest value) by kind."""
    torch.manual_seed(0)
    path = str(Path(model)) if model else str(embedded_model_path())
    table = {}
    for group_size in (2, 8):
        for name, values in sizes(path, group_size, batches=batches, filling=filling).items():
            rms, norms = torch.tensor(values).T
            table[name] = (float(rms.mean()), float(norms.mean()), float(norms.max()))
    print(f"\n{'advantages':28} {'RMS':>8} {'gradient norm':>14} {'largest':>9}")
    for name, (size, norm, largest) in table.items():
        print(f"{name:28} {size:8.3f} {norm:14.4f} {largest:9.4f}")
    return table


if __name__ == "__main__":
    main(*sys.argv[1:])
