# TRL's documentation of GRPO, but for the import and `num_generations=2`.
import asyncio

from datasets import load_dataset

from poise.engines.trl import PoiseConfig as GRPOConfig
from poise.engines.trl import PoiseTrainer as GRPOTrainer

dataset = load_dataset("trl-lib/tldr", split="train")


async def async_reward_func(prompts, completions, **kwargs):
    # Simulate an I/O-bound call, such as a request to a remote grader
    await asyncio.sleep(0.01)
    return [float(len(completion) % 5) for completion in completions]


training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", num_generations=2)
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=async_reward_func,
    args=training_args,
    train_dataset=dataset,
)
trainer.train()
