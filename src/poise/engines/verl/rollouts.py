"""Which of verl's rows are one rollout, and which rollouts are siblings?

The rule: verl names every row `{uid}_{session}_{index}`. Equal uids are siblings; a session is one rollout, whatever
the number of its outputs (several turns may be several rows), and its last output says how it ended. Rows stand in any
order, and rows that verl has added to fill a batch are nobody's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RolloutRows:
    """The rollouts among the rows of a batch, in the order in which their first rows stand."""

    uids: list[str]
    """For every rollout, what its siblings share."""
    last_rows: list[int]
    """For every rollout, the row of its last output."""
    rollout_of_row: list[int]
    """For every row, its rollout; -1 where it has none."""


def rollout_rows(keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> RolloutRows:
    """Sort rows into rollouts.

    Args:
        keys: verl's name of every row.
        tags: verl's tags of every row; `is_padding` marks rows that fill the batch.
    """
    number: dict[str, int] = {}
    uids: list[str] = []
    last: list[tuple[int, int]] = []
    rollout_of_row = []
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        if tag.get("is_padding", False):
            rollout_of_row.append(-1)
            continue
        session, index = key.rsplit("_", 1)
        if session not in number:
            number[session] = len(uids)
            uids.append(session.rsplit("_", 1)[0])
            last.append((int(index), row))
        rollout = number[session]
        last[rollout] = max(last[rollout], (int(index), row))
        rollout_of_row.append(rollout)
    return RolloutRows(uids, [row for _, row in last], rollout_of_row)
