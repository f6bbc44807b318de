"""What did the runs of a comparison show? Numbers for tables, made from the runs' files alone.

The rule: only seeds that are complete in every arm count, so that every difference is paired.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from poise.lab.compare.analysis import (
    Interval,
    Reach,
    common_horizon,
    first_reach,
    mean_interval,
    median_reach,
    noise_floor,
    paired_difference,
    ratio_of_sums,
    ratio_verdict,
    reach_ratio,
    restricted_mean,
    value_at,
    verdict,
)
from poise.lab.compare.plan import Run
from poise.lab.compare.schedule import Schedule

CLOCKS = ("seconds", "cpu_seconds", "rollouts", "tokens")
"""What may be counted until a target is reached."""
GRADIENT_REFERENCES = ("grpo", "rloo")
"""Arms that the noise of others is compared with, where they are there."""


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
        return [math.nan if line["accuracy"] is None else float(line["accuracy"]) for line in self.lines]

    @property
    def final_accuracy(self) -> float:
        """The mean of the last three evaluations; 0 where the policy diverged."""
        final = self.summary["final_accuracy"]
        return math.nan if final is None else float(final)

    def times(self, clock: str) -> list[float]:
        """Of the evaluations."""
        return [float(line[clock]) for line in self.lines]

    def reach(self, target: float, clock: str) -> Reach:
        """When the target was reached."""
        return first_reach(self.times(clock), self.accuracies, target)

    def share(self, part: str, whole: str) -> float:
        """Of two counts at the end."""
        return float(self.lines[-1][part]) / max(1.0, float(self.lines[-1][whole]))

    def summed(self, name: str) -> float | None:
        """A gradient's number over all its measurements; None where there was none."""
        found = [float(line[name]) for line in self.lines if line.get(name) is not None]
        return sum(found) if found else None


def complete_curves(schedule: Schedule) -> tuple[dict[str, list[Curve]], list[Curve]]:
    """For each arm its runs, seed by seed, and the runs of the arm that was run twice.

    Raises:
        ValueError: If fewer than two seeds are complete in every arm.
        LookupError: If learning rates are not chosen yet.
    """
    comparison = schedule.comparison
    chosen = schedule.learning_rates()
    runs = comparison.compared_runs(chosen)
    whole = [
        seed
        for seed in range(comparison.num_seeds)
        if all(schedule.summary(run) is not None for run in runs if run.seed == seed)
    ]
    if len(whole) < 2:
        raise ValueError(f"an interval over seeds needs 2 seeds that are complete in every arm, got {len(whole)}")
    curves = []
    for run in runs:
        summary = schedule.summary(run)
        if run.seed in whole and summary is not None:
            curves.append(Curve(run, schedule.lines(run), summary))
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
        difference = paired_difference(finals[arm], finals[comparison.reference])
        arms[arm] = {
            "learning_rate": of_arm[0].run.learning_rate,
            "learning_rates_tried": {f"{rate:g}": score for rate, score in schedule.scores(arm).items()},
            "final_accuracy": asdict(mean_interval(finals[arm])),
            "final_accuracies": finals[arm],
            "difference": asdict(difference),
            "verdict": "reference" if arm == comparison.reference else verdict(difference, floor),
            "time_to_target": {
                clock: _time_to_target(of_arm, reference, target, clock)
                | {"verdict": _time_verdict(of_arm, reference, target, clock, by_chance[clock])}
                for clock in CLOCKS
            },
            "accuracy_at_equal": {
                clock: asdict(mean_interval([value_at(each.times(clock), each.accuracies, end) for each in of_arm]))
                for clock, end in shared.items()
            },
            **{name: _mean([each.lines[-1][name] for each in of_arm]) for name in ("updates", "entropy")},
            **{clock: _mean([each.times(clock)[-1] for each in of_arm]) for clock in CLOCKS},
            "zero_advantage_prompts": _mean([each.share("silent_prompts", "prompts") for each in of_arm]),
            "zero_advantage_tokens": _mean([each.share("silent_tokens", "tokens") for each in of_arm]),
            "surplus_tokens": _mean([each.share("surplus_tokens", "tokens") for each in of_arm]),
            "unfilled_steps": _mean([each.lines[-1]["unfilled_steps"] for each in of_arm]),
            "memory_mib": _mean([each.summary["memory_mib"] for each in of_arm]),
            "memory_mib_of_training": _mean(
                [each.summary["memory_mib"] - each.summary["memory_mib_before_training"] for each in of_arm]
            ),
            "critic_mib": _mean([each.summary["critic_mib"] for each in of_arm]),
            "gradient": _gradient(of_arm, {name: curves[name] for name in GRADIENT_REFERENCES if name in curves}),
        }
    return {
        "conditions": asdict(comparison.conditions),
        "seeds": [each.run.seed for each in reference],
        "side_by_side": sorted({each.summary["side_by_side"] for of_arm in curves.values() for each in of_arm}),
        "reference": comparison.reference,
        "target": target,
        "accuracy_before": _mean([each.accuracies[0] for each in reference]),
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


def _time_verdict(
    ours: Sequence[Curve], theirs: Sequence[Curve], target: float, clock: str, by_chance: dict[str, Any]
) -> str:
    if ours is theirs:
        return "reference"
    ratio = _time_to_target(ours, theirs, target, clock)["ratio"]
    return ratio_verdict(Interval(**ratio), Interval(**by_chance["ratio"]))


def _gradient(ours: Sequence[Curve], references: Mapping[str, Sequence[Curve]]) -> dict[str, Any] | None:
    """Noise to signal, over that of other arms, and the squared bias over the squared signal; None unmeasured."""
    mine = _noise_and_signal(ours)
    if mine is None:
        return None
    noise, signal = (sum(each[place] for each in mine) for place in (0, 1))
    found: dict[str, Any] = {"noise_to_signal": noise / signal if signal > 0 else math.nan, "ratios": {}}
    for name, theirs in references.items():
        other = _noise_and_signal(theirs)
        if other is not None and theirs is not ours:
            found["ratios"][name] = asdict(ratio_of_sums(mine, other))
    biases = [each.summed("gradient/bias") for each in ours]
    known = [each for each in biases if each is not None]
    if len(known) == len(ours):
        found["bias"] = asdict(mean_interval(known))
        found["bias_to_signal"] = sum(known) / signal if signal > 0 else math.nan
    return found


def _noise_and_signal(curves: Sequence[Curve]) -> list[tuple[float, float]] | None:
    found = [(each.summed("gradient/trace"), each.summed("gradient/signal")) for each in curves]
    whole = [(trace, signal) for trace, signal in found if trace is not None and signal is not None]
    return whole if len(whole) == len(curves) else None


def _mean(numbers: Sequence[float | int | None]) -> float | None:
    known = [float(number) for number in numbers if number is not None]
    return sum(known) / len(known) if known else None
