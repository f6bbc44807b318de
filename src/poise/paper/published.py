"""The published probe: how do the paper and its authors' release turn features into baselines?

A value v_i = g(z_i) for every rollout from a probe fitted on *earlier* steps; the target of a row is its siblings'
mean reward; the baseline of a rollout is its siblings' mean value (arXiv:2605.07579, eq. 11-13, algorithm 1; the
settings of the release: per-domain windows, PCA before the scaler, RLOO for the first steps). Nothing is improved
here; this is what poise's own baseline is measured against.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poise.baselines import cross_rollout_baselines, group_mean_baselines, rloo_baselines, sibling_means
from poise.extras import required_extra
from poise.paper.value_probes import fitted_ensemble, standard_scaler
from poise.presets import EarlierStepsRecipe

_PCA_SEED = 42

Part = Float[Tensor, "rows width"]


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

    Attributes:
        solved: Whether every probe that the newest step asked for could be solved.
    """

    def __init__(self, recipe: EarlierStepsRecipe) -> None:
        with required_extra("trl", "a published preset"):
            import_module("sklearn")
        self.recipe = recipe
        self.steps = 0
        self.windows: dict[str, Window] = {}
        self.probes: dict[str, Probe] = {}
        self.solved = True

    def step(
        self,
        rows: Window,
        rewards: Float[Tensor, " rows"],
        *,
        groups: Int[Tensor, " rows"],
        gradable: Bool[Tensor, " rows"],
        domains: list[str],
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Baselines and values (NaN while there is no probe) of a batch by the old probe; then learn from the batch.

        `rows.targets` is overwritten: the targets are made here, from the group's rewards.
        """
        means, siblings = sibling_means(rewards[:, None], groups, gradable)
        match self.recipe.target:
            case "siblings":
                targets = means[:, 0]
            case "group":
                targets = group_mean_baselines(rewards, groups, gradable)
            case _:
                targets = rewards
        rows = replace(rows, targets=targets)
        routes = domains if self.recipe.own_domain else [""] * len(domains)
        index = {route: torch.tensor([r == route for r in routes]) for route in dict.fromkeys(routes)}
        baselines = rloo_baselines(rewards, groups, gradable)
        values = torch.full_like(rewards, torch.nan)
        self.solved = not any(self._can_be_fitted(route) and route not in self.probes for route in index)
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
        return baselines, values

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
