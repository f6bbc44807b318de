"""The published probe: how the paper and its authors' release turn features into baselines.

A value v_i = g(z_i) for every rollout from a probe fitted on *earlier* steps; the target of a row is its siblings'
mean reward; the baseline of a rollout is its siblings' mean value (arXiv:2605.07579, eq. 11-13, algorithm 1; the
settings of the release: per-domain windows, PCA before the scaler, RLOO for the first steps). Nothing is improved
here; this is what poise's own baseline is measured against.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.baselines import (
    Recipe,
    Step,
    cross_rollout_baselines,
    group_mean_baselines,
    rloo_baselines,
    sibling_means,
    step_of,
)
from poise.batch import Batch
from poise.extras import required_extra
from poise.features.rollout_features import MEAN_ENTROPIES
from poise.features.scalars import check_scalar_names
from poise.paper.value_probes import COMBINATIONS, PROBES, fitted_ensemble, standard_scaler

_PCA_SEED = 42

TARGETS = ("siblings", "group", "own")
"""What the published probe may be fitted to."""

Part = Float[Tensor, "rows width"]


@dataclass(frozen=True)
class EarlierStepsRecipe(Recipe):
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
    def exact(self) -> bool:  # type: ignore[override]
        """Whether no rollout's baseline is made from the rollout: of the probe's options, only the swap matters."""
        return self.cross_rollout

    needs_features = True
    needs_siblings = True
    reads_siblings = True
    weighted = False

    def build(self) -> "PublishedBaseline":
        """The method, before its first step."""
        return PublishedBaseline(self)

    @property
    def control(self) -> bool:  # type: ignore[override]
        """Whether a rollout's own value is its baseline."""
        return not self.cross_rollout

    @property
    def scalars_read(self) -> tuple[str, ...]:  # type: ignore[override]
        """All scalars that are named."""
        return self.scalars

    needs_features = True
    needs_siblings = True
    reads_siblings = True
    values_see_own_rollout = True


@dataclass(frozen=True)
class Window:
    """Feature rows of earlier steps and their targets."""

    prompt: Float[Tensor, "rows prompt_width"]
    completion: Float[Tensor, "rows completion_width"]
    scalars: Float[Tensor, "rows scalars"]
    keys: Int[Tensor, " rows"]
    """One number a prompt, the same in all steps."""
    targets: Float[Tensor, " rows"]

    def followed_by(self, later: "Window") -> "Window":
        """These rows, then `later`'s."""
        pairs = [(getattr(self, name), getattr(later, name)) for name in self.__dataclass_fields__]
        return Window(*(torch.cat(pair) for pair in pairs))

    def __getitem__(self, rows: Tensor | slice) -> "Window":
        return Window(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


Probe = Callable[[Window], Float[Tensor, " rows"]]


def fitted_probe(window: Window, recipe: EarlierStepsRecipe) -> Probe:
    """Fit PCA, scaler and probes on a window; returns the map from rows to values in [0, 1]."""
    reduce_prompt = _reduction(window.prompt, recipe.prompt_components)
    reduce_completion = _reduction(window.completion, recipe.completion_components)

    def columns(rows: Window) -> Float[Tensor, "rows columns"]:
        parts = [reduce_prompt(rows.prompt), reduce_completion(rows.completion), rows.scalars]
        return torch.cat([part.to(torch.float64) for part in parts], dim=1)

    seen = columns(window)
    scaled = standard_scaler(seen)
    ensemble = fitted_ensemble(
        scaled(seen),
        window.targets,
        window.keys,
        recipe.fitted_members,
        combination=recipe.combination,
        stacking_penalty=recipe.stacking_penalty,
    )
    return lambda rows: ensemble(scaled(columns(rows)))


def _reduction(part: Part, components: int | None) -> Callable[[Part], Part]:
    if components is None or part.shape[1] == 0:
        return lambda rows: rows
    from sklearn.decomposition import PCA

    with np.errstate(invalid="ignore"):  # rows that are all alike have no variance to explain
        pca = PCA(min(components, *part.shape), svd_solver="randomized", random_state=_PCA_SEED).fit(part.numpy())
    return lambda rows: torch.from_numpy(pca.transform(rows.numpy()))


class PublishedBaseline:
    """Windows and probes of the published method, one for all rows or one for each domain.

    Where a probe cannot be solved there is none, and RLOO stands in until one can be.
    """

    def __init__(self, recipe: EarlierStepsRecipe) -> None:
        with required_extra("trl", "a published preset"):
            import_module("sklearn")
        self.recipe = recipe
        self.steps = 0
        self.windows: dict[str, Window] = {}
        self.probes: dict[str, Probe] = {}

    def step(self, batch: Batch) -> Step:
        """Baselines and values (NaN while there is no probe) of a batch by the old probe; then learn from the batch."""
        assert batch.features is not None
        rewards, groups, gradable, domains = batch.rewards, batch.groups, batch.gradable, batch.domains
        means, siblings = sibling_means(rewards[:, None], groups, gradable)
        match self.recipe.target:
            case "siblings":
                targets = means[:, 0]
            case "group":
                targets = group_mean_baselines(rewards, groups, gradable)
            case _:
                targets = rewards
        keys = torch.tensor(batch.keys, dtype=torch.int64)
        rows = Window(batch.features.prompt, batch.features.completion, batch.scalars, keys, targets)
        routes = domains if self.recipe.own_domain else [""] * len(domains)
        index = {route: torch.tensor([r == route for r in routes]) for route in dict.fromkeys(routes)}
        baselines = rloo_baselines(rewards, groups, gradable)
        values = torch.full_like(rewards, torch.nan)
        solved = not any(self._can_be_fitted(route) and route not in self.probes for route in index)
        for route, inside in index.items():
            if route in self.probes and self.steps >= self.recipe.rloo_steps:
                values[inside] = baselines[inside] = self.probes[route](rows[inside])
                if self.recipe.cross_rollout:
                    baselines[inside] = cross_rollout_baselines(
                        values[inside], groups[inside].unique(return_inverse=True)[1], gradable[inside]
                    )
        self.steps += 1
        for route, inside in index.items():
            new = rows[inside & gradable & (siblings > 0)]
            keep = self.recipe.domain_window_rows.get(route, self.recipe.window_rows)
            window = self.windows.get(route)
            self.windows[route] = (new if window is None else window.followed_by(new))[slice(-keep, None)]
        self._refit(list(index))
        return step_of(batch, baselines, values, metrics={"inexact_share": float(not solved)})

    def _refit(self, routes: list[str]) -> None:
        for route, window in self.windows.items():
            if (route in routes or route not in self.probes) and self._can_be_fitted(route):
                try:
                    self.probes[route] = fitted_probe(window, self.recipe)
                except (np.linalg.LinAlgError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                    self.probes.pop(route, None)

    def _can_be_fitted(self, route: str) -> bool:
        return self.steps >= self.recipe.rloo_steps and route in self.windows and len(self.windows[route].targets) > 1

    def state_dict(self) -> dict[str, Any]:
        """Plain arrays: the windows. The probes follow from them."""
        state: dict[str, Any] = {"steps": self.steps, "routes": list(self.windows)}
        for k, window in enumerate(self.windows.values()):
            state |= {f"window.{k}.{name}": getattr(window, name) for name in window.__dataclass_fields__}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, and fit the probes again."""
        self.steps = state["steps"]
        self.windows = {
            route: Window(*(state[f"window.{k}.{name}"] for name in Window.__dataclass_fields__))
            for k, route in enumerate(state["routes"])
        }
        self.probes = {}
        self._refit([])
