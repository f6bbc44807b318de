"""One forward pass over a policy's rollouts, read: all layers, several pooling windows, scalars, weights.

Rows are read as training reads them, prompts padded on the left and completions on the right, through the same hooks;
one set of hooks for each pooling window, all around the same pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from poise.features.hidden_states import capture_hidden_states
from poise.features.rollout_features import reasoning_mask, score_norm_weights, token_entropies
from poise.features.scalars import SCALARS

_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class Reading:
    """What was read, one row a rollout, on the CPU."""

    prompt: dict[int, Float[Tensor, "rows layers width"]]
    """By the number of tokens that are pooled."""
    completion: dict[int, Float[Tensor, "rows layers width"]]
    scalars: Float[Tensor, "rows scalars"]
    """A column for each of `poise.features.scalars.SCALARS`."""
    weights: Float[Tensor, " rows"]
    """Score-norm weights, for a loss with a constant normaliser."""


@torch.no_grad()
def reading(
    policy: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    layers: Sequence[int],
    pools: Sequence[int],
    end_of_thinking_ids: Sequence[int] = (),
    temperature: float = 1.0,
) -> Reading:
    """Read rollouts.

    Args:
        policy: A causal language model of `transformers`, in evaluation mode.
        prompts, completions: Token ids of each rollout, without padding.
        layers: Decoder blocks, from 0.
        pools: Numbers of last tokens that are averaged.
        end_of_thinking_ids: What ends the reasoning; see `poise.reasoning_mask`.
        temperature: Of sampling.
    """
    batches = list(_batches(prompts, completions))
    parts: list[Reading] = []
    for rows in batches:
        parts.append(
            _pass(
                policy,
                [prompts[row] for row in rows],
                [completions[row] for row in rows],
                layers=layers,
                pools=pools,
                end_of_thinking_ids=end_of_thinking_ids,
                temperature=temperature,
            )
        )
    back = torch.tensor([row for rows in batches for row in rows]).argsort()
    return Reading(
        {pool: torch.cat([part.prompt[pool] for part in parts])[back] for pool in pools},
        {pool: torch.cat([part.completion[pool] for part in parts])[back] for pool in pools},
        torch.cat([part.scalars for part in parts])[back],
        torch.cat([part.weights for part in parts])[back],
    )


def _batches(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows of like length, as many at once as stay below a number of tokens."""
    batch: list[int] = []
    widths = (0, 0)
    for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row]) + len(completions[row])):
        wider = max(widths[0], len(prompts[row])), max(widths[1], len(completions[row]))
        if batch and (len(batch) + 1) * sum(wider) > _TOKENS_AT_ONCE:
            yield batch
            batch, wider = [], (len(prompts[row]), len(completions[row]))
        batch.append(row)
        widths = wider
    if batch:
        yield batch


def _pass(
    policy: Any,
    prompts: list[Sequence[int]],
    completions: list[Sequence[int]],
    *,
    layers: Sequence[int],
    pools: Sequence[int],
    end_of_thinking_ids: Sequence[int],
    temperature: float,
) -> Reading:
    prompt_ids, prompt_mask = _padded(prompts, side="left")
    completion_ids, mask = _padded(completions, side="right")
    input_ids = torch.cat([prompt_ids, completion_ids], dim=1)
    whole_prompt = torch.cat([prompt_mask, torch.zeros_like(mask)], dim=1)
    whole_completion = torch.cat([torch.zeros_like(prompt_mask), mask], dim=1)
    reasoning, _ = reasoning_mask(input_ids, whole_completion, end_of_thinking_ids=end_of_thinking_ids)
    attended = (whole_prompt | whole_completion).long()
    device = policy.device
    with ExitStack() as hooks:
        captures = {
            pool: hooks.enter_context(
                capture_hidden_states(
                    policy, whole_prompt, whole_completion, layers=layers, pool_tokens=pool, reasoning_mask=reasoning
                )
            )
            for pool in pools
        }
        logits = policy(
            input_ids=input_ids.to(device),
            attention_mask=attended.to(device),
            position_ids=(attended.cumsum(dim=1) - 1).clamp(min=0).to(device),
            logits_to_keep=mask.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
    logits = logits / temperature
    entropies = token_entropies(logits).cpu()
    chosen = logits.gather(2, completion_ids[:, :, None].to(device))[:, :, 0]
    logprobs = (chosen.float() - logits.float().logsumexp(dim=2)).clamp(max=0).cpu()
    names = list(SCALARS)
    read = {pool: each.features(entropies, scalars=names, ids=input_ids) for pool, each in captures.items()}
    return Reading(
        {pool: each.prompt.unflatten(1, (len(layers), -1)).cpu() for pool, each in read.items()},
        {pool: each.completion.unflatten(1, (len(layers), -1)).cpu() for pool, each in read.items()},
        read[pools[0]].columns(names).cpu(),
        score_norm_weights(logprobs, entropies, mask),
    )


def _padded(
    sequences: Sequence[Sequence[int]], *, side: str
) -> tuple[Int[Tensor, "rows columns"], Bool[Tensor, "rows columns"]]:
    """Ids and their mask; a padded place has id 0."""
    tensors = [torch.tensor(list(each), dtype=torch.int64) for each in sequences]
    ids = pad_sequence(tensors, batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(each) for each in tensors], batch_first=True, padding_side=side)
    return ids, mask.bool()
