"""The rollouts that a run left behind, and the pairs of them that are worth a look.

A pair is two rollouts of one prompt in one generation batch, as `sibling` says. What cannot be read is counted and
said, never guessed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

from poise.storage.run_directory import RunDirectory, rollout_lines


@dataclass(frozen=True)
class Rollout:
    """One row of a rollout file. None: not graded, or a preset that makes no values."""

    step: int
    row: int
    prompt: str
    completion: str
    domain: str | None
    reward: float | None
    value: float | None
    baseline: float
    advantage: float
    sibling: int | None
    """Row of another rollout of the same prompt, in the same file."""

    @property
    def surprise(self) -> float:
        """|reward - baseline|; 0 where it could not be graded."""
        return abs(self.advantage)


@dataclass(frozen=True)
class Pair:
    """Two rollouts of one prompt."""

    first: Rollout
    second: Rollout

    @property
    def rewards(self) -> tuple[float, float]:
        """Of the two; NaN where one could not be graded."""
        a, b = self.first.reward, self.second.reward
        return (float("nan") if a is None else a, float("nan") if b is None else b)

    @property
    def surprise(self) -> float:
        """The larger of the two |reward - baseline|."""
        return max(self.first.surprise, self.second.surprise)

    @property
    def expected(self) -> float:
        """The mean of the two values, or of the baselines where there are none."""
        shown = [each.baseline if each.value is None else each.value for each in (self.first, self.second)]
        return sum(shown) / 2


@dataclass(frozen=True)
class PairChoice:
    """Pairs that were chosen for a reason."""

    title: str
    reason: str
    pairs: tuple[Pair, ...]


def read_rollouts(directory: RunDirectory, *, most_files: int = 400) -> tuple[list[list[Rollout]], list[str]]:
    """The generation batches of a run, the oldest first, and a sentence for whatever was not read.

    Args:
        directory: The run.
        most_files: Of a longer run, as many files are read, evenly spread, the newest among them.
    """
    paths = sorted(directory.rollouts.glob("step-*.parquet"))
    batches, notes = [], []
    if len(paths) > most_files:
        notes.append(f"{most_files} of {len(paths)} rollout files were read, evenly spread over the run.")
        paths = [paths[-1 - index * len(paths) // most_files] for index in reversed(range(most_files))]
    for path in paths:
        try:
            batches.append([Rollout(row=row, **line) for row, line in enumerate(rollout_lines(path))])
        except (ValueError, OSError) as error:
            notes.append(str(error).replace(str(path), path.name))
    return batches, notes


def pairs_of(batch: Sequence[Rollout]) -> list[Pair]:
    """Each prompt's first two rollouts."""
    found: dict[str, list[Rollout]] = {}
    for rollout in batch:
        if rollout.sibling is not None:
            found.setdefault(rollout.prompt, []).append(rollout)
    return [Pair(group[0], group[1]) for group in found.values() if len(group) > 1]


def pair_choices(batches: Sequence[Sequence[Rollout]], *, each: int = 3) -> list[PairChoice]:
    """Pairs to look at: some of the newest batch, and the most telling ones of the newest quarter of all batches.

    No prompt comes twice; a reason without a pair is left out.

    Args:
        batches: Generation batches, the oldest first.
        each: Pairs for each reason.
    """
    if not batches:
        return []
    late = [pair for batch in batches[-max(1, len(batches) // 4) :] for pair in pairs_of(batch)]
    graded = [pair for pair in late if all(map(isfinite, pair.rewards))]
    best = max((reward for pair in graded for reward in pair.rewards), default=1.0)
    fail = [pair for pair in graded if max(pair.rewards) <= 0]
    right = [pair for pair in graded if min(pair.rewards) >= best > 0]
    split = [pair for pair in graded if pair.rewards[0] != pair.rewards[1]]
    shown: set[str] = set()
    listed = (
        ("Newest", "From the newest generation batch, one domain after another.", _one_a_domain(pairs_of(batches[-1]))),
        (
            "Largest advantages",
            "The largest |reward - baseline|: what the policy was pushed by most.",
            sorted(graded, key=lambda pair: -pair.surprise),
        ),
        (
            "Both fail, though success was expected",
            "Highest values among pairs without reward.",
            sorted(fail, key=lambda pair: -pair.expected),
        ),
        (
            "Both right, though failure was expected",
            "Lowest values among pairs with full reward.",
            sorted(right, key=lambda pair: pair.expected),
        ),
        (
            "One right, one wrong",
            "Where a toss decides: values nearest to the middle of the rewards.",
            sorted(split, key=lambda pair: abs(pair.expected - sum(pair.rewards) / 2)),
        ),
    )
    choices = [PairChoice(title, reason, tuple(_first_new(pairs, shown, each))) for title, reason, pairs in listed]
    return [choice for choice in choices if choice.pairs]


def _first_new(pairs: Iterable[Pair], shown: set[str], num: int) -> list[Pair]:
    taken: list[Pair] = []
    for pair in pairs:
        if len(taken) == num:
            break
        if pair.first.prompt not in shown:
            shown.add(pair.first.prompt)
            taken.append(pair)
    return taken


def _one_a_domain(pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs, the first of every domain before the second of any."""
    turns: dict[str | None, int] = {}
    order = []
    for index, pair in enumerate(pairs):
        turn = turns[pair.first.domain] = turns.get(pair.first.domain, -1) + 1
        order.append((turn, index, pair))
    return [pair for _, _, pair in sorted(order, key=lambda each: each[:2])]
