# TRL's documentation of GRPO, but for the import and `num_generations=2`.
from datasets import load_dataset
from peft import LoraConfig

from poise.engines.trl import PoiseConfig as GRPOConfig
from poise.engines.trl import PoiseTrainer as GRPOTrainer

dataset = load_dataset("trl-lib/tldr", split="train")


def reward_num_unique_chars(completions, **kwargs):
    return [len(set(c)) for c in completions]


training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", num_generations=2, learning_rate=1e-5)
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B-Instruct",
    reward_funcs=reward_num_unique_chars,
    args=training_args,
    train_dataset=dataset,
    peft_config=LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM"),
)
trainer.train()
