"""What a run on verl leaves beside its checkpoints, in the form of every run of poise: `poise report` reads it.

    metrics.jsonl   one line a step: verl's and poise's metrics, and poise's names for what the report shows
    rollouts/       one parquet file a step, where `poise.keep_rollouts` is set

A run that goes on from a checkpoint is first cut back to it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poise.storage.run_directory import RunDirectory

REPORTED = {
    "poise/reward": "reward",
    "response_length/mean": "completions/mean_length",
    "response_length/clip_ratio": "completions/clipped_ratio",
    "actor/pg_clipfrac": "clip_ratio/region_mean",
    "actor/entropy": "entropy",
    "actor/grad_norm": "grad_norm",
}
"""verl's name for what the report shows under another."""

VALIDATED = "val-core/"


class RunRecords:
    """Writes the records of a run.

    Args:
        folder: The run's `trainer.default_local_dir`.
        step: The step whose checkpoint the run goes on from; 0 where it begins.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        self.directory = RunDirectory(folder)
        self.rollouts = self._seconds = 0.0
        self._kept: dict[str, list[Any]] = {}
        self.directory.rollouts.mkdir(parents=True, exist_ok=True)
        lines = self.directory.read_metrics() if self.directory.metrics.is_file() else []
        kept = [line for line in lines if line["step"] <= step] if step else []
        self.directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
        for path in self.directory.rollouts.glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        if kept:
            self.rollouts, self._seconds = kept[-1]["rollouts"], kept[-1]["seconds"]

    def keep(self, columns: Mapping[str, list[Any]]) -> None:
        """Take the rollouts of one update; `write` files those of a step."""
        for name, column in columns.items():
            self._kept.setdefault(name, []).extend(column)

    def write(
        self, step: int, metrics: Mapping[str, Any], *, seconds: float, rollouts: int, in_charge: Mapping[str, str]
    ) -> None:
        """Add the line of a step, with the evidence in charge of each domain, and file its rollouts."""
        self.rollouts += rollouts
        self._seconds += seconds
        line: dict[str, Any] = {"step": step, "rollouts": int(self.rollouts), "seconds": round(self._seconds, 3)}
        for name, value in metrics.items():
            if isinstance(value, str | bool) or not hasattr(value, "__float__"):
                continue
            line[name] = float(value)
            if name in REPORTED:
                line[REPORTED[name]] = float(value)
        if in_charge:
            line["in_charge"] = dict(in_charge)
        self.directory.append_metrics(line | validated(line))
        if self._kept:
            kept, self._kept = self._kept, {}
            self.directory.write_rollouts(step, **kept)


def validated(metrics: Mapping[str, float]) -> dict[str, float]:
    """verl's validation, `val-core/SOURCE/acc/mean@N`, as held-out accuracy by source and as the mean over sources."""
    by_source = {}
    for name, value in metrics.items():
        source, _, rest = name.removeprefix(VALIDATED).rpartition("/acc/mean@")
        if name.startswith(VALIDATED) and rest:
            by_source[source] = value
    if not by_source:
        return {}
    named = {f"held_out/accuracy/{source}": value for source, value in by_source.items()}
    return {"held_out/accuracy": sum(by_source.values()) / len(by_source)} | named
