"""Train a language model on one-line sums with poise in TRL: `python examples/trl_quickstart.py [MODEL]`.

MODEL is a folder or a name on the Hugging Face Hub. Anything `trl.GRPOConfig` takes, `PoiseConfig` takes too.
"""

import sys
from typing import Any

from datasets import Dataset

from poise.engines.trl import PoiseConfig, PoiseTrainer


def correct(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


def main(
    model: str = "HuggingFaceTB/SmolLM2-135M", output_dir: str = "runs/quickstart", **options: Any
) -> PoiseTrainer:
    sums = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10)]
    args = PoiseConfig(output_dir, preset="poise", max_completion_length=8, learning_rate=1e-5, **options)
    trainer = PoiseTrainer(model, correct, args, train_dataset=Dataset.from_list(sums))
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
