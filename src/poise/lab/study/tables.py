"""What stands in a line of a study's tables, and from what is it made?

The rule: all lines of a table are judged by the same rollouts of the same held-out prompts; intervals and ratios
resample those prompts alike.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

import poise
from poise.diagnostics.pairs import PairScoreboard
from poise.lab.study.drawing import StudyRollouts
from poise.lab.study.estimators import Estimates, View, online_estimates
from poise.lab.study.judging import (
    MEASURES,
    Judged,
    absolute_error,
    interval,
    judged,
)
from poise.storage.run_directory import finite

LOWEST_CEILING = 0.1
"""Below this noise ceiling a task says nothing about any estimator."""
FEWEST_TRAINING_PROMPTS = 32

REFERENCE = "poise-value"
"""The estimator that all others are compared with."""


@dataclass(frozen=True)
class Noise:
    """How far rewards of held-out prompts can be told at all."""

    mean_reward: float
    value_variance: float
    ceiling: float
    """The largest share of the rewards' variance that any baseline could take off."""

    @property
    def says_nothing(self) -> bool:
        """Whether the task is too alike over prompts to compare estimators on it."""
        return not self.ceiling >= LOWEST_CEILING


def noise_of(rewards: Float[Tensor, "prompts draws"]) -> Noise:
    """What several rollouts of each prompt tell (`poise.diagnostics.pairs`)."""
    prompts, draws = rewards.shape
    groups = torch.arange(prompts).repeat_interleave(draws)
    flat = rewards.flatten()
    scoreboard = PairScoreboard().observe(flat, flat.mean().expand_as(flat), groups, torch.ones_like(flat).bool())
    count, _, square, products, *_ = scoreboard.sums.tolist()
    return Noise(float(flat.mean()), (products - square) / count, scoreboard.metrics()["noise_ceiling"])


@dataclass(frozen=True)
class Line:
    """One estimator in a table."""

    name: str
    measures: dict[str, float]
    """By the names of `poise.lab.study.judging.MEASURES`; NaN where one does not apply."""
    intervals: dict[str, tuple[float, float]]
    ratio: tuple[float, float, float] | None = None
    """The reference's mean absolute error over this one's, and its interval; below 1 the reference is nearer."""
    seconds: float | None = None
    cpu_seconds: float | None = None
    extra_bytes: int | None = None
    fold_errors: Float[Tensor, " training_prompts"] | None = None
    at: int | None = None
    """Where it stands on the axis of a sweep."""

    def as_json(self) -> dict[str, Any]:
        """In plain values; None where something does not apply."""
        shown: dict[str, Any] = {"name": self.name}
        for name, value in self.measures.items():
            shown[name] = {"value": finite(value)}
            if name in self.intervals:
                shown[name]["interval_95"] = [finite(end) for end in self.intervals[name]]
        if self.ratio is not None:
            mean, *ends = map(finite, self.ratio)
            shown["reference_mae_over_this"] = {"value": mean, "interval_95": ends}
        return shown | {name: getattr(self, name) for name in ("seconds", "cpu_seconds", "extra_bytes")}


@dataclass(frozen=True)
class Table:
    """Lines that are compared."""

    title: str
    about: str
    """What is compared, in a sentence or two."""
    lines: list[Line]
    shown: tuple[str, ...] = ("mae", "value_error", "pearson", "brier_skill")
    """Measures that are printed."""
    axis: str = ""
    """What a sweep goes over."""


@dataclass(frozen=True)
class Material:
    """What the tables of one task are made from."""

    training: StudyRollouts
    held_out: StudyRollouts
    judges: int
    """Draws of a held-out prompt that judge; later ones are its history."""
    view: View
    samples: list[NDArray[np.int64]] = field(repr=False)
    """Resampled held-out prompts."""
    watch: Callable[[str], None] = lambda what: None
    """Told what is fitted next."""

    @property
    def judging_rewards(self) -> Float[Tensor, "prompts judges"]:
        """Those that judge; the ones that are evidence are among them, but never judge what was made from them."""
        return self.held_out.rewards[:, : self.judges]

    def estimates(self, preset: poise.Preset, view: View | None = None, **options: Any) -> Estimates:
        """Of all held-out prompts by a baseline of the library."""
        return online_estimates(preset, self.training, self.held_out, view or self.view, **options)

    def line(
        self,
        name: str,
        estimates: Estimates,
        *,
        measures: Iterable[str] = ("mae", "value_error"),
        reference: Judged | None = None,
        at: int | None = None,
    ) -> Line:
        """An estimator's line; `measures` are those with intervals."""
        each = judged(estimates.values, self.judging_rewards)
        line = measured_line(name, each, self.samples, with_intervals=measures, reference=reference)
        return dataclasses.replace(
            line,
            seconds=estimates.seconds,
            cpu_seconds=estimates.cpu_seconds,
            extra_bytes=estimates.extra_bytes,
            fold_errors=estimates.fold_errors,
            at=at,
        )


def measured_line(
    name: str,
    each: Judged,
    samples: Sequence[NDArray[np.int64]],
    *,
    with_intervals: Iterable[str],
    reference: Judged | None = None,
) -> Line:
    """Measures of some estimates, and what resampled prompts say of some of them."""
    intervals = {m: interval([MEASURES[m](each[rows]) for rows in samples]) for m in with_intervals}
    ratio = None
    if reference is not None:
        ratio = (_ratio(reference, each), *interval([_ratio(reference[rows], each[rows]) for rows in samples]))
    return Line(name, {m: measure(each) for m, measure in MEASURES.items()}, intervals, ratio)


def side_by_side(parts: Sequence[Judged]) -> Judged:
    """One set of estimates with the choices of evidence of several."""
    names = [each.name for each in dataclasses.fields(Judged)]
    return Judged(*(np.concatenate([getattr(part, name) for part in parts], axis=1) for name in names))


def _ratio(reference: Judged, each: Judged) -> float:
    error = absolute_error(each)
    return absolute_error(reference) / error if error else math.nan
