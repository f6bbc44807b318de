"""Which baselines have a name, and what exactly is each?

A preset is a name, a promise (`exact`) and a recipe. Recipes are data: what is fitted on what. Everything between
reward-only baselines and poise's default is a corner of one ridge regression, chosen by the evidence blocks that are
switched on; the published method and the settings and options of its authors' release stand beside it as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from poise.features.rollout_features import MEAN_ENTROPIES
from poise.features.scalars import check_scalar_names
from poise.paper.value_probes import COMBINATIONS, PROBES
from poise.probe.evidence import BLOCKS, FEATURE_BLOCKS, SIBLING_BLOCKS

TARGETS = ("siblings", "group", "own")
"""What the published probe may be fitted to."""


@dataclass(frozen=True)
class LeaveOnePromptOutRecipe:
    """One ridge on switched-on evidence, fitted on window and batch, the prompt's own batch rows left out exactly."""

    evidence: tuple[str, ...] = BLOCKS
    """Evidence blocks that may be used, of `poise.probe.evidence.BLOCKS`."""
    scalars: tuple[str, ...] = MEAN_ENTROPIES
    """What the block `sibling_entropies` holds, of `scalars.SCALARS`; a name that begins with `own:` is yours."""
    weighted: bool = False
    """Weigh rows by score norms: the target is then the score-norm-weighted mean of rewards, not the value."""
    penalties: tuple[float, ...] = (3.0, 30.0, 300.0, 3000.0)
    """Ridge penalties to choose from, per unit of mean row weight; hidden-state columns have variance 1."""
    components: tuple[int, ...] = (40,)
    """Numbers of principal axes to choose from, for each hidden state."""
    window_rows: int = 4096
    """Rows of earlier steps that stay in the fit."""
    projection_size: int = 256
    """Directions on which each wide hidden state is projected."""
    projection_seed: int = 0
    risk_decay: float = 0.9
    """How the record of what candidates cost fades with each step."""
    history_forgetting: float = 0.5
    """How a prompt's earlier rewards fade each time that it is seen."""
    history_prompts: int = 1_000_000
    """Prompts that are remembered, those seen last."""

    def __post_init__(self) -> None:
        for block in self.evidence:
            if block not in BLOCKS:
                raise ValueError(f"evidence blocks are {', '.join(BLOCKS)}; got {block!r}")
        check_scalar_names(self.scalars, own=True)
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be positive numbers, got {self.penalties}")
        if self.window_rows < 0 or self.projection_size < 1:
            raise ValueError(
                f"window_rows must be at least 0 and projection_size at least 1, "
                f"got {self.window_rows} and {self.projection_size}"
            )

    exact = True  # whatever the evidence: each prompt is left out of its own fit

    @property
    def needs_features(self) -> bool:
        """Whether a switched-on block is read from a forward pass."""
        return not FEATURE_BLOCKS.isdisjoint(self.evidence)

    @property
    def needs_siblings(self) -> bool:
        """Whether nothing but siblings is known, so that a lone rollout has no baseline."""
        return bool(self.evidence) and SIBLING_BLOCKS.issuperset(self.evidence)

    @property
    def reads_siblings(self) -> bool:
        """Whether siblings are part of the evidence."""
        return not SIBLING_BLOCKS.isdisjoint(self.evidence)


@dataclass(frozen=True)
class EarlierStepsRecipe:
    """The published probe: features -> siblings' mean reward, fitted on earlier steps, values swapped between siblings.

    Features are [prompt; completion; scalars], each hidden part reduced by PCA where a size is given, then all
    standardised; a probe with a free intercept; values clipped to [0, 1].
    """

    penalty: float = 0.01
    probe: str = "ridge"
    """The kind of probe, of `poise.paper.value_probes.PROBES`."""
    members: tuple[tuple[str, float], ...] = ()
    """Instead of `probe` and `penalty`: the probes of an ensemble, each a kind and a penalty."""
    combination: str = "mean"
    """How the members' values become one: "mean", or "stacked" by a ridge on values of prompts they had not seen."""
    stacking_penalty: float = 0.01
    target: str = "siblings"
    """What a row's probe is fitted to: "siblings", their mean reward; "group", the mean with the row's own in it; or
    "own", that alone. The others make poorer values (they tell the own outcome, which nobody may use), and are as
    exact: targets are of earlier steps."""
    cross_rollout: bool = True
    """A rollout's baseline is its siblings' mean value. False is biased: its own value."""
    scalars: tuple[str, ...] = MEAN_ENTROPIES
    """Of `poise.features.scalars.SCALARS`; a name that begins with `own:` is yours."""
    prompt_components: int | None = None
    completion_components: int | None = None
    window_rows: int = 4096
    """Rows that are kept, for each domain."""
    domain_window_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows that are kept for domains that differ from `window_rows`."""
    own_domain: bool = False
    """Fit one probe for each domain instead of one for all."""
    rloo_steps: int = 1
    """First steps, whose baseline is the siblings' mean reward while the window fills."""

    def __post_init__(self) -> None:
        check_scalar_names(self.scalars, own=True)
        for member in self.members:
            match member:
                case (str(), int() | float()):
                    continue
            raise ValueError(f"a member is a kind and a penalty, such as ('ridge', 0.01); got {member!r}")
        for kind, penalty in self.fitted_members:
            if kind not in PROBES:
                raise ValueError(f"probes are {', '.join(PROBES)}; got {kind!r}")
            if not min(penalty, self.stacking_penalty) > 0:
                raise ValueError(f"a probe's penalty must be positive, got {min(penalty, self.stacking_penalty)}")
        for name, allowed in (("combination", COMBINATIONS), ("target", TARGETS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @property
    def fitted_members(self) -> tuple[tuple[str, float], ...]:
        """Kind and penalty of every probe that is fitted."""
        return self.members or ((self.probe, self.penalty),)

    @property
    def exact(self) -> bool:
        """Whether no rollout's baseline is made from the rollout: of the probe's options, only the swap matters."""
        return self.cross_rollout

    needs_features = True
    needs_siblings = True
    reads_siblings = True
    weighted = False


@dataclass(frozen=True)
class RewardsRecipe:
    """A baseline made of this prompt's rewards alone: "rloo", "group-mean" or "none"."""

    kind: str

    needs_features = False
    weighted = False

    def __post_init__(self) -> None:
        if self.kind not in ("rloo", "group-mean", "none"):
            raise ValueError(f"kind is one of rloo, group-mean, none, got {self.kind!r}")

    @property
    def exact(self) -> bool:
        """Whether the own reward stays out of the baseline."""
        return self.kind != "group-mean"

    @property
    def needs_siblings(self) -> bool:
        """Whether a lone rollout has no baseline."""
        return self.kind == "rloo"

    @property
    def reads_siblings(self) -> bool:
        """Whether siblings' rewards are part of the baseline."""
        return self.kind != "none"


@dataclass(frozen=True)
class Preset:
    """A named baseline."""

    name: str
    recipe: LeaveOnePromptOutRecipe | EarlierStepsRecipe | RewardsRecipe

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
        return isinstance(self.recipe, EarlierStepsRecipe) and not self.recipe.cross_rollout

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
        recipe = self.recipe
        if isinstance(recipe, LeaveOnePromptOutRecipe):
            return recipe.scalars if "sibling_entropies" in recipe.evidence else ()
        return recipe.scalars if isinstance(recipe, EarlierStepsRecipe) else ()

    @property
    def reads_siblings(self) -> bool:
        """Whether a prompt with a single rollout has less evidence than the preset makes use of."""
        return self.recipe.reads_siblings

    @property
    def weighted(self) -> bool:
        """Whether `OnlineBaseline.step` uses score-norm weights."""
        return self.recipe.weighted


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
            Preset("prompt-only", LeaveOnePromptOutRecipe(evidence=("constant", "domain", "history", "prompt_states"))),
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
