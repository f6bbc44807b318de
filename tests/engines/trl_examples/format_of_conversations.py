# TRL's documentation of GRPO, but for the import and `num_generations=2`.
import re

from datasets import load_dataset

from poise.engines.trl import PoiseConfig as GRPOConfig
from poise.engines.trl import PoiseTrainer as GRPOTrainer

dataset = load_dataset("trl-lib/ultrafeedback-prompt", split="train")


def format_reward_func(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", num_generations=2)
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=format_reward_func,
    args=training_args,
    train_dataset=dataset,
)
trainer.train()
