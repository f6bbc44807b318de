"""The table of presets: a name for each baseline, and the recipe that builds its method."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from poise.baselines import Recipe, RewardsRecipe
from poise.paper.published import EarlierStepsRecipe
from poise.probe.learned import LeaveOnePromptOutRecipe


@dataclass(frozen=True)
class Preset:
    """A named baseline."""

    name: str
    recipe: Recipe

    @property
    def exact(self) -> bool:
        """The promise that, given the prompt, a rollout's baseline does not depend on that rollout.

        Changing the rollout's reward, features or weight moves it by less than 1e-9. It follows from the recipe, so
        that a preset with changed fields promises what holds of it.
        """
        return self.recipe.exact

    @property
    def control(self) -> bool:
        """Whether this is the biased control, a rollout's own value as its baseline: for comparisons alone."""
        return self.recipe.control

    @property
    def needs_features(self) -> bool:
        """Whether `OnlineBaseline.step` needs features."""
        return self.recipe.needs_features

    @property
    def needs_siblings(self) -> bool:
        """Whether every prompt needs at least two rollouts."""
        return self.recipe.needs_siblings

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the scalars that `OnlineBaseline.step` reads from the features."""
        return self.recipe.scalars_read

    @property
    def reads_siblings(self) -> bool:
        """Whether a prompt with a single rollout has less evidence than the preset makes use of."""
        return self.recipe.reads_siblings

    @property
    def weighted(self) -> bool:
        """Whether `OnlineBaseline.step` uses score-norm weights."""
        return self.recipe.weighted


_PROMPT = ("constant", "domain", "history", "prompt_states")
_NO_STATES = ("constant", "domain", "history", "sibling_reward", "sibling_entropies")


def _released(penalty: float, *, prompt_components: int, completion_components: int) -> EarlierStepsRecipe:
    """What the two model profiles of the authors' release share."""
    return EarlierStepsRecipe(
        penalty,
        prompt_components=prompt_components,
        completion_components=completion_components,
        domain_window_rows={"code": 3072, "other": 3072},
        own_domain=True,
        rloo_steps=16,
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset("poise", LeaveOnePromptOutRecipe(weighted=True)),
            Preset("poise-value", LeaveOnePromptOutRecipe()),
            Preset("paper", EarlierStepsRecipe()),
            Preset("released-qwen3-4b", _released(100.0, prompt_components=32, completion_components=64)),
            Preset("released-olmo3-7b", _released(1000.0, prompt_components=16, completion_components=128)),
            Preset("rloo", RewardsRecipe("rloo")),
            Preset("shrunk-rloo", LeaveOnePromptOutRecipe(evidence=("constant", "domain", "sibling_reward"))),
            Preset("prompt-only", LeaveOnePromptOutRecipe(evidence=_PROMPT)),
            Preset("poise-single", LeaveOnePromptOutRecipe(evidence=_PROMPT, weighted=True)),
            Preset("poise-light", LeaveOnePromptOutRecipe(evidence=_NO_STATES, weighted=True)),
            Preset("group-mean", RewardsRecipe("group-mean")),
            Preset("same-rollout", EarlierStepsRecipe(target="own", cross_rollout=False)),
            Preset("none", RewardsRecipe("none")),
        )
    }
)
"""Every preset by name."""


def preset(name: str, **changes: Any) -> Preset:
    """The preset of that name, with fields of its recipe changed: `preset("poise", window_rows=8192)`.

    Raises:
        ValueError: If there is no such preset, or its recipe has no such field.
    """
    if name not in PRESETS:
        raise ValueError(f"presets are {', '.join(PRESETS)}; got {name!r}")
    chosen = PRESETS[name]
    known = [f.name for f in fields(chosen.recipe)]
    for change in changes:
        if change not in known:
            raise ValueError(f"preset {name!r} has the fields {', '.join(known)}; got {change!r}")
    changes = {key: _tupled(value) for key, value in changes.items()}
    return replace(chosen, recipe=replace(chosen.recipe, **changes))


def _tupled(value: Any) -> Any:
    """Lists, as JSON and YAML have them, as the tuples that recipes hold."""
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value
