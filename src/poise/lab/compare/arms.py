"""Which ways of training can be compared, and what exactly is each?

An arm is data: a trainer, a group size and the options in which it differs from the others. Everything that is not here
(prompts, initial weights, rollouts a step, updates a step, sampling, evaluation) is the same in every arm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from poise.presets import PRESETS

MOST_DRAWS = 10
"""Generation batches that dynamic sampling draws for one step; then groups without a signal fill what is missing."""


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
    whole_refills: bool = True
    """Dynamic sampling refills by whole generation batches, as its authors do, or by as many prompts as are missing."""
    critic_reads: Literal["prompt", "rollout"] = "prompt"
    """The prompt alone, or siblings' rollouts, whose values are then swapped."""


def _preset(name: str) -> Arm:
    options: dict[str, Any] = {"preset": name}
    if PRESETS[name].control:
        options["allow_biased_control"] = True
    return Arm(name, "preset", 2, f"preset {name}, 2 rollouts a prompt", options)


def _updated_on(name: str, share: float) -> Arm:
    about = f"preset poise, the policy updated on {share:g} of the rollouts, drawn by the size of their gradients"
    return Arm(name, "preset", 2, about, {"preset": "poise", "update_share": share})


def _group(name: str, trainer: Literal["group", "dynamic"], about: str, **rest: Any) -> Arm:
    scaled = {"scale_rewards": "group", "epsilon": 0.2}
    loss: dict[str, Any] = {"loss_type": "grpo"}
    if trainer == "dynamic":
        loss = {"loss_type": "dapo", "epsilon_high": 0.28}
    return Arm(name, trainer, 8, about, scaled | loss, **rest)


ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        arm.name: arm
        for arm in (
            *map(_preset, PRESETS),
            _updated_on("poise-half", 0.5),
            _updated_on("poise-quarter", 0.25),
            _group("grpo", "group", "TRL's GRPO: group mean and deviation, 8 rollouts a prompt"),
            _group("dapo", "dynamic", "GRPO with token-level loss, clip-higher and dynamic sampling"),
            _group("dapo-frugal", "dynamic", "dapo, refills of as many prompts as are missing", whole_refills=False),
            Arm("critic", "critic", 2, "a value model of the policy's size reads the prompt", {"preset": "none"}),
            Arm(
                "critic-cross",
                "critic",
                2,
                "a value model of the policy's size reads the sibling",
                {"preset": "none"},
                critic_reads="rollout",
            ),
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


def check_shared_budget(arms: list[Arm], *, rollouts_a_step: int) -> None:
    """Refuse arms that cannot have the same number of rollouts in a step.

    Raises:
        ValueError: If a group size does not divide the rollouts of a step.
    """
    for arm in arms:
        if rollouts_a_step % arm.group_size:
            raise ValueError(
                f"all arms train on the same number of rollouts a step, and {rollouts_a_step} are no whole groups of "
                f"{arm.group_size}, which {arm.name} needs"
            )
