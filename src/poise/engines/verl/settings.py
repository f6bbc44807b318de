"""The `poise:` block of a run's configuration, and the options of verl that poise cannot serve.

Whatever can be told from the configuration alone is refused here, in one sentence, before Ray is started.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

import poise
from poise.features.rollout_features import MEAN_ENTROPIES

LOSS_NORMALIZATION = {
    "token-mean": "token",
    "token-sum": "constant",
    "seq-mean-token-sum": "constant",
    "seq-mean-token-sum-norm": "constant",
    "seq-mean-token-mean": "sequence",
}
"""What a rollout's gradient is divided by under each `loss_agg_mode` of verl."""

LOSS_MODES = {"sapo": "seq-mean-token-mean", "geo_mean": "seq-mean-token-mean"}
"""Losses of verl that divide by a rollout's length whatever `loss_agg_mode` says, and the mode that this is."""

STRATEGIES = ("fsdp", "fsdp2")
TRAINER_MODES = ("sync", "colocate_async", "separate_async")


@dataclass(frozen=True)
class PoiseSettings:
    """The `poise:` block; names and presets are the library's."""

    preset: str = "poise"
    preset_options: dict[str, Any] = field(default_factory=dict)
    layers: list[int] | None = None
    """Decoder layers whose hidden states are read, from 0. Default: one, at 0.6 of the depth."""
    pool_tokens: int = 10
    end_of_thinking: str | None = "</think>"
    domain_column: str = "data_source"
    """Column of the data set that names a prompt's domain."""
    update_share: float | int = 1.0
    """Share of the rollouts of a minibatch that the policy is updated on, above 0 and at most 1."""
    keep_rollouts: bool = False
    """Whether prompts, completions and advantages are kept as parquet beside the checkpoints."""

    @property
    def resolved_preset(self) -> poise.Preset:
        """The preset with its options; `ValueError` where the name or an option is unknown."""
        return poise.preset(self.preset, **(self.preset_options or {}))

    @property
    def needs_pass(self) -> bool:
        """Whether anything is read from the forward pass over the rollouts."""
        preset = self.resolved_preset
        return preset.needs_features or preset.weighted or self.update_share < 1


def checked_settings(config: DictConfig) -> PoiseSettings:
    """The settings of a run whose whole configuration poise can serve.

    Raises:
        ValueError: With one sentence, where it cannot.
    """
    given = OmegaConf.to_container(config.get("poise") or OmegaConf.create({}), resolve=True)
    known = [each.name for each in fields(PoiseSettings)]
    for name in given:
        if name not in known:
            raise ValueError(f"the poise block has the options {', '.join(known)}; got {name!r}")
    _check_reading(given.get("pool_tokens", 1), given.get("layers"))
    settings = PoiseSettings(**given)
    _check_preset(settings)
    _check_host(config)
    preset, rollouts = settings.resolved_preset, config.actor_rollout_ref.rollout.n
    if rollouts < 2 and preset.reads_siblings:
        raise ValueError(
            f"preset {settings.preset!r} reads a baseline from siblings: actor_rollout_ref.rollout.n must be at least "
            f"2, got {rollouts}; with one rollout a prompt, poise.preset=poise-single reads the prompt and its history"
        )
    _check_update_share(config, settings)
    return settings


def _check_preset(settings: PoiseSettings) -> None:
    preset = settings.resolved_preset  # names an unknown preset or option
    if preset.control:
        raise ValueError(f"preset {settings.preset!r} is a biased control for comparisons: nothing is trained with it")
    for name in preset.scalars:
        if name not in MEAN_ENTROPIES:
            raise ValueError(f"verl's workers read the scalars {', '.join(MEAN_ENTROPIES)}; got {name!r}")


def _check_reading(pool_tokens: Any, layers: Any) -> None:
    if not isinstance(pool_tokens, int) or pool_tokens < 1:
        raise ValueError(f"hidden states are pooled over 1 token or more, got poise.pool_tokens={pool_tokens}")
    if layers is None:
        return
    if not isinstance(layers, list) or not layers or not all(isinstance(each, int) and each >= 0 for each in layers):
        raise ValueError(f"poise.layers is a list of decoder layers, counted from 0; got {layers}")


def _check_update_share(config: DictConfig, settings: PoiseSettings) -> None:
    share, actor = settings.update_share, config.actor_rollout_ref.actor
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"poise.update_share must lie above 0 and be at most 1, got {share}")
    if share == 1:
        return
    if loss_normalization(config) != "constant":
        raise ValueError(
            "poise.update_share below 1 leaves the gradient unbiased only under a loss with a constant normaliser, "
            f"such as loss_agg_mode seq-mean-token-sum-norm; got {aggregation(config)!r}"
        )
    if actor.use_kl_loss or actor.entropy_coeff:
        raise ValueError(
            "poise.update_share below 1 draws rollouts by their advantages, and a term without them would be wrong: "
            f"actor.use_kl_loss must be false and actor.entropy_coeff 0, got {actor.use_kl_loss} and "
            f"{actor.entropy_coeff}"
        )


def _check_host(config: DictConfig) -> None:
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    correction = config.algorithm.get("rollout_correction") or {}
    if config.algorithm.adv_estimator != "poise":
        raise ValueError(
            f"poise-verl makes the advantages: algorithm.adv_estimator must be 'poise', got "
            f"{config.algorithm.adv_estimator!r}"
        )
    if not trainer.use_v1:
        raise ValueError("poise extends verl's V1 trainer: trainer.use_v1 must be true, got false")
    if trainer.v1.trainer_mode not in TRAINER_MODES:
        raise ValueError(
            f"poise runs in the trainer modes {', '.join(TRAINER_MODES)}; got trainer.v1.trainer_mode="
            f"{trainer.v1.trainer_mode!r}"
        )
    if actor.strategy not in STRATEGIES:
        raise ValueError(
            f"hidden states are read in verl's engines {', '.join(STRATEGIES)}; got actor_rollout_ref.actor.strategy="
            f"{actor.strategy!r}, an engine without poise's plug-in"
        )
    if correction.get("bypass_mode"):
        raise ValueError(
            "features come from the pass over old log-probs: algorithm.rollout_correction.bypass_mode=True skips that "
            "pass and must be False"
        )
    if config.critic.enable:
        raise ValueError("the baseline takes the place of a critic: critic.enable must not be true")
    if actor.loss_agg_mode not in LOSS_NORMALIZATION:
        raise ValueError(f"poise knows the loss_agg_mode {', '.join(LOSS_NORMALIZATION)}; got {actor.loss_agg_mode!r}")


def aggregation(config: DictConfig) -> str:
    """How the policy loss is really averaged, a `loss_agg_mode`: two losses have a way of their own."""
    actor = config.actor_rollout_ref.actor
    mode: str = LOSS_MODES.get(actor.policy_loss.loss_mode, actor.loss_agg_mode)
    return mode


def loss_normalization(config: DictConfig) -> str:
    """What the loss divides a rollout's gradient by: "constant", "token" or "sequence"."""
    return LOSS_NORMALIZATION[aggregation(config)]


def sources_of_bias(config: DictConfig, settings: PoiseSettings) -> list[str]:
    """Why the policy gradient is not exactly unbiased even in the first minibatch; empty where it is."""
    actor, sources = config.actor_rollout_ref.actor, []
    loss = actor.policy_loss.loss_mode
    if not settings.resolved_preset.exact:
        sources.append(f"the baseline {settings.preset!r} depends on the rollout that it is subtracted from")
    said = f"the loss {loss!r}" if loss in LOSS_MODES else f"loss_agg_mode {aggregation(config)!r}"
    if loss_normalization(config) == "token":
        sources.append(f"{said} divides by a number of sampled tokens, a bias of order 1 / rollouts")
    if loss_normalization(config) == "sequence":
        ignored = ", whatever loss_agg_mode says" if loss in LOSS_MODES else ""
        sources.append(f"{said} divides every rollout by its own length{ignored}, a bias with any baseline")
    if loss == "geo_mean":
        sources.append("the loss 'geo_mean' averages over the rows of a micro-batch, not over those of the minibatch")
    if config.algorithm.filter_groups.enable:
        sources.append("algorithm.filter_groups chooses prompts by the rewards of the rollouts that are trained on")
    return sources
