"""Options that both engines take, refused in the same words, and what a saved baseline is of use for."""

from collections.abc import Mapping, Sequence
from typing import Any

from poise.presets import PRESETS, Preset


def check_reading(pool_tokens: Any, layers: Any, *, prefix: str = "") -> None:
    """Refuse a way of reading hidden states that is none, whatever the model.

    Args:
        pool_tokens: Last tokens of a segment that are averaged.
        layers: Decoder layers, counted from 0; None for the default one.
        prefix: What the engine's users write before these names.

    Raises:
        ValueError: If either is not what it has to be.
    """
    if not isinstance(pool_tokens, int) or pool_tokens < 1:
        raise ValueError(f"hidden states are pooled over 1 token or more, got {prefix}pool_tokens={pool_tokens}")
    if layers is None:
        return
    whole = isinstance(layers, Sequence) and all(isinstance(each, int) and each >= 0 for each in layers)
    if not whole or not layers:
        raise ValueError(f"{prefix}layers is a list of decoder layers, counted from 0; got {layers}")


def check_preset(preset: Preset, rollouts: int | None, *, option: str, biased_control: bool = False) -> None:
    """Refuse a preset that is no baseline to train with, or that reads siblings where there are none.

    Args:
        preset: With its options.
        rollouts: Rollouts a prompt.
        option: Name of the engine's option that says how many.
        biased_control: Whether the control for comparisons is asked for.

    Raises:
        ValueError: If it is one of these.
    """
    if preset.control and not biased_control:
        raise ValueError(
            f"the baseline {preset.name!r} is a rollout's own value: its gradient is biased on purpose, as a control "
            "for comparisons, and it is no baseline to train with"
        )
    if rollouts is None or rollouts < 1:
        raise ValueError(f"a prompt needs one rollout or more: {option} must be at least 1, got {rollouts}")
    if rollouts == 1 and preset.reads_siblings:
        alone = ", ".join(name for name, each in PRESETS.items() if not each.reads_siblings)
        raise ValueError(
            f"preset {preset.name!r} reads a baseline from siblings: {option} must be at least 2, got 1 (presets that "
            f"need no siblings: {alone})"
        )


def check_update_share(share: Any, *, normalization: str, loss: str, other_terms: Mapping[str, Any]) -> None:
    """Refuse updates on a share of the rollouts where the gradient's mean would not stay what it is.

    Args:
        share: Of a minibatch's rollouts.
        normalization: What the loss divides a rollout's gradient by.
        loss: The option of the engine that this follows from, with its value.
        other_terms: Options that add to the loss what is not multiplied by an advantage, and that are switched on.

    Raises:
        ValueError: If the share is none, or below 1 where it must not be.
    """
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"update_share must lie above 0 and be at most 1, got {share}")
    if share == 1:
        return
    if normalization != "constant":
        raise ValueError(
            "update_share below 1 leaves the gradient unbiased only under a loss with a constant normaliser, got "
            f"{loss}"
        )
    if other_terms:
        raise ValueError(
            "update_share below 1 draws rollouts by their advantages, and a term of the loss without them would be "
            f"wrong, got {', '.join(f'{name}={value}' for name, value in other_terms.items())}"
        )


def sources_of_bias(preset: Preset, normalization: str, *, loss: str) -> list[str]:
    """Why the policy gradient is not exactly unbiased even in the first minibatch; empty where it is.

    Args:
        preset: With its options.
        normalization: "constant", "token" or "sequence": what the loss divides a rollout's gradient by.
        loss: The option of the engine that this follows from, with its value.
    """
    sources = []
    if not preset.exact:
        sources.append(f"the baseline {preset.name!r} depends on the rollout that it is subtracted from")
    if normalization == "token":
        sources.append(f"{loss} divides by a number of sampled tokens, a bias of order 1 / rollouts")
    if normalization == "sequence":
        sources.append(f"{loss} divides every rollout by its own length, a bias with any baseline")
    return sources


def model_shape(config: Any) -> dict[str, Any]:
    """What is told of a model to say that a baseline is of no use for another one."""
    config = config.get_text_config()
    return {name: getattr(config, name) for name in ("model_type", "hidden_size", "num_hidden_layers")}


def fitted_for(
    config: Any, *, layers: Sequence[int], pool_tokens: int, end_of_thinking: str | None, normalization: str
) -> dict[str, Any]:
    """What a saved baseline that reads hidden states is of use for: others would be read as if they were these."""
    return model_shape(config) | {
        "layers": list(layers),
        "pool_tokens": pool_tokens,
        "end_of_thinking": end_of_thinking,
        "weights_divided_by_length": normalization == "sequence",
    }
