"""Completions of a policy, sampled without its training taking notice."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.models.generation import completion_ends, own_settings_hidden


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Nothing else changes what is sampled: what the model's own generation settings say beside the tokens that end a
    completion is not obeyed.
    """

    max_completion_length: int
    """Tokens."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float | None = None
    repetition_penalty: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of `transformers.GenerationConfig`, which win over those above."""


@dataclass(frozen=True)
class SampledCompletion:
    """What a policy answered."""

    text: str
    num_tokens: int
    """With the one that ends it."""
    truncated: bool
    """Whether it was cut off at the largest length."""
    token_ids: tuple[int, ...] = ()
    """What was sampled, with the token that ends it."""


def sampled_completions(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, sampling: Any, seed: int, batch_size: int = 256
) -> list[str]:
    """The text of one completion a prompt: see `measured_completions`."""
    found = measured_completions(model, tokenizer, prompts, sampling=sampling, seed=seed, batch_size=batch_size)
    return [each.text for each in found]


def measured_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    sampling: Any,
    seed: int,
    batch_size: int = 256,
    watch: Callable[[int], None] = lambda done: None,
) -> list[SampledCompletion]:
    """One completion a prompt, the same for the same model, prompts, seed and batch size.

    A completion ends at the first of the tokens of `completion_ends`. Neither the random state of torch nor the mode
    of the model (training or evaluation) is changed.

    Args:
        model: A causal language model of `transformers`.
        tokenizer: Its tokenizer; prompts are padded on the left.
        prompts: Texts.
        sampling: A `Sampling`; or a trainer's `transformers.GenerationConfig`, and completions are sampled by it as in
            training, the model's own settings filling in for what it leaves None.
        seed: Of the sampling.
        batch_size: Prompts that are completed side by side.
        watch: Told how many prompts are completed, after each batch.
    """
    as_given = not isinstance(sampling, Sampling)
    ends = completion_ends(model, tokenizer, sampling.to_dict() if as_given else sampling.options)
    drawn = sampling if as_given else _generation_config(sampling, tokenizer, ends)
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    completions: list[SampledCompletion] = []
    model.eval()
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            nullcontext() if as_given else own_settings_hidden(model),
        ):
            torch.manual_seed(seed)
            for first in range(0, len(prompts), batch_size):
                inputs = tokenizer(
                    list(prompts[first : first + batch_size]),
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                    return_token_type_ids=False,
                    add_special_tokens=False,
                ).to(model.device)
                ids = model.generate(**inputs, generation_config=drawn, tokenizer=tokenizer)
                for sampled in ids[:, inputs["input_ids"].shape[1] :].tolist():
                    length = next((place for place, token in enumerate(sampled, start=1) if token in ends), None)
                    whole = tuple(sampled[:length])
                    text = tokenizer.decode(whole, skip_special_tokens=True)
                    completions.append(SampledCompletion(text, len(whole), length is None, whole))
                watch(len(completions))
    finally:
        model.train(was_training)
    return completions


def _generation_config(sampling: Sampling, tokenizer: Any, ends: list[int]) -> Any:
    from transformers import GenerationConfig  # takes seconds, and only sampling needs it

    options = {
        "do_sample": True,
        "max_new_tokens": sampling.max_completion_length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "use_cache": True,
        "disable_compile": True,
    }
    return GenerationConfig(**(options | dict(sampling.options) | {"eos_token_id": ends}))
