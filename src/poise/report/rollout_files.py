"""The rollouts that a run left behind, a batch a file, as columns.

What cannot be read is counted and said, never guessed. A reader keeps what it has read, so that a run that goes on
costs its new files alone.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from poise.storage.rollouts import rollout_table
from poise.storage.run_directory import RunDirectory

MOST_ROLLOUTS = 50_000
"""That are read of a run; of a longer one, files evenly spread, the newest among them."""


@dataclass(frozen=True)
class RolloutBatch:
    """One file of rollouts: `columns` are those of `poise.storage.rollouts.ROLLOUTS_SCHEMA`."""

    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.columns["step"])

    @property
    def step(self) -> int:
        """The first step that is trained on them."""
        return int(self.columns["step"][0])

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column with NaN where it is null."""
        return np.array([np.nan if each is None else each for each in self.columns[name]], dtype=np.float64)

    @cached_property
    def rewards(self) -> NDArray[np.float64]:
        """NaN where a rollout could not be graded."""
        return self.numbers("reward")

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Rollouts of one prompt have one number."""
        number = {prompt: index for index, prompt in enumerate(dict.fromkeys(self.columns["prompt"]))}
        return np.array([number[prompt] for prompt in self.columns["prompt"]], dtype=np.int64)

    @cached_property
    def graded_siblings(self) -> NDArray[np.int64]:
        """For each rollout, how many graded ones its prompt has; 0 where it is itself ungraded."""
        graded = np.isfinite(self.rewards)
        return np.where(graded, np.bincount(self.groups, weights=graded)[self.groups], 0).astype(np.int64)


class RolloutReader:
    """Reads the rollout files of a run, each once."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._read: dict[Path, tuple[int, RolloutBatch | str]] = {}

    def batches(self) -> tuple[list[RolloutBatch], list[str]]:
        """The generation batches of a run, the oldest first, and a sentence for whatever was not read."""
        paths = sorted(self.directory.rollouts.glob("step-*.parquet"))
        notes = []
        most = max(1, MOST_ROLLOUTS // max(1, _rows(paths[-1]))) if paths else 1
        if len(paths) > most:
            notes.append(f"{most} of {len(paths)} rollout files are shown, evenly spread over the run.")
            paths = [paths[-1 - index * len(paths) // most] for index in reversed(range(most))]
        found = [self._batch(path) for path in paths]
        notes += [each for each in found if isinstance(each, str)]
        return [each for each in found if isinstance(each, RolloutBatch) and len(each)], notes

    def _batch(self, path: Path) -> RolloutBatch | str:
        changed = path.stat().st_mtime_ns
        if self._read.get(path, (0, ""))[0] != changed:
            try:
                read: RolloutBatch | str = RolloutBatch(rollout_table(path).to_pydict())
            except (ValueError, OSError) as error:
                read = f"{str(error).replace(str(path), path.name)}; it is left out."
            self._read[path] = changed, read
        return self._read[path][1]


def ungradable_causes(directory: RunDirectory) -> dict[tuple[int, str], str]:
    """Why rollouts could not be graded, by step and beginning of the completion, as `ungradable.jsonl` has it."""
    causes = {}
    lines = directory.ungradable.read_bytes().splitlines() if directory.ungradable.is_file() else []
    for line in lines:
        try:
            case = json.loads(line)
            causes[int(case["step"]), str(case["completion"])[:1000]] = str(case["cause"])
        except (ValueError, TypeError, KeyError):  # cut off
            continue
    return causes


def _rows(path: Path) -> int:
    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (OSError, pyarrow.ArrowException):
        return 1
