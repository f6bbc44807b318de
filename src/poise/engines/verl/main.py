"""`poise-verl`: what verl's own command does, with poise's trainer.

The rule: what cannot work is said before Ray is started, or, where the model has to be looked at, before a worker is.
"""

from importlib import import_module
from importlib.metadata import entry_points, version
from os import getenv
from typing import Any

import hydra
import ray
from omegaconf import DictConfig
from packaging.version import Version
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from poise.engines.verl.settings import checked_settings, sources_of_bias

TESTED_RELEASE = (0, 9)
PLUGIN = "poise.engines.verl.plugin"


class PoiseTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):  # type: ignore[misc]
    """verl's task runner, the process that drives a run, with poise's trainer in the place of verl's."""

    def run(self, config: DictConfig) -> Any:
        """Run the training to its end."""
        require_plugin()
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

        from poise.engines.verl.trainer import TRAINERS

        # verl looks a trainer up by its mode, and compares the mode's name in more places than this one.
        TRAINER_REGISTRY.update(TRAINERS)
        return super().run(config)


def require_plugin() -> None:
    """Make sure that verl loads poise's plug-in in its processes; a failure of it is hidden by verl.

    Raises:
        RuntimeError: If the entry point is not installed, is switched off, or could not be imported; with the cause.
    """
    if PLUGIN not in [each.value for each in entry_points(group="verl.plugins")]:
        raise RuntimeError(
            "verl finds poise by an entry point of the group 'verl.plugins', and there is none: poise-rlvr must be "
            "installed on every node, a path to its source is not enough"
        )
    wanted = getenv("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if wanted != "auto" and "poise" not in [name.strip() for name in wanted.split(",")]:
        raise RuntimeError(
            "verl is told not to load poise's plug-in: VERL_USE_EXTERNAL_PLUGINS must be 'auto' or name 'poise', got "
            f"{wanted!r}"
        )
    try:
        import_module(PLUGIN)
    except Exception as cause:
        raise RuntimeError(f"verl could not load poise's plug-in: {type(cause).__name__}: {cause}") from cause


def untested_release_warning(verl_version: str) -> str | None:
    """Say in one sentence that a verl release is outside the tested range; `None` if it is inside."""
    if Version(verl_version).release[:2] == TESTED_RELEASE:
        return None
    return (
        f"poise is tested with verl>=0.9.1,<0.10 and found verl {verl_version}: run its tests in tests/engines/verl "
        "before trusting its baselines"
    )


def check(config: DictConfig) -> None:
    """Everything that can be told before Ray is started.

    Raises:
        ValueError: If poise or verl cannot serve the configuration.
    """
    settings = checked_settings(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    for source in sources_of_bias(config, settings):
        print(f"poise: the policy gradient is not exactly unbiased: {source}")


@hydra.main(config_path="config", config_name="poise_ppo", version_base=None)  # type: ignore[untyped-decorator]
def main(config: DictConfig) -> None:
    """Train with poise on verl; every option of verl's `ppo_trainer` and the block `poise`."""
    message = untested_release_warning(version("verl"))
    if message is not None:
        print(message)
    auto_set_device(config)
    try:
        check(config)
    except ValueError as error:
        raise SystemExit(f"poise-verl: {error}") from None
    run_ppo(config, task_runner_class=ray.remote(PoiseTaskRunner))


if __name__ == "__main__":
    main()
