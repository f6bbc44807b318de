"""A run of `poise-verl`: verl's own command, with poise's trainer and with everything checked before Ray is started."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points, version
from os import getenv
from pathlib import Path
from typing import Any, NoReturn

import hydra
import ray
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from poise.engines.verl.machine import check_machine, has_wandb_key
from poise.engines.verl.settings import PoiseSettings, checked_settings, sources_of_bias
from poise.storage.shown_text import spelled_out

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


def completed(config: DictConfig) -> DictConfig:
    """The configuration with what depends on the machine or on other options filled in, changed in place.

    Loggers that are not named are the console, and wandb where there is a key for it. The reward function is called by
    `guarded_score`, which survives it.
    """
    with open_dict(config):
        if config.trainer.logger is None:
            config.trainer.logger = ["console", "wandb"] if has_wandb_key() else ["console"]
        function = config.reward.custom_reward_function
        kwargs = dict(function.get("reward_kwargs") or {})
        if "poise_function" not in kwargs:
            kwargs |= {"poise_function": [function.path, function.name]}
            path = "pkg://poise.engines.verl.rewards"
            config.reward.custom_reward_function = {
                **function,
                "path": path,
                "name": "guarded_score",
                "reward_kwargs": kwargs,
            }
    return config


def check(config: DictConfig) -> PoiseSettings:
    """Everything that can be told from the configuration alone.

    Raises:
        ValueError: If poise or verl cannot serve the configuration.
    """
    try:
        OmegaConf.to_container(config, resolve=True)
        if "recipes" in config:  # hydra takes a group that it does not find for a value
            raise ValueError(
                f"there is no recipe {config.recipes!r}: --config-dir names the folder with recipes/ in it"
            )
        settings = checked_settings(config)
        validate_config(
            config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
        )
    except (OmegaConfBaseException, AssertionError) as error:
        raise ValueError(first_line(error)) from error
    return settings


def first_line(error: BaseException) -> str:
    """What a library says in its first line, or the name of what it raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@hydra.main(config_path="config", config_name="poise_ppo", version_base=None)  # type: ignore[untyped-decorator]
def composed_run(config: DictConfig) -> None:
    """Check, and train."""
    message = untested_release_warning(version("verl"))
    if message is not None:
        print(message)
    auto_set_device(config)
    try:
        settings = check(config)
        check_machine(config, settings)
    except (ValueError, OSError) as error:
        refuse(first_line(error))
    for source in sources_of_bias(config, settings):
        print(spelled_out(f"poise: the policy gradient is not exactly unbiased: {source}"))
    folder = Path(config.trainer.default_local_dir).absolute()
    print(spelled_out(f"poise: checkpoints, metrics.jsonl and rollouts go to {folder}: `poise report` shows them"))
    run_ppo(completed(config), task_runner_class=ray.remote(PoiseTaskRunner))


def composed_options(options: Sequence[str]) -> DictConfig:
    """The configuration that the command would run with, by the options of its line.

    Raises:
        ValueError: If they cannot be composed.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--config-dir", type=Path)
    known, overrides = parser.parse_known_args(options)
    if known.config_dir is not None:
        path = f"[pkg://verl.trainer.config,file://{known.config_dir.absolute()}]"
        overrides.append(f"hydra.searchpath={path}")
    try:
        with hydra.initialize_config_module("poise.engines.verl.config", version_base=None):
            config = hydra.compose("poise_ppo", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(first_line(error)) from error
    auto_set_device(config)
    return config


def run() -> None:
    """Run the command with the arguments of the process; one that cannot be composed or served is refused."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else hydra prints what went wrong and leaves by itself
    try:
        composed_run()
    except (HydraException, OmegaConfBaseException) as error:
        refuse(first_line(error))


def refuse(sentence: str) -> NoReturn:
    """Leave with one sentence and exit code 2."""
    print(spelled_out(f"poise-verl: {sentence}"), file=sys.stderr)
    raise SystemExit(2)
