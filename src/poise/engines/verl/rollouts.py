"""Rollouts among verl's rows: which rows are one rollout, and which rollouts are siblings.

Verl names every row `{uid}_{session}_{index}`. Equal uids are siblings; a session is one rollout, whatever
the number of its outputs (several turns may be several rows), and its last output says how it ended. Rows stand in any
order, and rows that verl has added to fill a batch are nobody's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RolloutRows:
    """The rollouts among the rows of a batch, in the order in which their first rows stand."""

    uids: list[str]
    """For every rollout, what its siblings share."""
    last_rows: list[int]
    """For every rollout, the row of its last output."""
    rollout_of_row: list[int]
    """For every row, its rollout; -1 where it has none."""

    def summed(self, of_row: Float[Tensor, " rows"]) -> Float[Tensor, " rollouts"]:
        """For every rollout the sum over its rows."""
        sums = of_row.new_zeros(len(self.uids) + 1)  # the last entry gathers rows without a rollout
        return sums.index_add(0, torch.tensor(self.rollout_of_row) % len(sums), of_row)[:-1]

    def repeated(self, of_rollout: Float[Tensor, " rollouts"]) -> Float[Tensor, " rows"]:
        """For every row the number of its rollout; 0 where it has none."""
        return torch.cat([of_rollout, of_rollout.new_zeros(1)])[self.rollout_of_row]


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
