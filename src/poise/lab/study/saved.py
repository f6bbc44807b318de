"""Baselines of rollouts that a training run has saved, each as if it had been used there.

Pairs tell the error of a baseline to the true expected reward without a single new rollout
(`poise.diagnostics.pairs`), so one saved batch compares all of them. A baseline that is fitted on earlier steps is
fitted on the other half of the prompts instead; every other one is made as in a run's first step. A file of something
else (another version, another model, another task) is refused before anything is computed from it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import poise
from poise.batch import prompt_groups
from poise.diagnostics.pairs import PairScoreboard
from poise.evaluate.statistics import NORMAL_95
from poise.evaluate.tables import NONE, markdown_table, with_interval
from poise.lab.progress import Watch, silent
from poise.lab.study.estimators import ready_after_one_step, recipe_fields, row_features
from poise.lab.study.rollouts import Reader
from poise.storage.rollouts import rollout_lines

FEWEST_PROMPTS = 16
_TEXTS = ("prompt", "completion", "domain")


@dataclass(frozen=True)
class SavedRollouts:
    """Rollouts of a run, one entry each."""

    prompts: list[str]
    completions: list[str]
    domains: list[str]
    rewards: Float[Tensor, " rows"]
    """NaN where ungradable."""
    groups: Int[Tensor, " rows"]
    """Rollouts of one prompt in one step are siblings."""

    @property
    def gradable(self) -> Bool[Tensor, " rows"]:
        """Whether each could be graded."""
        return ~self.rewards.isnan()


def saved_rollouts(paths: Sequence[Path]) -> SavedRollouts:
    """Read rollout files of a run, `runs/NAME/rollouts/step-000123.parquet`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is not one of a run, of another version, or too little is in it to compare baselines.
    """
    lines = [line for path in paths for line in rollout_lines(path)]
    groups = prompt_groups([(line["step"], line["prompt"]) for line in lines])
    rewards = torch.tensor([math.nan if r["reward"] is None else r["reward"] for r in lines], dtype=torch.float64)
    gradable = ~rewards.isnan()
    num_pairs = int((torch.bincount(groups[gradable]) > 1).sum())
    if not num_pairs:
        raise ValueError("no prompt has two graded rollouts: baselines are compared by pairs of them")
    if num_pairs < FEWEST_PROMPTS:
        raise ValueError(
            f"baselines are compared on {FEWEST_PROMPTS} prompts with two graded rollouts or more, got {num_pairs}: "
            "give more files"
        )
    if bool((rewards[gradable] == rewards[gradable][0]).all()):
        raise ValueError(
            f"every rollout earned {float(rewards[gradable][0]):g}: rewards that are all equal say nothing about any "
            "baseline"
        )
    prompts, completions, domains = ([line[name] or "" for line in lines] for name in _TEXTS)
    return SavedRollouts(prompts, completions, domains, rewards, groups)


def saved_features(
    rollouts: SavedRollouts, reader: Reader, *, model: str
) -> tuple[poise.Features, Float[Tensor, " rows"]]:
    """Features and score-norm weights of saved rollouts, read anew; a completion is taken to have ended by itself.

    Args:
        rollouts: Their texts are spelled again.
        reader: Of the model that drew them, or a later one, with one layer and one pooling window.
        model: Its name, for the sentence.

    Raises:
        ValueError: If the tokenizer cannot spell a prompt or a completion.
    """
    tokenizer = reader.tokenizer
    prompts = [_spelled(_messages(text), tokenizer, "prompt", model=model) for text in rollouts.prompts]
    completions = [
        [*_spelled(text, tokenizer, "completion", model=model, special=False), tokenizer.eos_token_id]
        for text in rollouts.completions
    ]
    read, [pool] = reader(prompts, completions), reader.pools
    return row_features(read.prompt[pool][:, 0], read.completion[pool][:, 0], read.scalars), read.weights


def _messages(prompt: str) -> str | list[dict[str, str]]:
    """A prompt as it was saved: text, or messages as JSON."""
    try:
        messages = json.loads(prompt)
    except ValueError:
        return prompt
    is_chat = isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages)
    return messages if is_chat else prompt


def _spelled(
    text: str | list[dict[str, str]], tokenizer: Any, what: str, *, model: str, special: bool = True
) -> list[int]:
    """Token ids of a text, or of a chat up to where the completion begins."""
    if not isinstance(text, str):
        if not tokenizer.chat_template:
            raise ValueError(f"the rollouts have chats as prompts, and the tokenizer of {model} has no chat template")
        text, special = tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=True), False
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    if (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids) or (what == "prompt" and not ids):
        raise ValueError(
            f"the tokenizer of {model} cannot spell the {what} {text[:60]!r}: these rollouts are of another model or "
            "task"
        )
    return ids


@dataclass(frozen=True)
class SwappedBaseline:
    """One baseline on the saved rollouts."""

    name: str
    exact: bool
    """Whether it leaves the rollout out; if not, its errors say nothing."""
    value_error: float
    """Mean squared error to V."""
    value_error_interval: tuple[float, float]
    variance_reduction: float
    ceiling_share: float
    weighted_risk: float
    """Sum w (r - b)^2 / sum w r^2; the weights are 1 without a model."""


@dataclass(frozen=True)
class SwappedBaselines:
    """Every baseline that has its evidence."""

    lines: list[SwappedBaseline]
    noise_ceiling: float
    num_prompts: int
    """With two graded rollouts or more."""
    left_out: list[str]
    """Presets that read features, where there are none."""


def swapped_baselines(
    rollouts: SavedRollouts,
    features: poise.Features | None,
    weights: Float[Tensor, " rows"] | None,
    *,
    watch: Watch = silent,
) -> SwappedBaselines:
    """Every preset's baselines of the same rollouts, and what pairs tell of each.

    Args:
        rollouts: What a run saved.
        features: None: presets that read some are left out.
        weights: Score-norm weights; None for 1.
        watch: Told which is made next.
    """
    presets = {"leave-out mean": poise.preset("poise-value", evidence=("constant", "domain"))} | dict(poise.PRESETS)
    able = {name: each for name, each in presets.items() if features is not None or not each.needs_features}
    gradable, rewards = rollouts.gradable, rollouts.rewards[rollouts.gradable]
    w = torch.ones_like(rewards) if weights is None else weights.double()[gradable]
    lines, ceiling, num_prompts = [], math.nan, 0
    for place, (name, preset) in enumerate(able.items()):
        watch(f"making {name}", place, len(able))
        baselines = _swapped(preset, rollouts, features, weights)
        board = PairScoreboard().observe(rollouts.rewards.nan_to_num(), baselines, rollouts.groups, gradable)
        told = board.metrics()
        ceiling, num_prompts = told["noise_ceiling"], int(board.sums[0])
        lines.append(
            SwappedBaseline(
                name,
                preset.exact,
                told["value_error"],
                _value_error_interval(rollouts, baselines),
                told["variance_reduction"],
                told["ceiling_share"],
                float((w * (rewards - baselines[gradable]) ** 2).sum() / (w * rewards**2).sum()),
            )
        )
    return SwappedBaselines(lines, ceiling, num_prompts, [name for name in presets if name not in able])


def _swapped(
    preset: poise.Preset,
    rollouts: SavedRollouts,
    features: poise.Features | None,
    weights: Float[Tensor, " rows"] | None,
) -> Float[Tensor, " rows"]:
    """The baselines of one preset; rows of prompts with a single rollout are left at 0."""
    siblings = torch.bincount(rollouts.groups)[rollouts.groups] > 1
    baselines = torch.zeros_like(rollouts.rewards)
    half = rollouts.groups % 2 == 0
    needs_earlier_steps = "rloo_steps" in recipe_fields(preset)
    steps = [(half, ~half), (~half, half)] if needs_earlier_steps else [(siblings,)]
    for each in steps:
        baseline = poise.OnlineBaseline(ready_after_one_step(preset, num_rows=len(half)))
        for inside in each:
            rows = (inside & siblings).nonzero()[:, 0]
            step = baseline.step(
                None if features is None else features.mapped(itemgetter(rows)),
                rollouts.rewards[rows],
                prompts=rollouts.groups[rows],
                domains=[rollouts.domains[row] for row in rows.tolist()],
                weights=None if weights is None or not preset.weighted else weights[rows],
            )
        baselines[rows] = step.baselines
    return baselines


def _value_error_interval(rollouts: SavedRollouts, baselines: Float[Tensor, " rows"]) -> tuple[float, float]:
    """The 95 % interval of the mean over prompts of (r - b)^2 - s^2, as of independent prompts."""
    index, r, b = (each[rollouts.gradable] for each in (rollouts.groups, rollouts.rewards, baselines))

    def summed(column: Float[Tensor, " rows"]) -> Float[Tensor, " prompts"]:
        return torch.zeros(int(index.max()) + 1, dtype=torch.float64).index_add_(0, index, column)

    count = summed(torch.ones_like(r))
    pairs = count > 1
    n = count[pairs]
    variances = (summed(r**2)[pairs] - summed(r)[pairs] ** 2 / n) / (n - 1)
    errors = summed((r - b) ** 2)[pairs] / n - variances
    mean, reach = float(errors.mean()), NORMAL_95 * float(errors.std()) / math.sqrt(len(errors))
    return mean - reach, mean + reach


def swapped_markdown(swapped: SwappedBaselines) -> str:
    """The comparison as a table."""
    rows = []
    for line in swapped.lines:
        told = [
            with_interval(line.value_error, line.value_error_interval, digits=4),
            f"{line.variance_reduction:.3f}",
            NONE if math.isnan(line.ceiling_share) else f"{line.ceiling_share:.3f}",
            f"{line.weighted_risk:.3f}",
        ]
        rows.append([line.name, *(told if line.exact else ["depends on the rollout itself", NONE, NONE, NONE])])
    heads = ["baseline", "error to V", "variance reduction", "share of ceiling", "weighted risk"]
    left_out = (
        f"\nWithout a model, and so without features: {', '.join(swapped.left_out)}.\n" if swapped.left_out else ""
    )
    return (
        f"{swapped.num_prompts} prompts with two graded rollouts or more; noise ceiling "
        f"{swapped.noise_ceiling:.2f}.\n\n{markdown_table(heads, rows)}{left_out}"
    )
