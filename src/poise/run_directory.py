"""What is a training run on disk?

    config.yaml      every setting, resolved; `poise train --config` takes it
    metrics.jsonl    one line a step
    rollouts/        one parquet file a generation batch
    ungradable.jsonl what could not be graded, if anything
    checkpoints/     checkpoint-N: the host's files, poise.safetensors and poise.json
    summary.json, learning_curve.png, learning_curve.svg    at the end

The rule: a run can be read whenever it was cut off. Whole files are written beside their place and then renamed; lines
of metrics are flushed one by one, and a last line that was cut off is not read.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

ROLLOUTS_SCHEMA_VERSION = 1
"""Raised whenever a column of the rollout files changes its name, type or meaning."""

ROLLOUTS_SCHEMA = pyarrow.schema(
    [
        ("step", pyarrow.int64()),  # the first step that is trained on the rollout, as in metrics.jsonl
        ("prompt", pyarrow.string()),
        ("completion", pyarrow.string()),
        ("domain", pyarrow.string()),
        ("reward", pyarrow.float64()),  # null where the rollout could not be graded
        ("value", pyarrow.float64()),  # null for presets without values
        ("baseline", pyarrow.float64()),
        ("advantage", pyarrow.float64()),
        ("sibling", pyarrow.int64()),  # row of another rollout of the same prompt, in this file; null without one
    ],
    metadata={"poise_schema_version": str(ROLLOUTS_SCHEMA_VERSION)},
)


class RunDirectory:
    """The folder of one run.

    Attributes:
        path: The folder.
        config, metrics, summary, rollouts, checkpoints: What lies in it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.rollouts = self.path / "rollouts"
        self.checkpoints = self.path / "checkpoints"

    @classmethod
    def create(cls, path: Path | str) -> "RunDirectory":
        """Make the folder of a new run.

        Raises:
            FileExistsError: If something lies there already. A run is never written over.
        """
        directory = cls(path)
        if directory.path.is_file() or (directory.path.is_dir() and any(directory.path.iterdir())):
            raise FileExistsError(f"{directory.path} already holds a run or other files: choose another --name")
        for folder in (directory.rollouts, directory.checkpoints):
            folder.mkdir(parents=True)
        directory.metrics.touch()
        return directory

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write the run's settings as `config.yaml`, in their order."""
        _write_whole(self.config, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`; numbers that are not finite become null."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(_finite(line), allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`, without a last one that was cut off."""
        whole = self.metrics.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        _write_whole(self.summary, json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")

    def write_rollouts(
        self,
        step: int,
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        domains: Sequence[str | None],
        rewards: Sequence[float],
        values: Sequence[float],
        baselines: Sequence[float],
        advantages: Sequence[float],
    ) -> Path:
        """Write one generation batch as `rollouts/step-000123.parquet` and return its path; NaN becomes null.

        Args:
            step: The first step that is trained on these rollouts.
            prompts: Rollouts of equal prompts are siblings.
            completions, domains, rewards, values, baselines, advantages: One entry a rollout.
        """
        columns = {
            "step": [step] * len(prompts),
            "prompt": list(prompts),
            "completion": list(completions),
            "domain": list(domains),
            "reward": _finite(rewards),
            "value": _finite(values),
            "baseline": _finite(baselines),
            "advantage": _finite(advantages),
            "sibling": sibling_rows(prompts),
        }
        path = self.rollouts / f"step-{step:06d}.parquet"
        unfinished = path.with_suffix(".unfinished")
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=ROLLOUTS_SCHEMA), unfinished)
        os.replace(unfinished, path)
        return path


def sibling_rows(prompts: Sequence[str]) -> list[int | None]:
    """For each row, the next one with the same prompt, from the last on to the first; None where there is no other."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    following: list[int | None] = [None] * len(prompts)
    for group in rows.values():
        if len(group) > 1:
            for row, sibling in zip(group, group[1:] + group[:1], strict=True):
                following[row] = sibling
    return following


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _finite(value: Any) -> Any:
    """The same with None in place of numbers that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
