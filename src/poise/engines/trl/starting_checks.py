"""Checks of a run's data and model before its first batch, one sentence each."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from poise.diagnostics.row_isolation import check_row_isolation
from poise.engines.trl.config import PoiseConfig
from poise.models.generation import changing_options
from poise.presets import Preset

logger = logging.getLogger(__name__)

NOT_ZERO_AT_FIRST = ("pissa", "olora", "corda")
"""Starts of LoRA under which switching the adapter off does not give back the model that was loaded."""
CLOSE = 1e-2
"""Of the largest logit: what may differ by rounding."""


def check_data_set(data: Any, args: PoiseConfig, *, environment: bool = False) -> None:
    """Refuse data that cannot be trained on; make generation batches smaller where the data set has too few prompts.

    A stream may not tell its columns: a missing prompt is found in its first batch then.

    Args:
        data: The data set.
        args: Of the run.
        environment: Whether an environment makes prompts.

    Raises:
        ValueError: If the data set has no prompts, or too few prompts for one generation batch.
    """
    columns = getattr(data, "column_names", None) or []
    if columns and "prompt" not in columns and not environment:
        raise ValueError(f"the data set needs a column 'prompt', got {', '.join(sorted(columns))}")
    if args.update_share < 1 and {"image", "images"} & set(columns):
        raise ValueError("update_share below 1 cannot draw rollouts that have images: it must be 1")
    if not hasattr(data, "__len__"):
        return
    rollouts, group_size = args.generation_batch_size or 0, args.num_generations or 1  # TRL has filled them in
    if rollouts > len(data) * group_size and args.chose_steps_per_generation and args.poise_feature_pass == "auto":
        half = rollouts // 2  # one minibatch in place of two
        if half % group_size == 0 and half <= len(data) * group_size:
            args.steps_per_generation, args.generation_batch_size = args.gradient_accumulation_steps, half
            rollouts = half
            logger.warning(
                "the data set has %d prompts, too few for two minibatches a generation batch: steps_per_generation is "
                "%d instead of twice that, and the features cost one more forward pass",
                len(data),
                args.steps_per_generation,
            )
    if rollouts > len(data) * group_size:
        raise ValueError(
            f"a generation batch holds {rollouts // group_size} prompts, and the data set needs as many or more, "
            f"got {len(data)}"
        )


def look_at_model(model: nn.Module, ref_model: nn.Module | None, args: PoiseConfig, generation: dict[str, Any]) -> None:
    """Take randomness out of the model's passes, and say what is doubtful about its log-probabilities."""
    check_adapter(model, args.beta)
    if args.disable_dropout:
        for each in (model, ref_model):
            if each is not None:
                switch_off_dropout(each)
    check_rows(model, args.resolved_preset)
    for doubt in doubts(model, generation):
        logger.warning("%s", doubt)


def check_adapter(model: Any, beta: float) -> None:
    """Refuse a reference policy that never was.

    Raises:
        ValueError: If the adapter's start has changed the weights below it, and the loss has a reference.
    """
    for adapter in getattr(model, "peft_config", {}).values():
        start = str(getattr(adapter, "init_lora_weights", "")).lower()
        if beta and start.startswith(NOT_ZERO_AT_FIRST):
            raise ValueError(
                f"an adapter started by init_lora_weights={start!r} takes its first values out of the weights below "
                f"it: without the adapter they are not the model that was loaded, and beta={beta:g} would hold the "
                "policy to that; set beta to 0 or start the adapter at zero"
            )


def check_rows(model: Any, preset: Preset) -> None:
    """Refuse siblings' states as evidence where a row of TRL's padded batches sees its neighbour.

    Raises:
        ValueError: If one does, and the preset reads states of siblings.
    """
    if preset.needs_features and preset.reads_siblings and is_whole(model):
        check_row_isolation(model, packed=False)


def is_whole(model: nn.Module) -> bool:
    """Whether all weights are here: none is sharded, or not there yet."""
    return not any(each.numel() == 0 or each.is_meta for each in model.parameters())


def doubts(model: Any, generation_options: dict[str, Any]) -> Iterator[str]:
    """What is doubtful about the log-probabilities that training will compare with sampling, one sentence each.

    Args:
        model: The policy.
        generation_options: What `generate` is given; empty where another sampler is used.
    """
    changing = changing_options(generation_options, model.generation_config.to_dict()) if generation_options else {}
    own = {name: value for name, value in changing.items() if generation_options.get(name) is None}
    if own:
        named = ", ".join(f"{name}={value}" for name, value in own.items())
        yield (
            f"the model's own generation settings change what is sampled ({named}), and log-probabilities do not know: "
            "the gradient is biased; give neutral values in generation_kwargs, or take them out of the model's settings"
        )
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type"))
    border = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    if kind in ("longrope", "dynamic"):
        yield (
            f"rotary embeddings of the kind {kind!r} change for all tokens once a sequence is longer than {border}: "
            "where prompt and completion pass it, tokens sampled before have wrong first ratios; keep both below it"
        )
    if _counts_padding(model):
        yield (
            f"{config.model_type} counts the positions of padding in training and not in sampling: rollouts whose "
            "prompt is shorter than the longest of its batch have wrong first ratios; use prompts of one length, or a "
            "model with rotary positions"
        )


def _counts_padding(model: Any) -> bool:
    """Whether the logits behind a left-padded prompt are other ones than without the padding."""
    config = model.config.get_text_config()
    if not is_whole(model):
        return False
    ids = torch.arange(1, 7, device=model.device)[None] % config.vocab_size
    padded = nn.functional.pad(ids, (4, 0), value=0)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].float()
            mask = nn.functional.pad(torch.ones_like(ids), (4, 0))
            behind = model(input_ids=padded, attention_mask=mask).logits[0, -1].float()
    finally:
        model.train(was_training)
    return bool((alone - behind).abs().max() > CLOSE * alone.abs().max())


def switch_off_dropout(model: nn.Module) -> list[str]:
    """Set the shares of dropout that are numbers and no modules to 0, in modules and in their configurations.

    TRL switches off modules alone, and attention reads its share as a number.

    Returns:
        The names that had another value.
    """
    found = set()
    configurations = {id(each.config): each.config for each in model.modules() if hasattr(each, "config")}
    for holder in [*model.modules(), *configurations.values()]:
        for name, value in list(vars(holder).items() if hasattr(holder, "__dict__") else ()):
            if isinstance(value, float) and value > 0 and ("drop" in name or name.endswith("jitter_noise")):
                setattr(holder, name, 0.0)
                found.add(name)
    return sorted(found)


class WholeGenerations(TrainerCallback):  # type: ignore[misc]
    """Rounds `save_steps` where its number of steps is known only now: a share of so many epochs."""

    def on_train_begin(self, args: PoiseConfig, state: Any, control: Any, **named: Any) -> None:
        if args.save_steps < 1:
            state.save_steps = args.whole_generations(state.save_steps)
