"""The ways of training that can be compared.

An arm is data: a trainer, a group size and the options in which it differs from the others. Everything that is not here
(prompts, initial weights, rollouts a step, updates a step, sampling, evaluation) is the same in every arm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from poise.presets import PRESETS


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    trainer: Literal["preset", "group", "dynamic", "critic"]
    """A baseline of `poise.OnlineBaseline`; stock TRL; stock TRL that resamples; a value model beside the policy."""
    group_size: int
    """Rollouts a prompt."""
    about: str
    """In a few words, for tables."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `PoiseConfig` (trainers "preset" and "critic") or of `trl.GRPOConfig`."""


def _preset(name: str) -> Arm:
    control = {"allow_biased_control": True} if PRESETS[name].control else {}
    return Arm(name, "preset", 2, f"preset {name}, 2 rollouts a prompt", {"preset": name, **control})


_HALF = "preset poise, the policy updated on half of the rollouts, drawn by the size of their gradients"
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
            Arm("critic", "critic", 2, "a value model of the policy's size reads the prompt", {"preset": "none"}),
        )
    }
)
"""Every arm by name."""


def arm_named(name: str) -> Arm:
    """The arm of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in ARMS:
        raise ValueError(f"arms are {', '.join(ARMS)}; got {name!r}")
    return ARMS[name]
