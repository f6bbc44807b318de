"""The numbers of a comparison, made from the files of its runs.

Seeds are the independent draws, arms are compared seed by seed, and a run that does not get where it should is
censored, not dropped. Only seeds that are complete in every arm count.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from poise.evaluate.statistics import (
    Interval,
    Reach,
    common_horizon,
    first_reach,
    mean_interval,
    median_reach,
    noise_floor,
    ratio_verdict,
    reach_ratio,
    restricted_mean,
    smoothed,
    verdict,
)
from poise.lab.compare.plan import Run
from poise.lab.compare.schedule import Schedule

CLOCKS = ("seconds", "cpu_seconds", "rollouts", "tokens")
"""What may be counted until a target is reached."""


@dataclass(frozen=True)
class Curve:
    """A complete run."""

    run: Run
    lines: list[dict[str, Any]]
    """One for each evaluation, the first one before training."""
    summary: dict[str, Any]

    @property
    def accuracies(self) -> list[float]:
        """On the held-out prompts; NaN where nothing could be graded."""
        return [_number(line["accuracy"]) for line in self.lines]

    @property
    def final_accuracy(self) -> float:
        """The mean of the last three evaluations; 0 where the policy diverged."""
        return _number(self.summary["final_accuracy"])

    def times(self, clock: str) -> list[float]:
        """Of the evaluations."""
        return [float(line[clock]) for line in self.lines]

    def reach(self, target: float, clock: str) -> Reach:
        """When the target was reached."""
        return first_reach(self.times(clock), self.accuracies, target)

    def share(self, part: str, whole: str) -> float:
        """Of two counts at the end."""
        return float(self.lines[-1][part]) / max(1.0, float(self.lines[-1][whole]))

    def entropy_at(self, target: float) -> float | None:
        """Mean token entropy, in nats, of the policy that first reaches the target; None if it never does."""
        reach = self.reach(target, "rollouts")
        found = [line["entropy"] for line in self.lines if line["rollouts"] == reach.time]
        return found[0] if reach.reached else None


def complete_curves(schedule: Schedule) -> tuple[dict[str, list[Curve]], list[Curve]]:
    """For each arm its runs, seed by seed, and the runs of the arm that was run twice.

    Raises:
        ValueError: If fewer than two seeds are complete in every arm.
        LookupError: If learning rates are not chosen yet.
    """
    comparison = schedule.comparison
    runs = comparison.compared_runs(schedule.learning_rates())
    unfinished = {run.seed for run in runs if schedule.summary(run) is None}
    whole = [seed for seed in range(comparison.num_seeds) if seed not in unfinished]
    if len(whole) < 2:
        raise ValueError(f"an interval over seeds needs 2 seeds that are complete in every arm, got {len(whole)}")
    curves = [
        Curve(run, schedule.lines(run), summary)
        for run in runs
        if run.seed in whole and (summary := schedule.summary(run)) is not None
    ]
    of_arms = {arm: [each for each in curves if each.run.arm == arm and not each.run.twin] for arm in comparison.arms}
    return of_arms, [each for each in curves if each.run.twin]


def comparison_results(schedule: Schedule) -> dict[str, Any]:
    """Everything that tables and `compare.json` hold, in plain values.

    Raises:
        ValueError: If fewer than two seeds are complete in every arm.
        LookupError: If learning rates are not chosen yet.
    """
    comparison = schedule.comparison
    curves, twins = complete_curves(schedule)
    reference, twice = curves[comparison.reference], curves[comparison.twin_arm]
    finals = {arm: [each.final_accuracy for each in of_arm] for arm, of_arm in curves.items()}
    target = sum(finals[comparison.reference]) / len(reference)
    floor = noise_floor([a - b.final_accuracy for a, b in zip(finals[comparison.twin_arm], twins, strict=True)])
    by_chance = {clock: _time_to_target(twins, twice, target, clock) for clock in CLOCKS}
    shared = {clock: min(each.times(clock)[-1] for of_arm in curves.values() for each in of_arm) for clock in CLOCKS}
    arms = {}
    for arm, of_arm in curves.items():
        paired = zip(finals[arm], finals[comparison.reference], strict=True)
        difference = mean_interval([ours - theirs for ours, theirs in paired])
        times = {clock: _time_to_target(of_arm, reference, target, clock) for clock in CLOCKS}
        for clock, each in times.items():
            ratio, chance = Interval(**each["ratio"]), Interval(**by_chance[clock]["ratio"])
            each["verdict"] = "reference" if arm == comparison.reference else ratio_verdict(ratio, chance)
        before_training = [each.summary["memory_mib_before_training"] for each in of_arm]
        memory = [each.summary["memory_mib"] for each in of_arm]
        arms[arm] = {
            "learning_rate": of_arm[0].run.learning_rate,
            "learning_rates_tried": {f"{rate:g}": score for rate, score in schedule.scores(arm).items()},
            "final_accuracy": asdict(mean_interval(finals[arm])),
            "final_accuracies": finals[arm],
            "difference": asdict(difference),
            "verdict": "reference" if arm == comparison.reference else verdict(difference, floor),
            "time_to_target": times,
            "accuracy_at_equal": {
                clock: asdict(mean_interval([_value_at(each, clock, end) for each in of_arm]))
                for clock, end in shared.items()
            },
            **{name: _mean([each.lines[-1][name] for each in of_arm]) for name in ("updates", "entropy")},
            **{clock: _mean([each.times(clock)[-1] for each in of_arm]) for clock in CLOCKS},
            "entropy_at_target": _mean([each.entropy_at(target) for each in of_arm]),
            **_sharpness([each.summary.get("sharpness") for each in of_arm]),
            "zero_advantage_prompts": _mean([each.share("silent_prompts", "prompts") for each in of_arm]),
            "zero_advantage_tokens": _mean([each.share("silent_tokens", "tokens") for each in of_arm]),
            "surplus_tokens": _mean([each.share("surplus_tokens", "tokens") for each in of_arm]),
            "unfilled_steps": _mean([each.lines[-1]["unfilled_steps"] for each in of_arm]),
            "memory_mib": _mean(memory),
            "memory_mib_of_training": _mean([a - b for a, b in zip(memory, before_training, strict=True)]),
            "critic_mib": _mean([each.summary["critic_mib"] for each in of_arm]),
        }
    return {
        "conditions": asdict(comparison.conditions),
        "seeds": [each.run.seed for each in reference],
        "side_by_side": sorted({each.summary["side_by_side"] for of_arm in curves.values() for each in of_arm}),
        "reference": comparison.reference,
        "target": target,
        "accuracy_before": _mean([each.accuracies[0] for each in reference]),
        "sharpness_before": _sharpness([each.summary.get("sharpness_before") for each in twins]),
        "equal": shared,
        "twice": {"arm": comparison.twin_arm, "accuracy_floor": floor, "time_to_target": by_chance},
        "arms": arms,
        "versions": reference[0].summary["versions"],
    }


def _time_to_target(ours: Sequence[Curve], theirs: Sequence[Curve], target: float, clock: str) -> dict[str, Any]:
    """How many runs reach the target, when, and over the other arm's time."""
    mine, other = ([each.reach(target, clock) for each in arm] for arm in (ours, theirs))
    horizon = common_horizon(mine, other)
    return {
        "reached": sum(each.reached for each in mine),
        "runs": len(mine),
        "times": [[each.time, each.reached] for each in mine],
        "horizon": horizon,
        "restricted_mean": restricted_mean(mine, horizon),
        "median": median_reach(mine),
        "ratio": asdict(reach_ratio(mine, other, horizon)),
    }


def _sharpness(found: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Pass@k and distinct answers over the seeds that have them; None where one has not."""
    known = [each for each in found if each is not None]
    if len(known) < 2:
        return {"pass_at": None, "distinct_answers": None}
    passed = {k: asdict(mean_interval([_number(each["pass_at"][k]) for each in known])) for k in known[0]["pass_at"]}
    return {"pass_at": passed, "distinct_answers": asdict(mean_interval([each["distinct_answers"] for each in known]))}


def _value_at(curve: Curve, clock: str, time: float) -> float:
    """The mean of three evaluations at some time, straight lines between."""
    return float(np.interp(time, curve.times(clock), smoothed(curve.accuracies)))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(numbers: Sequence[float | int | None]) -> float | None:
    known = [float(number) for number in numbers if number is not None]
    return sum(known) / len(known) if known else None
