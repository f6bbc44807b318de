"""The `poise:` block of a run's configuration, and the options of verl that poise cannot serve.

Whatever can be told from the configuration alone is refused here, in one sentence, before Ray is started.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

import poise
from poise.engines import options
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
    options.check_reading(given.get("pool_tokens", 1), given.get("layers"), prefix="poise.")
    settings = PoiseSettings(**given)
    preset = settings.resolved_preset  # names an unknown preset or option
    options.check_preset(preset, config.actor_rollout_ref.rollout.n, option="actor_rollout_ref.rollout.n")
    for name in preset.scalars:
        if name not in MEAN_ENTROPIES:
            raise ValueError(f"verl's workers read the scalars {', '.join(MEAN_ENTROPIES)}; got {name!r}")
    _check_host(config)
    actor = config.actor_rollout_ref.actor
    options.check_update_share(
        settings.update_share,
        normalization=loss_normalization(config),
        loss=_loss(config),
        other_terms={name: actor[name] for name in ("use_kl_loss", "entropy_coeff") if actor[name]},
    )
    return settings


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


def _loss(config: DictConfig) -> str:
    """The option that says how the loss is averaged, with its value."""
    loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
    if loss in LOSS_MODES:
        return f"the loss {loss!r}, whatever loss_agg_mode says,"
    return f"loss_agg_mode {aggregation(config)!r}"


def sources_of_bias(config: DictConfig, settings: PoiseSettings) -> list[str]:
    """Why the policy gradient is not exactly unbiased even in the first minibatch; empty where it is."""
    sources = options.sources_of_bias(settings.resolved_preset, loss_normalization(config), loss=_loss(config))
    if config.actor_rollout_ref.actor.policy_loss.loss_mode == "geo_mean":
        sources.append("the loss 'geo_mean' averages over the rows of a micro-batch, not over those of the minibatch")
    if config.algorithm.filter_groups.enable:
        sources.append("algorithm.filter_groups chooses prompts by the rewards of the rollouts that are trained on")
    return sources
