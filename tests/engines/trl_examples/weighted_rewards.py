# TRL's documentation of GRPO, but for the import and `num_generations=2`.
from datasets import load_dataset

from poise.engines.trl import PoiseConfig as GRPOConfig
from poise.engines.trl import PoiseTrainer as GRPOTrainer

dataset = load_dataset("trl-lib/tldr", split="train")


def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]


def reward_num_unique_chars(completions, log_metric=None, log_extra=None, **kwargs):
    rewards = [len(set(c)) for c in completions]
    log_extra("unique", rewards)
    log_metric("unique_characters", sum(rewards) / len(rewards))
    return rewards


training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", num_generations=2, reward_weights=[0.2, 1.0])
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=[reward_len, reward_num_unique_chars],
    args=training_args,
    train_dataset=dataset,
)
trainer.train()
