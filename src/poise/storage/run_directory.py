"""The folder of a training run.

    config.yaml      every setting, resolved; `poise train --config` takes it
    metrics.jsonl    one line a step
    rollouts/        one parquet file a generation batch
    ungradable.jsonl what could not be graded, if anything
    checkpoints/     checkpoint-N: the host's files, poise.safetensors and poise.json
    first_bad_step.json    only where numbers of a step were not finite
    summary.json, learning_curve.png, learning_curve.svg, report.html    at the end
    .lock            held by the process that trains there

A run can be read whenever it was cut off. Whole files are synced beside their place and then renamed; lines of metrics
are flushed one by one. Lines that cannot be read are left out, with a sentence. A run that goes on from a checkpoint is
first cut back to it, so that nothing is missing and nothing is there twice.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from poise.storage.rollouts import finite, write_rollouts
from poise.storage.whole_files import unfinished, write_whole

logger = logging.getLogger(__name__)


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
        self._lock = FileLock(self.path / ".lock", thread_local=False)

    @classmethod
    def new(cls, output: Path, name: str, *, numbered: bool = False) -> "RunDirectory":
        """The folder of a name inside `output`.

        Args:
            output: Folder of all runs.
            name: One part of a path.
            numbered: Make the folder now, under another number where there is one of the name already: no two callers
                get the same.

        Raises:
            ValueError: If the name leads out of `output`.
            OSError: If `output` cannot be written to.
        """
        if not name or name in (".", "..") or set(name) & set("/\\\0"):
            raise ValueError(f"--name needs the name of a folder inside {output}, got {name!r}")
        for number in range(1, 1_000_000) if numbered else ():
            place = output / (name if number == 1 else f"{name}-{number}")
            with writable(place):
                output.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    place.mkdir()
                    return cls(place)
        return cls(output / name)

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
        else:
            self._refuse_others()
        self._make_folders()
        if not self.config.is_file():
            self.write_config(settings)

    def _refuse_others(self) -> None:
        if self.path.exists() and not self._is_bare() and not self.config.is_file():  # in this order: others are at it
            raise FileExistsError(f"{self.path} already holds other files: choose another --name")

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write the run's settings as `config.yaml`, in their order."""
        write_whole(self.config, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """For each setting that the run there has otherwise, a clause with both sides.

        Raises:
            ValueError: If its settings cannot be read.
        """
        try:
            theirs = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            theirs = str(error).splitlines()[0]
        if not isinstance(theirs, dict):
            raise ValueError(
                f"{self.config} is damaged: put back the settings that the run was made with, or choose another --name"
            )
        mine = yaml.safe_load(yaml.safe_dump(dict(settings), sort_keys=False))
        names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
        return [f"{name} is {theirs.get(name)!r} there and {mine.get(name)!r} here" for name in names]

    @property
    def is_done(self) -> bool:
        """Whether the run there has come to its end; the report is the last file that it writes."""
        return self.report.is_file() and self.read_summary().get("stopped_early") is False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, from before anything is looked at; the hold ends with the process.

        May be nested. Makes the folder if there is none.

        Raises:
            BlockingIOError: If another process holds the folder.
            FileExistsError: If something else than a run lies there; nothing is written then.
            OSError: If it cannot be written to.
        """
        for _ in range(100):  # whoever discards an unused folder may take it away between the two lines
            with suppress(FileNotFoundError):
                self._refuse_others()
                with writable(self.path):
                    self.path.mkdir(parents=True, exist_ok=True)
                    try:
                        self._lock.acquire(timeout=0)
                        break
                    except Timeout as error:
                        raise BlockingIOError(f"{self.path} is in use: another process is training there") from error
        else:
            raise BlockingIOError(f"{self.path} is taken away as often as it is made")
        try:
            yield
        finally:
            self._lock.release()

    def cut_back(self, step: int) -> None:
        """Leave of the run what was there after that step; -1 for nothing but its settings."""
        for path in (self.metrics, self.ungradable):
            if path.is_file():
                kept = [line for line in _told_lines(path) if line["step"] <= step]
                write_whole(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        for path in self.rollouts.glob("step-*"):
            number = re.fullmatch(r"step-(\d+)\.parquet", path.name)
            if path.is_file() and (number is None or int(number[1]) > step):
                path.unlink()
        if self.first_bad_step.is_file():
            bad = _json_object(self.first_bad_step.read_bytes())
            if bad is None or bad["step"] > step:
                self.first_bad_step.unlink()
        for path in (self.summary, self.report, *self.path.glob("learning_curve.*"), *self.path.glob("*.unfinished")):
            if not path.is_dir():
                path.unlink(missing_ok=True)

    def discard_if_unused(self) -> None:
        """Remove the folder of a run that never measured anything, and that no other process is training in."""
        if not self.config.is_file() and not (self.path.is_dir() and self._is_bare()):
            return
        with suppress(OSError), self.held():
            if not _told_lines(self.metrics) and not any(self.checkpoints.glob("*")):
                shutil.rmtree(self.path)

    def _is_bare(self) -> bool:
        """Whether nothing lies there but what `take` makes before it writes `config.yaml`."""
        ours = {self.rollouts, self.checkpoints, self.metrics, self.config, unfinished(self.config)}
        ours.add(self.path / ".lock")  # and another process may have made it a run since
        used = (self.metrics.is_file() and self.metrics.stat().st_size) or any(
            folder.is_dir() and any(folder.iterdir()) for folder in (self.rollouts, self.checkpoints)
        )
        return self.path.is_dir() and set(self.path.iterdir()) <= ours and not used

    def _make_folders(self) -> None:
        with writable(self.path):
            for folder in (self.rollouts, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            self.metrics.touch()
            if not self.metrics.is_file():
                raise IsADirectoryError(21, "metrics.jsonl is a folder")

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`; numbers that are not finite become null."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(finite(line), allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl` that can be read; a warning says how many cannot, but for one cut off."""
        return _told_lines(self.metrics)

    def read_summary(self) -> dict[str, Any]:
        """What `summary.json` says; nothing where it is missing or damaged."""
        content = self.summary.read_bytes() if self.summary.is_file() else b"{}"
        try:
            summary = json.loads(content)
        except ValueError:
            summary = None
        if not isinstance(summary, dict):
            logger.warning("%s is damaged: it is made again when the run goes on", self.summary)
        return summary if isinstance(summary, dict) else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_whole(self.summary, json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")

    def write_rollouts(self, step: int, **columns: Any) -> Path:
        """Write one generation batch as `rollouts/step-000123.parquet` and return its path; see `write_rollouts`."""
        path = self.rollouts / f"step-{step:06d}.parquet"
        write_rollouts(path, step, **columns)
        return path


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Say what to do where a folder cannot be made or written to."""
    try:
        yield
    except (BlockingIOError, FileNotFoundError):
        raise
    except OSError as error:
        raise OSError(
            f"{path} cannot be written to ({error.strerror}): choose another --output or make it writable"
        ) from error


def readable_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Objects with a step or rollouts, a line each, and the number of other lines; one that is cut off is no line."""
    lines = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.is_file() else []
    read = [_json_object(line) for line in lines]
    return [line for line in read if line is not None], read.count(None)


def _told_lines(path: Path) -> list[dict[str, Any]]:
    lines, broken = readable_lines(path)
    if broken:
        logger.warning("%s has lines that cannot be read, and they are left out: %d of them", path, broken)
    return lines


def _json_object(line: bytes) -> dict[str, Any] | None:
    """A line as an object with a whole number of steps, or of rollouts, in it; None if it is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and type(content.get("step", content.get("rollouts"))) is int else None
