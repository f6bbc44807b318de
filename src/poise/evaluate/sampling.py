"""What does a policy answer, without its training taking notice?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; the training's own settings, so that what is measured is what is trained."""

    max_completion_length: int
    """Tokens."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float | None = None
    repetition_penalty: float = 1.0


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
    model: Any, tokenizer: Any, prompts: Sequence[str], *, sampling: Sampling, seed: int, batch_size: int = 256
) -> list[str]:
    """The text of one completion a prompt: see `measured_completions`."""
    found = measured_completions(model, tokenizer, prompts, sampling=sampling, seed=seed, batch_size=batch_size)
    return [each.text for each in found]


def measured_completions(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, sampling: Sampling, seed: int, batch_size: int = 256
) -> list[SampledCompletion]:
    """One completion a prompt, the same for the same model, prompts, seed and batch size.

    Neither the random state of torch nor the mode of the model (training or evaluation) is changed.

    Args:
        model: A causal language model of `transformers`.
        tokenizer: Its tokenizer; prompts are padded on the left.
        prompts: Texts.
        sampling: How to draw.
        seed: Of the draw.
        batch_size: Prompts that are completed side by side.
    """
    from transformers import GenerationConfig  # takes seconds, and only sampling needs it

    drawn = GenerationConfig(
        do_sample=True,
        max_new_tokens=sampling.max_completion_length,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        use_cache=True,
    )
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    completions: list[SampledCompletion] = []
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
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
                ids = model.generate(**inputs, generation_config=drawn, disable_compile=True)
                drawn_ids = ids[:, inputs["input_ids"].shape[1] :]
                texts = tokenizer.batch_decode(drawn_ids, skip_special_tokens=True)
                ended = (drawn_ids == tokenizer.eos_token_id).cpu()
                for text, ends, sampled in zip(texts, ended, drawn_ids.tolist(), strict=True):
                    num_tokens = int(ends.int().argmax()) + 1 if ends.any() else len(ends)
                    whole = tuple(sampled[:num_tokens])
                    completions.append(SampledCompletion(text, num_tokens, not bool(ends.any()), whole))
    finally:
        model.train(was_training)
    return completions
