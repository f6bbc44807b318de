# TRL's documentation of GRPO, but for the import and `num_generations=2`.
# ruff: noqa: B905
import re

from datasets import load_dataset

from poise.engines.trl import PoiseConfig as GRPOConfig
from poise.engines.trl import PoiseTrainer as GRPOTrainer

dataset = load_dataset("math", split="train")


def reward_func(completions, ground_truth, **kwargs):
    # Regular expression to capture content inside \boxed{}
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    # Reward 1 if the content is the same as the ground truth, 0 otherwise
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]


training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", num_generations=2)
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=reward_func,
    args=training_args,
    train_dataset=dataset,
)
trainer.train()
