"""The five questions of somebody who sees a run for the first time, answered from what the run left behind.

What was subtracted from the rewards, why, is it any good, does the policy learn, what to do next. Each answer is a few
words, a sentence or two of detail, and the place on the page where its numbers are.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from poise.presets import PRESETS
from poise.report.alarms import Alarm
from poise.report.baseline_gain import CONSTANT, NONE, RLOO, Ratio
from poise.report.charts import TOO_LITTLE, Metrics, column, held_out, newest
from poise.report.rollout_files import RolloutBatch

FAR = 0.25
"""Of the rewards' range: mean distance of baseline and value from which the page says why."""


@dataclass(frozen=True)
class Answer:
    """One question with its answer."""

    question: str
    answer: str
    detail: str
    place: str
    """Anchor on the page."""
    mood: str = ""
    """"good", "bad" or neither."""


@dataclass(frozen=True)
class Example:
    """A rollout whose baseline lies far from its value, with the sentence that says why."""

    sentence: str
    step: int
    row: int


def answers(
    *,
    preset: str | None,
    metrics: Metrics,
    batches: Sequence[RolloutBatch],
    gains: Sequence[Ratio],
    alarms: Sequence[Alarm],
    path: str,
    finished: bool,
) -> list[Answer]:
    """The five answers; see the module.

    Args:
        preset: Of the run; None where it is not known.
        metrics: Lines of `metrics.jsonl`.
        batches: Rollouts of the run.
        gains: Of `baseline_gain.ratios`.
        alarms: Of `poise.report.alarms.alarms`.
        path: The run's folder, for commands.
        finished: Whether the run has come to its end.
    """
    return [
        what_was_subtracted(preset, batches, metrics),
        why(preset),
        is_it_good(preset, gains),
        is_it_learning(metrics),
        what_next(alarms, path, finished=finished, learning=bool(held_out(metrics, "accuracy")[0])),
    ]


def what_was_subtracted(preset: str | None, batches: Sequence[RolloutBatch], metrics: Metrics) -> Answer:
    """The mean of the baselines and of the rewards, lately."""
    question, named = "What was subtracted from the rewards?", f" Preset {preset}." if preset else ""
    if preset == "none":
        return Answer(question, "Nothing", "The preset is none: the advantage is the reward itself.", "baseline")
    late = batches[-max(1, len(batches) // 4) :] if batches else []
    baselines = np.concatenate([each.numbers("baseline") for each in late] or [np.zeros(0)])
    rewards = np.concatenate([each.rewards for each in late] or [np.zeros(0)])
    known = baselines[np.isfinite(baselines)]
    if not len(known) or not np.isfinite(rewards).any():
        mean = newest(metrics, "poise/baseline_mean")
        if mean is None:
            return Answer(question, TOO_LITTLE, f"The run has written no baselines yet.{named}", "baseline")
        return Answer(question, f"{mean:.2f} on average", f"Advantage = reward − baseline.{named}", "baseline")
    low, high = np.quantile(known, [0.1, 0.9])
    return Answer(
        question,
        f"A baseline: {known.mean():.2f} on average",
        f"Advantage = reward − baseline. Lately rewards are {np.nanmean(rewards):.2f} on average, and most baselines "
        f"lie from {low:.2f} to {high:.2f}: one for each rollout.{named}",
        "baseline",
    )


def why(preset: str | None) -> Answer:
    """What a baseline is for, and whether it keeps the gradient's direction."""
    if preset is not None and preset in PRESETS and not PRESETS[preset].exact:
        keeps = (
            "This preset's baselines may depend on the rollout itself, so that the gradient is not exactly unbiased."
        )
    else:
        keeps = (
            "A baseline never sees the rollout that it is subtracted from: the gradient keeps its direction on average."
        )
    return Answer(
        "Why subtract anything?",
        "To take noise out of the gradient",
        f"A policy that is pushed by how much better a rollout did than expected needs fewer rollouts. {keeps}",
        "why",
    )


def is_it_good(preset: str | None, gains: Sequence[Ratio]) -> Answer:
    """The noise that is left, against that of other baselines."""
    question = "Is the baseline any good?"
    if not gains:
        return Answer(
            question, TOO_LITTLE, "It takes some batches with two graded rollouts of a prompt to tell.", "baseline"
        )
    found = {each.against: each for each in gains}
    parts = [f"{found[name].ratio:.2f} of that of {name}" for name in (RLOO, CONSTANT) if name in found]
    none = found.get(NONE)
    if none is None or preset == "none":
        return Answer(question, "There is none", f"Its noise is {', and '.join(parts)}.", "baseline")
    if none.high < 1:
        words, mood = f"Yes: {1 - none.ratio:.0%} of the noise is gone", "good"
    elif none.low > 1:
        words, mood = f"No: it adds {none.ratio - 1:.0%} to the noise", "bad"
    else:
        words, mood = "No difference can be seen", ""
    return Answer(
        question,
        words,
        f"Lately the gradient's noise is {none.ratio:.2f} of that without a baseline "
        f"(95 %: {none.low:.2f} to {none.high:.2f})" + (f", {', and '.join(parts)}." if parts else "."),
        "baseline",
        mood,
    )


def is_it_learning(metrics: Metrics) -> Answer:
    """What was measured on held-out problems, first and last; else the reward in training."""
    question = "Is the policy learning?"
    for kind in ("reward", "accuracy"):
        steps, means, lows, highs = held_out(metrics, kind)
        if len(steps) < 2 or means[0] is None or means[-1] is None:
            continue
        change = means[-1] - means[0]
        reach = math.hypot(highs[0] - lows[0], highs[-1] - lows[-1]) / 2
        words, mood = {1: ("Yes", "good"), -1: ("No: it gets worse", "bad"), 0: ("Nothing can be seen yet", "")}[
            (change > reach) - (change < -reach)
        ]
        return Answer(
            question,
            f"{words}: {means[0]:.2f} → {means[-1]:.2f}",
            f"Held-out {kind} from step {steps[0]:g} to step {steps[-1]:g}: {change:+.3f} ± {reach:.3f} (95 %), on "
            "problems that are never trained on.",
            "learning",
            mood,
        )
    rewards = [y for y in column(metrics, "reward")[1] if y is not None]
    if len(rewards) < 8:
        return Answer(question, TOO_LITTLE, "Nothing was measured on held-out problems twice yet.", "learning")
    first, last = (float(np.mean(each)) for each in (rewards[: len(rewards) // 4], rewards[-(len(rewards) // 4) :]))
    return Answer(
        question,
        f"Reward in training: {first:.2f} → {last:.2f}",
        "Means of the first and the last quarter of the batches; nothing was measured on held-out problems twice.",
        "learning",
    )


def what_next(alarms: Sequence[Alarm], path: str, *, finished: bool, learning: bool) -> Answer:
    """The first alarm; without one, the next command."""
    question, place = "What to do next?", shlex.quote(path)
    if alarms:
        first = alarms[0].sentence
        return Answer(question, "Look at what is wrong", f"{first[0].upper()}{first[1:]}.", "alarms", "bad")
    if not finished:
        return Answer(
            question,
            "Let it train",
            f"No alarm so far. Read some rollouts meanwhile. A run that was stopped goes on with: poise train --config "
            f"{place}/config.yaml",
            "rollouts",
            "good",
        )
    return Answer(
        question,
        "Measure it, and read what it writes",
        f"No alarm. Next: poise eval {place}"
        + ("" if learning else ", for nothing was measured on held-out problems")
        + ". Longer: the same command with more --steps.",
        "rollouts",
        "good",
    )


def far_from_value(batches: Sequence[RolloutBatch]) -> Example | None:
    """The newest rollout with the largest distance of baseline and value, if it is large."""
    for batch in reversed(batches):
        values, baselines = batch.numbers("value"), batch.numbers("baseline")
        known = np.isfinite(values) & np.isfinite(baselines) & np.isfinite(batch.rewards)
        if not known.any():
            continue
        distance = np.where(known, values - baselines, -np.inf)
        row = int(distance.argmax())
        scale = max(1.0, float(np.ptp(batch.rewards[known])))
        if distance[row] < FAR * scale:
            return None
        r, v, b = batch.rewards[row], values[row], baselines[row]
        return Example(
            f"In step {batch.step} a rollout with reward {r:.2f} and value {v:.2f} has the baseline {b:.2f}, and so "
            f"the advantage {r - b:+.2f}. That is meant: failures are unlikely here and push the policy much harder "
            "than successes do, so that the baseline with the least noise lies near their reward, not near the value.",
            batch.step,
            row,
        )
    return None


def comparison_sentence(gain: Ratio) -> str:
    """What a ratio of noise means."""
    saved = {
        NONE: "Without any baseline, the advantage would be the reward.",
        RLOO: "RLOO subtracts the mean reward of the prompt's other rollouts.",
        CONSTANT: "One number for all prompts, the best one, which nobody knows beforehand.",
    }[gain.against]
    if gain.high < 1:
        return f"{saved} It would take {1 / max(gain.ratio, 1e-9):.1f} times the rollouts for the same precision."
    if gain.low > 1:
        return f"{saved} It would be less noisy here: {1 / gain.ratio:.2f} of the noise."
    return f"{saved} No difference can be seen."


def notes_of(summary: Mapping[str, Any], batches: Sequence[RolloutBatch]) -> list[str]:
    """A sentence for whatever the run does not have."""
    notes = []
    if not summary:
        notes.append("There is no summary.json: the run is still going, or it ended before its last step.")
    elif summary.get("stopped_early"):
        because = f" because {summary['stopped_because']}" if summary.get("stopped_because") else ""
        notes.append(f"The run was stopped after {summary.get('steps')} steps, before its last one{because}.")
    if not batches:
        notes.append(
            "There are no rollout files (under verl they are kept with poise.keep_rollouts=true): what the baseline "
            "saves, how hard prompts are, and rollouts cannot be shown."
        )
    elif all(answer is None for batch in batches for answer in batch.columns["answer"]) and all(
        cut is None for batch in batches for cut in batch.columns["truncated"]
    ):
        notes.append(
            "The rollout files hold no gold answers, parts of rewards or cut-off marks: an older poise, or verl."
        )
    return notes
