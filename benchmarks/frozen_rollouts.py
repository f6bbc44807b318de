"""Rollouts of a policy that stands still, with the features that training would have read from them.

Many rollouts of each prompt: any two of them are one draw of a training step, and all the others tell V(x).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer

from poise import Features, capture_hidden_states, reasoning_mask, score_norm_weights
from poise.models.embedded import embedded_model_path
from poise.models.named import named_model, named_tokenizer
from poise.rewards import graded
from poise.tasks.embedded import END_OF_THINKING, problems
from poise.tasks.problem import Problem
from poise.tasks.task import task_named


@dataclass(frozen=True)
class Policy:
    """A model that stands still, and what it is asked."""

    model: Any
    tokenizer: Any
    problems: Callable[[int, int], list[Problem]]
    """So many, by seed."""
    longest_prompt: int
    longest_completion: int


def embedded_policy(path: Path | None = None) -> Policy:
    """The embedded model, or one trained from it, on all families."""
    path = path or embedded_model_path()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    return Policy(model, AutoTokenizer.from_pretrained(path), lambda num, seed: problems(num, seed=seed), 40, 72)


SMOLLM2_TASK = "reasoning-gym:chain_sum?min_terms=2&max_terms=4&min_digits=1&max_digits=2&extract=number"


def smollm2_policy(task: str = SMOLLM2_TASK) -> Policy:
    """SmolLM2-135M-Instruct, asked in plain text."""
    source = task_named(task).problems
    tokenizer = named_tokenizer("smollm2", chat=False)
    return Policy(named_model("smollm2").eval(), tokenizer, lambda num, seed: source(num, seed=seed), 64, 8)


@dataclass(frozen=True)
class FrozenRollouts:
    """All rollouts of all prompts, prompt by prompt: every tensor has shape (prompts, rollouts, ...)."""

    prompt: Tensor
    """States of the first rollouts only, as many as were asked for; `completion` and `entropies` likewise."""
    completion: Tensor
    entropies: Tensor
    rewards: Tensor
    weights: Tensor
    ids: Tensor
    """Tokens, padded to one number of columns."""
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


def frozen_rollouts(
    policy: Policy,
    num_prompts: int,
    num_rollouts: int,
    *,
    seed: int = 0,
    featured: int | None = None,
    cache: Path | None = None,
) -> FrozenRollouts:
    """Sample at temperature 1; a cache file is reused when it is there.

    Args:
        policy: Whom to ask, and what.
        num_prompts: The first problems of the seed.
        num_rollouts: Of each.
        seed: Of problems and draws.
        featured: Of the first so many rollouts features are read; all by default.
        cache: A file.
    """
    chosen = policy.problems(num_prompts, seed)
    domains = [problem.domain for problem in chosen]
    if cache is not None and cache.exists():
        return FrozenRollouts(**load_file(cache), domains=domains)
    torch.manual_seed(seed)
    parts: dict[str, list[Tensor]] = {}
    at_once = max(1, 512 // num_rollouts)
    for start in range(0, num_prompts, at_once):
        some = chosen[start : start + at_once]
        for name, value in _sampled(policy, some, num_rollouts, featured or num_rollouts).items():
            parts.setdefault(name, []).append(value)
        print(f"\rsampling: {min(start + at_once, num_prompts)} of {num_prompts} prompts", end="", flush=True)
    print()
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, cache)
    return FrozenRollouts(**tensors, domains=domains)


@torch.no_grad()
def _sampled(policy: Policy, some: list[Problem], num: int, featured: int) -> dict[str, Tensor]:
    model, tokenizer = policy.model, policy.tokenizer
    encoded = tokenizer(
        [problem.prompt for problem in some],
        return_tensors="pt",
        padding="max_length",
        max_length=policy.longest_prompt,
        padding_side="left",
        add_special_tokens=False,
    )
    if encoded.input_ids.shape[1] > policy.longest_prompt:
        raise ValueError(f"a prompt is longer than {policy.longest_prompt} tokens")
    completions, mask, logprobs, entropies = _completed(policy, encoded.input_ids, encoded.attention_mask, num)
    ids = torch.cat([encoded.input_ids.repeat_interleave(num, 0), completions], dim=1)
    prompt_mask = pad(encoded.attention_mask.bool().repeat_interleave(num, 0), (0, mask.shape[1]))
    completion_mask = pad(mask, (policy.longest_prompt, 0))
    texts = tokenizer.batch_decode([row[kept] for row, kept in zip(completions, mask, strict=True)])
    answers = [text.replace(tokenizer.eos_token, "") for text in texts]
    rewards = [graded(text, some[row // num]) for row, text in enumerate(answers)]

    by_prompt = {
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "weights": score_norm_weights(logprobs, entropies, mask),
        "ids": ids,
        "attention": prompt_mask | completion_mask,
        "completion_mask": completion_mask,
    }
    tensors = {name: value.unflatten(0, (len(some), num)) for name, value in by_prompt.items()}

    end = tokenizer.encode(END_OF_THINKING, add_special_tokens=False)
    layer = round(0.6 * model.config.num_hidden_layers)
    pooled = []
    for rows in torch.arange(len(ids)).view(len(some), num)[:, :featured].flatten().split(256):
        reasoning, _ = reasoning_mask(ids[rows], completion_mask[rows], end_of_thinking_ids=end)
        attention = (prompt_mask | completion_mask)[rows]
        with capture_hidden_states(
            model,
            prompt_mask[rows],
            completion_mask[rows],
            layers=[layer],
            pool_tokens=10,
            reasoning_mask=reasoning,
        ) as capture:
            model(ids[rows], attention_mask=attention.long(), logits_to_keep=1)
        pooled.append(capture.features(entropies[rows]))
    for name in ("prompt", "completion", "entropies"):
        tensors[name] = torch.cat([getattr(each, name) for each in pooled]).unflatten(0, (len(some), featured))
    return tensors


def _completed(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, num: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Completions of left-padded prompts, `num` a prompt, which is read once: ids, mask, log-probs, entropies."""
    model, end, filler = policy.model, policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    read = model(prompt_ids, attention_mask=prompt_mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = read.past_key_values
    cache.batch_repeat_interleave(num)
    logits = read.logits[:, -1].repeat_interleave(num, 0)
    attention = prompt_mask.repeat_interleave(num, 0)
    position = positions[:, -1:].repeat_interleave(num, 0)
    going = torch.ones(len(logits), dtype=torch.bool)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(policy.longest_completion):
        every = logits.float().log_softmax(-1)
        token = torch.where(going, every.exp().multinomial(1)[:, 0], filler)
        columns.append((token, going, every.gather(1, token[:, None])[:, 0], -(every.exp() * every).sum(-1)))
        going = going & (token != end)
        if not going.any():
            break
        attention, position = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1), position + 1
        logits = model(
            token[:, None], attention_mask=attention, position_ids=position, past_key_values=cache, use_cache=True
        ).logits[:, -1]
    missing = policy.longest_completion - len(columns)
    ids, mask, logprobs, entropies = (torch.stack(each, dim=1) for each in zip(*columns, strict=True))
    return (
        pad(ids, (0, missing), value=filler),
        pad(mask, (0, missing)),
        pad(logprobs, (0, missing)),
        pad(entropies, (0, missing)),
    )
