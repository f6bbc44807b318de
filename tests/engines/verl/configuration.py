"""What a run is asked for in tests: `poise-verl`'s configuration with overrides, as its command composes it."""

from copy import deepcopy
from functools import cache

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

MODULE = "poise.engines.verl.config"

SMALL = [
    "actor_rollout_ref.model.path=nowhere",
    "actor_rollout_ref.rollout.name=sampler",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "trainer.n_gpus_per_node=1",
    "trainer.device=cpu",
]


@cache
def defaults():
    """The whole configuration with nothing overridden: hydra takes a second for it."""
    with initialize_config_module(MODULE, version_base=None):
        return compose("poise_ppo")


def composed(*overrides):
    """The configuration with overrides."""
    given = [OverridesParser.create().parse_override(override) for override in overrides]
    if any("recipes" in each.key_or_group or "searchpath" in each.key_or_group for each in given):
        with initialize_config_module(MODULE, version_base=None):
            return compose("poise_ppo", overrides=list(overrides))
    config = deepcopy(defaults())
    for each in given:
        OmegaConf.update(config, each.key_or_group, each.value(), force_add=each.is_add())
    return config
