"""Estimates of what a held-out prompt is worth, each from one rollout of it.

Every estimator is fitted on the same pairs, the first two rollouts of each training prompt, and reads the same
evidence, one rollout of the held-out prompt; no held-out reward but that of the evidence reaches it. Baselines are
steps of `poise.OnlineBaseline`: one on the training pairs, then one on held-out rows of weight zero, which take no part
in any fit.

Dimensions: P held-out prompts, E choices of evidence (a held-out prompt's draws with features, one at a time).
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import poise
from poise.features.rollout_features import MEAN_ENTROPIES
from poise.features.scalars import SCALARS
from poise.lab.study.rollouts import StudyRollouts
from poise.lab.study.settings import PAIR
from poise.probe.learned import LeaveOnePromptOutRecipe


@dataclass(frozen=True)
class View:
    """Which of the features that were read an estimator sees."""

    layer: int
    pool_tokens: int
    prompt_states: bool = True
    completion_states: bool = True


@dataclass(frozen=True)
class Estimates:
    """An estimator's values of held-out prompts, and what they took."""

    values: Float[Tensor, "prompts evidence"]
    seconds: float
    """To fit, of wall-clock time."""
    cpu_seconds: float | None
    """To fit, of all cores together; None where it was not taken down."""
    extra_bytes: int
    """State that is held beside the policy."""
    fold_errors: Float[Tensor, " training_prompts"] | None = None
    """For each training prompt the mean of (r - b)^2, b from fits without it; None where there are no such fits."""
    chosen: str = ""
    """What was chosen among several fits, in words."""
    each_epoch: Float[Tensor, "epochs prompts evidence"] | None = None
    """What was said after each epoch of each of those fits; None where it was not taken down."""


def features(rollouts: StudyRollouts, view: View, draws: Sequence[int]) -> poise.Features:
    """Features of some draws of every prompt as rows, prompt by prompt."""
    layer, num = rollouts.layers.index(view.layer), len(draws)
    index = torch.tensor(list(draws), dtype=torch.int64)
    prompt = rollouts.prompt_states[view.pool_tokens][:, layer].repeat_interleave(num, dim=0)
    completion = rollouts.completion_states[view.pool_tokens][:, index, layer].flatten(0, 1)
    return row_features(
        prompt if view.prompt_states else prompt[:, :0],
        completion if view.completion_states else completion[:, :0],
        rollouts.scalars[:, index].flatten(0, 1),
    )


def row_features(
    prompt: Float[Tensor, "rows width"],
    completion: Float[Tensor, "rows width2"],
    columns: Float[Tensor, "rows scalars"],
) -> poise.Features:
    """Features of rows whose every segment is there; the columns are `poise.features.scalars.SCALARS`."""
    scalars = dict(zip(SCALARS, columns.T, strict=True))
    entropies = torch.stack([scalars[name] for name in MEAN_ENTROPIES], dim=1)
    return poise.Features(prompt, completion, entropies, torch.zeros(len(prompt), 4, dtype=torch.bool), scalars)


def online_estimates(
    preset: poise.Preset,
    training: StudyRollouts,
    held_out: StudyRollouts,
    view: View,
    *,
    history: bool = False,
    own_domains: bool = True,
) -> Estimates:
    """What a baseline of the library says, fitted on one step of training pairs.

    Args:
        preset: Unweighted ones are fitted with all weights 1, `poise` with score-norm weights.
        training: Of each prompt the first two draws are the pair.
        held_out: Each draw with features is evidence in turn.
        view: What is read.
        history: Whether every prompt has earned something in an earlier step: its draws without features.
        own_domains: Whether baselines are told the prompts' domains.
    """
    baseline = poise.OnlineBaseline(_with_weights(ready_after_one_step(preset, num_rows=PAIR * len(training))))
    if history:
        _remember(baseline, training, held_out)
    weights = training.weights[:, :PAIR].flatten() if preset.weighted else torch.ones(PAIR * len(training))
    wall, cpu = time.perf_counter(), time.process_time()
    first = baseline.step(
        features(training, view, range(PAIR)),
        training.rewards[:, :PAIR].flatten(),
        prompts=[prompt for prompt in training.prompts for _ in range(PAIR)],
        domains=[domain for domain in training.domains for _ in range(PAIR)] if own_domains else None,
        weights=weights,
    )
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    errors = (training.rewards[:, :PAIR] - first.baselines.unflatten(0, (-1, PAIR))) ** 2
    held = sum(
        each.numel() * each.element_size() for each in baseline.state_dict().values() if isinstance(each, Tensor)
    )
    return Estimates(
        _held_out_values(baseline, held_out, view, own_domains=own_domains),
        seconds,
        cpu_seconds,
        held,
        errors.mean(dim=1) if "evidence" in recipe_fields(preset) else None,
    )


def ready_after_one_step(preset: poise.Preset, *, num_rows: int) -> poise.Preset:
    """The preset with so many rows in its window, and with a probe after its first step."""
    fields, recipe = recipe_fields(preset), preset.recipe
    changes: Any = {"window_rows": max(num_rows, getattr(recipe, "window_rows", 0))} if "window_rows" in fields else {}
    changes |= {"rloo_steps": 1} if "rloo_steps" in fields else {}
    return dataclasses.replace(preset, recipe=dataclasses.replace(recipe, **changes))


def recipe_fields(preset: poise.Preset) -> set[str]:
    """The names of what a preset's recipe says."""
    return {each.name for each in dataclasses.fields(preset.recipe)}


def _with_weights(preset: poise.Preset) -> poise.Preset:
    """The preset, made to heed weights, so that those of zero can keep rows out of its fit."""
    if "weighted" not in recipe_fields(preset):
        return preset
    heeding: Any = {"weighted": True}
    return dataclasses.replace(preset, recipe=dataclasses.replace(preset.recipe, **heeding))


def _held_out_values(
    baseline: poise.OnlineBaseline, held_out: StudyRollouts, view: View, *, own_domains: bool
) -> Float[Tensor, "prompts evidence"]:
    """The baseline of a rollout of which nothing is known, beside each draw as its only sibling."""
    num = held_out.featured
    evidence = features(held_out, view, range(num))
    # Rows: the evidence, then the rollout that asks, which has no reward; its own features are not read.
    keys = held_out_keys(held_out)
    step = baseline.step(
        evidence.mapped(lambda part: torch.cat([part, part])),
        torch.cat([held_out.rewards[:, :num].flatten(), torch.full((len(keys),), torch.nan, dtype=torch.float64)]),
        prompts=keys + keys,
        domains=[domain for domain in held_out.domains for _ in range(num)] * 2 if own_domains else None,
        weights=torch.zeros(2 * len(keys)),
    )
    return step.baselines[len(keys) :].unflatten(0, (len(held_out), num))


def held_out_keys(held_out: StudyRollouts) -> list[str]:
    """One key for each prompt and choice of evidence: they are not told of each other."""
    return [f"{prompt}\n{draw}" for prompt in held_out.prompts for draw in range(held_out.featured)]


def _remember(baseline: poise.OnlineBaseline, training: StudyRollouts, held_out: StudyRollouts) -> None:
    """Let every prompt have been seen in an earlier step, with the rewards of its draws without features."""
    earlier_of_training = training.rewards[:, PAIR:]
    earlier_of_held_out = held_out.rewards[:, held_out.rewards.shape[1] - earlier_of_training.shape[1] :]
    rewards = torch.cat([earlier_of_training, earlier_of_held_out.repeat_interleave(held_out.featured, dim=0)])
    keys = [*training.prompts, *held_out_keys(held_out)]
    earlier = poise.OnlineBaseline(dataclasses.replace(baseline.preset, recipe=LeaveOnePromptOutRecipe(("constant",))))
    num = rewards.shape[1]
    earlier.step(None, rewards.flatten(), prompts=[key for key in keys for _ in range(num)])
    past = {name: each for name, each in earlier.state_dict().items() if name.startswith("method.history.")}
    baseline.load_state_dict(baseline.state_dict() | past)
