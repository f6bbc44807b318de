"""The ways of training that can be compared.

An arm is data: a trainer, a group size and the options in which it differs from the others. Everything that is not here
(prompts, initial weights, rollouts a step, updates a step, sampling, evaluation) is the same in every arm. One of the
user's own is a file with a `poise.baselines.Method`, named as `path.py:Name`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from poise.baselines import Method, Recipe
from poise.presets import PRESETS
from poise.tasks.reward_functions import imported


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    trainer: Literal["preset", "group", "dynamic", "critic", "method"]
    """A preset; stock TRL; stock TRL that resamples; a value model beside the policy; any other `Method`."""
    group_size: int
    """Rollouts a prompt."""
    about: str
    """In a few words, for tables."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `trl.GRPOConfig` (trainers "group" and "dynamic") or of `PoiseConfig`."""
    method: str = ""
    """Where the class of trainer "method" is: `package.module:Name` or `path.py:Name`."""
    version: str = ""
    """Of that file."""

    @property
    def folder(self) -> str:
        """Of its runs within a comparison."""
        return f"{self.name.rpartition(':')[2]}-{self.version}" if self.version else self.name


@dataclass(frozen=True)
class MethodRecipe(Recipe):
    """The recipe of a `Method` that is made without arguments; `needs_features` and `weighted` stand in its class."""

    place: str
    """`package.module:Name` or `path.py:Name`."""

    def build(self) -> Method:
        """The method, before its first step.

        Raises:
            ValueError: If there is no such class, it cannot be made, or it is no `Method`.
        """
        try:
            method = imported(self.place, what="method")()
        except TypeError as error:
            raise ValueError(f"the method {self.place!r} must be made without arguments: {error}") from error
        if not isinstance(method, Method):
            raise ValueError(f"{self.place!r} is no method: it needs step, state_dict and load_state_dict")
        return method

    @property
    def needs_features(self) -> bool:  # type: ignore[override]
        """Whether it reads `batch.features`."""
        return bool(getattr(imported(self.place, what="method"), "needs_features", False))

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        """Whether it reads `batch.weights`."""
        return bool(getattr(imported(self.place, what="method"), "weighted", False))


def _preset(name: str) -> Arm:
    control = {"allow_biased_control": True} if PRESETS[name].control else {}
    size = 1 if name == "poise-single" else 2
    return Arm(name, "preset", size, f"preset {name}, {_rollouts(size)}", {"preset": name, **control})


def _rollouts(size: int) -> str:
    return f"{size} rollout{'s' if size > 1 else ''} a prompt"


def _single(name: str, place: str, about: str) -> Arm:
    method = f"poise.lab.compare.one_rollout:{place}"
    return Arm(name, "method", 1, f"{about}, {_rollouts(1)}", {"preset": "none"}, method)


_HALF = "preset poise, the policy updated on half of the rollouts, drawn by the size of their gradients"
_CRITIC = "a value model of the policy's size reads the prompt"
_GROUP = {"scale_rewards": "group", "epsilon": 0.2}
ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        arm.name: arm
        for arm in (
            *map(_preset, PRESETS),
            Arm("poise-half", "preset", 2, _HALF, {"preset": "poise", "update_share": 0.5}),
            Arm(
                "grpo",
                "group",
                8,
                "TRL's GRPO: group mean and deviation, 8 rollouts a prompt",
                _GROUP | {"loss_type": "grpo"},
            ),
            Arm(
                "dapo",
                "dynamic",
                8,
                "GRPO with token-level loss, clip-higher and dynamic sampling",
                _GROUP | {"loss_type": "dapo", "epsilon_high": 0.28},
            ),
            Arm("critic", "critic", 2, f"{_CRITIC}, {_rollouts(2)}", {"preset": "none"}),
            Arm("critic-single", "critic", 1, f"{_CRITIC}, {_rollouts(1)}", {"preset": "none"}),
            _single("running-mean", "RunningMean", "the mean reward of earlier steps"),
            _single("spo", "ValueTracker", "a tracker of each prompt's rewards that forgets as the policy moves"),
            _single("remax", "GreedyReward", "the reward of a greedy rollout, which counts as sampled"),
        )
    }
)
"""Every arm by name."""


def arm_named(name: str) -> Arm:
    """The arm of that name, or one whose baseline is a class in a file, `path.py:Name`.

    That class may say by attributes what it needs: `needs_features`, `weighted` (both False unless given) and
    `group_size`, the rollouts a prompt (2). The folder of its runs is named by what the file holds, so that runs of
    another version are no runs of this one.

    Raises:
        ValueError: If there is none.
    """
    if name in ARMS:
        return ARMS[name]
    path, _, named = name.rpartition(":")
    if not path.endswith(".py"):
        raise ValueError(f"arms are {', '.join(ARMS)}, or a method in a file, path.py:Name; got {name!r}")
    recipe = MethodRecipe(name)
    size = getattr(recipe.build(), "group_size", 2)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"group_size of {name!r} must be a whole number of rollouts a prompt, got {size!r}")
    preset = "poise-single" if recipe.needs_features or recipe.weighted else "none"  # it says what TRL has to read
    version = sha256(Path(path).read_bytes()).hexdigest()[:8]
    about = f"method {named} of {Path(path).name}, {_rollouts(size)}"
    return Arm(name, "method", size, about, {"preset": preset}, name, version)
