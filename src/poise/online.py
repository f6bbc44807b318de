"""The one stateful object: rewards and features in, baselines out, step after step.

Order of a step: what earlier steps left behind and this batch's evidence make the baselines; only then is the batch
added to what the next step will find. Another order is impossible to call.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.baselines import Step, sibling_means
from poise.batch import Batch, checked_batch
from poise.diagnostics.pairs import PairScoreboard
from poise.features.rollout_features import Features
from poise.presets import Preset
from poise.storage.whole_files import write_whole, written_whole

STATE_VERSION = 1


class OnlineBaseline:
    """Makes each step's baselines and learns from each step.

    Args:
        preset: What to make them from; see `poise.preset`.

    Attributes:
        method: What makes them, of the preset's recipe.
    """

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.method = preset.recipe.build()
        self._widths: list[int] | None = None
        self._scoreboard = PairScoreboard()

    def step(
        self,
        features: Features | None,
        rewards: Tensor | Sequence[float],
        *,
        prompts: Sequence[Hashable] | Tensor | NDArray[Any],
        domains: Sequence[str] | None = None,
        weights: Tensor | Sequence[float] | None = None,
    ) -> Step:
        """Baselines of this batch; then learn from it.

        Args:
            features: What `capture_hidden_states` gave; None for presets that do not need them.
            rewards: One a rollout; NaN where it could not be graded.
            prompts: One hashable a rollout; equal ones are siblings, wherever in the batch they stand.
            domains: One name a rollout; default one domain for all.
            weights: `score_norm_weights`; default 1 for every rollout. Not used by unweighted presets.

        Raises:
            ValueError: If the input is not whole (see `poise.batch.checked_batch`), or its features are of another
                width than those of earlier steps.
        """
        batch = checked_batch(
            features,
            rewards,
            prompts,
            domains,
            weights,
            needs_features=self.preset.needs_features,
            needs_siblings=self.preset.needs_siblings,
            scalars=self.preset.scalars,
        )
        if self._widths is not None and batch.widths != self._widths:
            raise ValueError(f"features must be {self._widths} wide as in earlier steps, got {batch.widths}")
        if len(batch.keys) == 0:
            nothing = torch.zeros(0, dtype=torch.float64)
            return Step(nothing, nothing, nothing, {}, {})
        self._widths = batch.widths
        step = self.method.step(batch)
        values = step.values
        if self.preset.recipe.values_see_own_rollout:
            values = sibling_means(values[:, None], batch.groups, batch.gradable)[0][:, 0]
        judged = torch.where(step.values.isnan(), step.baselines, values)
        self._scoreboard.observe(batch.rewards, judged, batch.groups, batch.gradable)
        metrics = self._scoreboard.metrics() | _metrics(batch, step.baselines) | step.metrics
        return replace(step, metrics={f"poise/{name}": number for name, number in metrics.items()})

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and lists of them: everything that the next step depends on."""
        return {
            "version": STATE_VERSION,
            "preset": self.preset.name,
            "recipe": _plain(asdict(self.preset.recipe)),
            "widths": self._widths,
            "scoreboard": self._scoreboard.sums,
            **{f"method.{k}": v for k, v in self.method.state_dict().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore exactly what `state_dict` gave.

        Raises:
            ValueError: If the state has another version, or was made by another preset or recipe.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"a baseline's state must have version {STATE_VERSION}, got {state.get('version')}")
        mine = {"preset": self.preset.name} | _plain(asdict(self.preset.recipe))
        theirs = {"preset": state["preset"]} | state["recipe"]
        for name in mine | theirs:
            if mine.get(name) != theirs.get(name):
                raise ValueError(
                    f"this baseline has {name} {mine.get(name)!r}, the state was made with {theirs.get(name)!r}"
                )
        self._widths = state["widths"]
        self._scoreboard.sums = state["scoreboard"]
        prefix = "method."
        self.method.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})

    def save(self, folder: Path | str, *, fitted_for: Mapping[str, Any] | None = None) -> None:
        """Write `poise.safetensors` (arrays) and `poise.json` (the rest, and the arrays' digest) into a folder.

        Each file is written aside and renamed, `poise.json` last: a folder never holds half a file, and arrays of
        another save are told by their digest.

        Args:
            folder: Where; it must exist.
            fitted_for: What the state is of use for (the model's shape, the layers that are read), in plain values;
                `restore` refuses another.
        """
        from safetensors.torch import save

        state = self.state_dict()
        arrays = {k: v.contiguous() for k, v in state.items() if isinstance(v, Tensor)}
        data = save(arrays)
        rest = {k: v for k, v in state.items() if k not in arrays}
        rest |= {"fitted_for": _plain(dict(fitted_for or {})), "arrays_sha256": sha256(data).hexdigest()}
        with written_whole(Path(folder) / "poise.safetensors") as place:
            place.write_bytes(data)
        write_whole(Path(folder) / "poise.json", json.dumps(rest, indent=1) + "\n")

    def restore(self, folder: Path | str, *, fitted_for: Mapping[str, Any] | None = None) -> None:
        """Load what `save` wrote.

        Args:
            folder: Where it was written.
            fitted_for: What the state must have been fitted for; None takes any.

        Raises:
            FileNotFoundError: If the folder has no saved baseline.
            ValueError: As `load_state_dict`; if the state was fitted for something else, or its two files are not of
                one save.
        """
        from safetensors.torch import load

        rest = json.loads((Path(folder) / "poise.json").read_text())
        data = (Path(folder) / "poise.safetensors").read_bytes()
        theirs, digest = rest.pop("fitted_for", {}), rest.pop("arrays_sha256", None)
        if digest != sha256(data).hexdigest():
            raise ValueError(f"poise.safetensors in {folder} is not the one that poise.json was written with")
        mine = theirs if fitted_for is None else _plain(dict(fitted_for))
        for name in mine | theirs:
            if mine.get(name) != theirs.get(name):
                raise ValueError(
                    f"this run has {name} {mine.get(name)!r}, the baseline in {folder} was fitted for "
                    f"{theirs.get(name)!r}"
                )
        self.load_state_dict(rest | load(data))


def _metrics(batch: Batch, baselines: Tensor) -> dict[str, float]:
    weights = torch.where(batch.gradable, batch.weights, 0)
    spent = float((weights * batch.rewards**2).sum())
    return {
        "baseline_mean": float(baselines[batch.gradable].mean()) if batch.gradable.any() else float("nan"),
        "weighted_risk": float((weights * (batch.rewards - baselines) ** 2).sum()) / spent if spent else float("nan"),
        "ungradable_share": 1 - float(batch.gradable.to(torch.float64).mean()),
    }


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    return json.loads(json.dumps(value))
