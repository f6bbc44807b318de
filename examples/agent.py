"""An agent that takes turns with a calculator: `python examples/agent.py [OUTPUT_DIR]`, minutes on two CPU cores.

The embedded model solves sums in steps, "sum 4+9+2<think>13,15</think>15". Here it writes every other step alone:
behind each of its commas a calculator adds the next term to what the policy wrote and writes the result, right or
wrong, as the policy's step was. Those tokens are not the policy's own: they receive no gradient, and poise reads
nothing of them.
"""

import sys
from typing import Any

import torch
from datasets import Dataset

from poise.engines.trl import PoiseConfig, PoiseTrainer
from poise.models.embedded import load_embedded_model
from poise.tasks.embedded import THINK, correctness_reward, problems


def calculator(prompt: str, written: str) -> str:
    """What the calculator writes behind `written`, which ends in a comma; nothing where it cannot follow."""
    terms = prompt.removeprefix("sum ").removesuffix(THINK).split("+")
    states = written.split(",")[:-1]
    if len(states) + 1 >= len(terms) or not states[-1].isdecimal():
        return ""
    more = "," if len(states) + 2 < len(terms) else ""
    return str(int(states[-1]) + int(terms[len(states) + 1])) + more


def take_turns(prompts: list[str], trainer: PoiseTrainer) -> dict[str, Any]:
    """A rollout function of TRL: completions, and which of their tokens the policy sampled."""
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False, padding_side="left")
    ids, attention, cache = inputs["input_ids"], inputs["attention_mask"], None
    completions: list[list[int]] = [[] for _ in prompts]
    own: list[list[int]] = [[] for _ in prompts]
    waiting: list[list[int]] = [[] for _ in prompts]  # what the calculator has still to write
    for _ in range(trainer.max_completion_length):
        with torch.no_grad():
            positions = (attention.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = model(
                input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
            )
        cache = output.past_key_values
        sampled = torch.multinomial((output.logits[:, -1].float() / trainer.temperature).softmax(dim=-1), 1)[:, 0]
        ids = torch.full((len(prompts), 1), tokenizer.pad_token_id)
        for row, token in enumerate(sampled.tolist()):
            if completions[row] and completions[row][-1] == tokenizer.eos_token_id:
                continue
            own[row].append(int(not waiting[row]))
            completions[row].append(waiting[row].pop(0) if waiting[row] else token)
            ids[row] = completions[row][-1]
            if own[row][-1] and tokenizer.decode(token) == ",":
                told = calculator(prompts[row], tokenizer.decode(completions[row]))
                waiting[row] = tokenizer.encode(told, add_special_tokens=False)
        attention = torch.cat([attention, torch.ones_like(ids)], dim=1)
        if all(each[-1] == tokenizer.eos_token_id for each in completions):
            break
    prompt_ids = [tokenizer.encode(each, add_special_tokens=False) for each in prompts]
    return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None, "env_mask": own}


def main(output_dir: str = "runs/agent", **options: Any) -> PoiseTrainer:
    model, tokenizer = load_embedded_model()
    rows = [
        {"prompt": each.prompt, "answer": each.answer, "domain": each.domain}
        for each in problems(2048, seed=0, families=["sum"])
    ]
    settings = {
        "per_device_train_batch_size": 64,
        "max_completion_length": 32,
        "learning_rate": 3e-4,
        "max_steps": 80,
        "logging_steps": 4,
        "gradient_checkpointing": False,  # it would switch off the cache of `take_turns`
        "save_strategy": "no",
        "report_to": [],
    }
    args = PoiseConfig(output_dir, **(settings | options))
    trainer = PoiseTrainer(
        model,
        correctness_reward,
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        rollout_func=take_turns,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
