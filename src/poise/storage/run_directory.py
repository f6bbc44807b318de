"""What is a training run on disk?

    config.yaml      every setting, resolved; `poise train --config` takes it
    metrics.jsonl    one line a step
    rollouts/        one parquet file a generation batch
    ungradable.jsonl what could not be graded, if anything
    checkpoints/     checkpoint-N: the host's files, poise.safetensors and poise.json
    first_bad_step.json    only where numbers of a step were not finite
    summary.json, learning_curve.png, learning_curve.svg, report.html    at the end

The rule: a run can be read whenever it was cut off. Whole files are written beside their place and then renamed; lines
of metrics are flushed one by one, and a last line that was cut off is not read. A run that goes on from a checkpoint is
first cut back to it, so that nothing is missing and nothing is there twice.
"""

import fcntl
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from poise.storage.whole_files import unfinished, write_whole, written_whole

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
        config, metrics, summary, report, ungradable, first_bad_step, rollouts, checkpoints: What lies in it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.ungradable = self.path / "ungradable.jsonl"
        self.first_bad_step = self.path / "first_bad_step.json"
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
        directory._make_folders()
        return directory

    def take(self, settings: Mapping[str, Any]) -> None:
        """Make the folder of a run with these settings, or find it as an earlier sitting left it.

        Raises:
            FileExistsError: If something else lies there.
            ValueError: If the run there has other settings; the sentence has all of them, of both sides.
        """
        if self.config.is_file():
            differences = self.differences(settings)
            if differences:
                raise ValueError(f"{self.path} holds another run: {'; '.join(differences)}. Choose another --name")
        elif self.path.exists() and not self._is_bare():
            raise FileExistsError(f"{self.path} already holds other files: choose another --name")
        self._make_folders()
        if not self.config.is_file():
            self.write_config(settings)

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write the run's settings as `config.yaml`, in their order."""
        write_whole(self.config, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """For each setting that the run there has otherwise, a clause with both sides."""
        theirs = yaml.safe_load(self.config.read_text())
        theirs = theirs if isinstance(theirs, dict) else {}
        mine = yaml.safe_load(yaml.safe_dump(dict(settings), sort_keys=False))
        names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
        return [f"{name} is {theirs.get(name)!r} there and {mine.get(name)!r} here" for name in names]

    @property
    def is_done(self) -> bool:
        """Whether the run there has come to its end; the report is the last file that it writes."""
        return self.report.is_file() and self.summary.is_file() and not self.read_summary()["stopped_early"]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out; the hold ends with the process, however it ends.

        Raises:
            BlockingIOError: If another process holds the folder.
        """
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(f"{self.path} is in use: another process is training there") from error
            yield

    def cut_back(self, step: int) -> None:
        """Leave of the run what was there after that step; -1 for nothing but its settings."""
        for path in (self.metrics, self.ungradable):
            if path.is_file():
                kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
                write_whole(path, "".join(f"{line}\n" for line in kept))
        for path in self.rollouts.glob("step-*"):
            if path.suffix != ".parquet" or int(path.stem.rpartition("-")[2]) > step:
                path.unlink()
        if self.first_bad_step.is_file() and json.loads(self.first_bad_step.read_text())["step"] > step:
            self.first_bad_step.unlink()
        for path in (self.summary, self.report, *self.path.glob("learning_curve.*"), *self.path.glob("*.unfinished")):
            path.unlink(missing_ok=True)

    def discard_if_unused(self) -> None:
        """Remove the folder of a run that never measured anything, and that no other process is training in."""
        with suppress(BlockingIOError), self.held():
            if self.config.is_file() and not self.metrics.stat().st_size and not any(self.checkpoints.iterdir()):
                shutil.rmtree(self.path)

    def _is_bare(self) -> bool:
        """Whether nothing lies there but what `take` makes before it writes `config.yaml`."""
        ours = {self.rollouts, self.checkpoints, self.metrics, unfinished(self.config)}
        used = (self.metrics.is_file() and self.metrics.stat().st_size) or any(
            folder.is_dir() and any(folder.iterdir()) for folder in (self.rollouts, self.checkpoints)
        )
        return self.path.is_dir() and set(self.path.iterdir()) <= ours and not used

    def _make_folders(self) -> None:
        try:
            for folder in (self.rollouts, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            if not self.metrics.exists():
                self.metrics.touch()
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be written to ({error.strerror}): choose another --output or make it writable"
            ) from error

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`; numbers that are not finite become null."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(finite(line), allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`, without a last one that was cut off."""
        return [json.loads(line) for line in _whole_lines(self.metrics)]

    def read_summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        summary: dict[str, Any] = json.loads(self.summary.read_text())
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_whole(self.summary, json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")

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
            "reward": finite(rewards),
            "value": finite(values),
            "baseline": finite(baselines),
            "advantage": finite(advantages),
            "sibling": sibling_rows(prompts),
        }
        path = self.rollouts / f"step-{step:06d}.parquet"
        with written_whole(path) as place:
            pyarrow.parquet.write_table(pyarrow.table(columns, schema=ROLLOUTS_SCHEMA), place)
        return path


def rollout_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of rollouts, with the columns of `ROLLOUTS_SCHEMA`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is no parquet file: {(str(error).splitlines() or ['no reason given'])[0]}") from error
    if missing := [name for name in ROLLOUTS_SCHEMA.names if name not in table.schema.names]:
        raise ValueError(f"{path} holds no rollouts of a run: it lacks the columns {', '.join(missing)}")
    version = (table.schema.metadata or {}).get(b"poise_schema_version", b"none").decode(errors="replace")
    if version != str(ROLLOUTS_SCHEMA_VERSION):
        raise ValueError(f"{path} has schema version {version}, and this poise reads {ROLLOUTS_SCHEMA_VERSION}")
    lines: list[dict[str, Any]] = table.select(ROLLOUTS_SCHEMA.names).to_pylist()
    return lines


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


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a last one that was cut off."""
    return path.read_text().rpartition("\n")[0].splitlines()


def finite(value: Any) -> Any:
    """The same with None in place of numbers that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
