"""Generation settings of a model: the tokens that end a completion, and the options that change what is sampled.

`generate` fills every option that a caller leaves None from the model's own `generation_config.json`. Training and
measuring both have to know what that brings in.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

CHANGING: dict[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
}
"""Options that change tokens' probabilities or where a completion ends, with the values under which they do not."""
TRUNCATING: dict[str, Any] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Options that keep some tokens from being sampled, with the values under which they do not."""


def completion_ends(model: Any, tokenizer: Any, options: Mapping[str, Any] | None = None) -> list[int]:
    """Tokens that end a completion: the tokenizer's, those of the model's generation settings, and the run's.

    Models for chat name the end of a turn in their generation settings only.

    Args:
        model: A causal language model of `transformers`, with an adapter or without.
        tokenizer: Its tokenizer.
        options: Generation options of the run, such as TRL's `generation_kwargs`.
    """
    named = (tokenizer.eos_token_id, model.generation_config.eos_token_id, (options or {}).get("eos_token_id"))
    ends = [end for each in named if each is not None for end in (each if isinstance(each, list | tuple) else [each])]
    return list(dict.fromkeys(map(int, ends)))


def changing_options(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The options that change what is sampled, with their values; those that truncate come last.

    Args:
        given: Options that completions are sampled with; None is no option.
        own: The model's generation settings, which fill in for what is None.
    """
    found = {}
    for name, neutral in (CHANGING | TRUNCATING).items():
        value = given.get(name)
        if value is None and name != "do_sample":  # which whoever samples has set
            value = own.get(name)
        if value not in (None, neutral):
            found[name] = value
    return found


@contextmanager
def own_settings_hidden(model: Any) -> Iterator[None]:
    """Keep `generate` from filling in the model's own generation settings while inside."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
