# TRL's documentation of GRPO, but for the import and `num_generations=2`.
from datasets import load_dataset

from poise.engines.trl import PoiseConfig as GRPOConfig
from poise.engines.trl import PoiseTrainer as GRPOTrainer

dataset = load_dataset("trl-lib/tldr", split="train")


def reward_func(completion_ids, **kwargs):
    """Reward function that assigns higher scores to longer completions (in terms of token count)."""
    return [float(len(ids)) for ids in completion_ids]


training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", num_generations=2)
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=reward_func,
    args=training_args,
    train_dataset=dataset,
)
trainer.train()
