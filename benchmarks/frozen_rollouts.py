"""Rollouts of a model that stands still, with the features that training would have read from them.

Many rollouts of each prompt: any two of them are one draw of a training step, and all the others tell V(x).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer

from poise import Features, capture_hidden_states, reasoning_mask, score_norm_weights
from poise.models.embedded import embedded_model_path
from poise.tasks.embedded import END_OF_THINKING, is_correct, problems

COLUMNS = 112
LONGEST_COMPLETION = 72


@dataclass(frozen=True)
class FrozenRollouts:
    """All rollouts of all prompts, prompt by prompt: every tensor has shape (prompts, rollouts, ...)."""

    prompt: Tensor
    completion: Tensor
    entropies: Tensor
    rewards: Tensor
    weights: Tensor
    ids: Tensor
    """Tokens, padded on the right to `COLUMNS`."""
    attention: Tensor
    completion_mask: Tensor
    domains: list[str]

    def features(self, prompts: slice, rollouts: Tensor) -> Features:
        """Features of the chosen rollouts of the chosen prompts, as rows, prompt by prompt."""
        prompt, completion, entropies = (
            getattr(self, name)[prompts][:, rollouts].flatten(0, 1) for name in ("prompt", "completion", "entropies")
        )
        rows = len(self.domains[prompts]) * len(rollouts)
        return Features(prompt, completion, entropies, torch.zeros(rows, 4, dtype=torch.bool))


def embedded_rollouts(
    num_prompts: int, num_rollouts: int, *, seed: int = 0, cache: Path | None = None, model_path: Path | None = None
) -> FrozenRollouts:
    """Sample the embedded model (or one trained from it) at temperature 1; a cache file is reused when it is there."""
    chosen = problems(num_prompts, seed=seed)
    domains = [problem.domain for problem in chosen]
    if cache is not None and cache.exists():
        return FrozenRollouts(**load_file(cache), domains=domains)
    path = model_path or embedded_model_path()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    torch.manual_seed(seed)
    parts: dict[str, list[Tensor]] = {}
    at_once = max(1, 512 // num_rollouts)
    for start in range(0, num_prompts, at_once):
        some = chosen[start : start + at_once]
        for name, value in _sampled(model, tokenizer, some, num_rollouts).items():
            parts.setdefault(name, []).append(value.unflatten(0, (len(some), num_rollouts)))
        print(f"\rsampling: {min(start + at_once, num_prompts)} of {num_prompts} prompts", end="", flush=True)
    print()
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, cache)
    return FrozenRollouts(**tensors, domains=domains)


@torch.no_grad()
def _sampled(model, tokenizer, some, num_rollouts) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    texts = [problem.prompt for problem in some for _ in range(num_rollouts)]
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ids = model.generate(
        encoded.input_ids,
        attention_mask=encoded.attention_mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=LONGEST_COMPLETION,
        pad_token_id=tokenizer.pad_token_id,
    )
    width = encoded.input_ids.shape[1]
    completions = ids[:, width:]
    ended = (completions == tokenizer.eos_token_id).cumsum(1)
    mask = (ended == 0) | ((ended == 1) & (completions == tokenizer.eos_token_id))
    answers = [problem.answer for problem in some for _ in range(num_rollouts)]
    decoded = (
        tokenizer.decode(row[kept], skip_special_tokens=False) for row, kept in zip(completions, mask, strict=True)
    )
    stripped = (text.replace(tokenizer.eos_token, "") for text in decoded)
    rewards = [float(is_correct(text, answer)) for text, answer in zip(stripped, answers, strict=True)]
    prompt_mask = torch.cat([encoded.attention_mask.bool(), torch.zeros_like(mask)], dim=1)
    completion_mask = torch.cat([torch.zeros_like(encoded.attention_mask.bool()), mask], dim=1)
    end = tokenizer.convert_tokens_to_ids([END_OF_THINKING])
    reasoning, _ = reasoning_mask(ids, completion_mask, end_of_thinking_ids=end)
    layer = round(0.6 * model.config.num_hidden_layers)
    with capture_hidden_states(
        model, prompt_mask, completion_mask, layers=[layer], pool_tokens=10, reasoning_mask=reasoning
    ) as capture:
        logits = model(ids, attention_mask=(prompt_mask | completion_mask).long()).logits[:, width - 1 : -1]
    every = logits.log_softmax(-1)
    entropies = -(every.exp() * every).sum(-1)
    features = capture.features(entropies)
    logprobs = every.gather(2, completions[:, :, None])[:, :, 0]
    return {
        "prompt": features.prompt,
        "completion": features.completion,
        "entropies": features.entropies,
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "weights": score_norm_weights(logprobs, entropies, mask),
        "ids": pad(ids, (0, COLUMNS - ids.shape[1])),
        "attention": pad(prompt_mask | completion_mask, (0, COLUMNS - ids.shape[1])),
        "completion_mask": pad(completion_mask, (0, COLUMNS - ids.shape[1])),
    }
