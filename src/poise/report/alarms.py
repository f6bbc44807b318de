"""Alarms of a run, from what it logged.

What the lines of metrics.jsonl say is enough. An alarm compares the newest `RECENT` generation batches with
those before; it is given once, and only an alarm about rewards that cannot be trusted stops the run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]

RECENT = 5
"""Generation batches that an alarm looks at."""
MOST_UNGRADABLE = 0.2
DRIFTED_SHARE, DRIFTED_TIMES = 0.05, 4
"""A cause drifts where it takes this share of rollouts, and so many times its share before."""
COLLAPSED_ENTROPY, COLLAPSED_TIMES = 0.05, 10
"""Nats a token, and how many times more it was at the start."""
MOST_TRUNCATED, EXPLODED_TIMES = 0.25, 2
"""Share of completions cut off at the maximum length, and how many times longer they are than at the start."""
SATURATED_SHARE = 0.95
"""Of groups whose rewards are all the same."""


@dataclass(frozen=True)
class Alarm:
    """What is wrong and what to do; whether going on is of no use."""

    name: str
    sentence: str
    stops: bool = False


def alarms(lines: Sequence[Line]) -> list[Alarm]:
    """The alarms that the lines of a run so far give; a line without a reward belongs to the batch before."""
    batches = [line for line in lines if "reward" in line]
    if len(batches) < RECENT:
        return []
    checks = (useless_alarm, ungradable_alarm, drift_alarm, entropy_alarm, length_alarm, saturation_alarm, value_alarm)
    return [alarm for check in checks if (alarm := check(batches)) is not None]


def useless_alarm(batches: Sequence[Line]) -> Alarm | None:
    """No reward so far has told anything apart."""
    if all(line["reward"] is None or math.isnan(line["reward"]) for line in batches):
        sentence = "no rollout so far has a reward: the reward functions return None or NaN for all of them"
        return Alarm("no rewards", f"{sentence}; look at what they get", stops=True)
    if all(line.get("reward_std") == 0 for line in batches):
        return Alarm(
            "equal rewards",
            f"all rewards so far are the same ({_mean(batches, 'reward'):g}), and nothing can be learnt from them: "
            "look at the reward functions, or take easier or harder problems",
        )
    return None


def ungradable_alarm(batches: Sequence[Line]) -> Alarm | None:
    """Too much could not be graded lately."""
    share = _mean(batches[-RECENT:], "poise/ungradable_share")
    if share is None or share <= MOST_UNGRADABLE:
        return None
    return Alarm(
        "ungradable",
        f"{share:.0%} of the rollouts of the last {RECENT} batches could not be graded{_causes(batches[-RECENT:])}: "
        "look at ungradable.jsonl, and mend the data or the verifier",
        stops=True,
    )


def drift_alarm(batches: Sequence[Line]) -> Alarm | None:
    """One cause has become much more frequent; stops where it makes rollouts ungradable."""
    before, recent = batches[:-RECENT], batches[-RECENT:]
    if len(before) < RECENT:
        return None
    for key in dict.fromkeys(
        key for line in recent for key in line if key.startswith(("reward/ungradable/", "reward/wrong/"))
    ):
        now, earlier = _mean(recent, key, missing=0.0) or 0.0, _mean(before, key, missing=0.0) or 0.0
        if now > DRIFTED_SHARE and now > DRIFTED_TIMES * earlier:
            _, kind, cause = key.split("/", 2)
            stops = kind == "ungradable"
            advice = (
                "look at ungradable.jsonl" if stops else "the policy may have learnt to cause it: look at rollouts/"
            )
            return Alarm(
                f"drift of {cause}",
                f"{cause.replace('_', ' ')!r} makes {now:.0%} of rollouts {kind}, {earlier:.1%} before: {advice}",
                stops=stops,
            )
    return None


def entropy_alarm(batches: Sequence[Line]) -> Alarm | None:
    """The policy has stopped trying anything else."""
    start, now = _mean(batches[:RECENT], "entropy"), _mean(batches[-RECENT:], "entropy")
    if start is None or now is None or now >= COLLAPSED_ENTROPY or COLLAPSED_TIMES * now >= start:
        return None
    return Alarm(
        "entropy",
        f"token entropy fell from {start:.3f} to {now:.3f} nats: the policy explores no more; lower learning_rate, "
        "raise epsilon_high or temperature",
    )


def length_alarm(batches: Sequence[Line]) -> Alarm | None:
    """Many completions are cut off; those that have grown until they are, and those that always were."""
    clipped = _mean(batches[-RECENT:], "completions/clipped_ratio")
    if clipped is None or clipped <= MOST_TRUNCATED:
        return None
    start, now = _mean(batches[:RECENT], "completions/mean_length"), _mean(batches[-RECENT:], "completions/mean_length")
    if start is not None and now is not None and now > EXPLODED_TIMES * start:
        return Alarm(
            "length",
            f"completions grew from {start:.0f} to {now:.0f} tokens and {clipped:.0%} are cut off: raise "
            "max_completion_length, or reward answers that end",
        )
    return Alarm(
        "truncated",
        f"{clipped:.0%} of completions are cut off before they end, and a cut-off answer is rarely right: raise "
        "max_completion_length",
    )


def saturation_alarm(batches: Sequence[Line]) -> Alarm | None:
    """Rewards tell nothing apart."""
    share, reward = _mean(batches[-RECENT:], "frac_reward_zero_std"), _mean(batches[-RECENT:], "reward")
    if share is None or share < SATURATED_SHARE:
        return None
    return Alarm(
        "saturation",
        f"in {share:.0%} of the groups all rewards are the same (mean {reward:.2f}): take harder or easier problems",
    )


def value_alarm(batches: Sequence[Line]) -> Alarm | None:
    """The values explain less than nothing, where they did explain something."""
    key = "poise/variance_reduction"
    recent = [line.get(key) for line in batches[-RECENT:]]
    best = max((line[key] for line in batches if line.get(key) is not None), default=0.0)
    if best <= 0 or any(value is None or value >= 0 for value in recent):
        return None
    return Alarm(
        "values",
        f"values have been worse than no value at all for {RECENT} batches, after a variance reduction of {best:.2f}: "
        "the policy moves faster than they follow; lower learning_rate or window_rows",
    )


def _mean(lines: Sequence[Line], key: str, *, missing: float | None = None) -> float | None:
    """Of the lines that have the key, or with `missing` in its place; None of none."""
    numbers = [missing if line.get(key) is None else line[key] for line in lines]
    there = [number for number in numbers if number is not None and not math.isnan(number)]
    return sum(there) / len(there) if there else None


def _causes(lines: Sequence[Line]) -> str:
    """The causes of what was ungradable, the commonest first."""
    prefix = "reward/ungradable/"
    shares = {
        key: _mean(lines, key, missing=0.0) or 0.0
        for key in {k for line in lines for k in line if k.startswith(prefix)}
    }
    told = sorted((key for key in shares if shares[key] > 0), key=lambda key: (-shares[key], key))
    text = ", ".join(f"{key.removeprefix(prefix).replace('_', ' ')} {shares[key]:.0%}" for key in told)
    return f" ({text})" if text else ""
