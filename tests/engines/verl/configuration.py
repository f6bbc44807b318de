"""What a run is asked for in tests: `poise-verl`'s configuration with overrides, as its command composes it."""

from hydra import compose, initialize_config_dir, initialize_config_module

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


def composed(*overrides, name="poise_ppo", folder=None):
    """The configuration `name`, of the package or of a folder."""
    given = {"version_base": None}
    with (
        initialize_config_module("poise.engines.verl.config", **given)
        if folder is None
        else initialize_config_dir(str(folder), **given)
    ):
        return compose(name, overrides=list(overrides))
