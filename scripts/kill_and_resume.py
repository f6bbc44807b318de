"""A harness that kills a run at random moments, starts it again, and compares it with one in peace.

    python scripts/kill_and_resume.py --kills 20

A short `poise train` on the embedded model runs once in peace. Then it runs again, is ended by SIGKILL at a random
moment (every third time while a checkpoint is being written) and started again. At the end every file must
be the same to the byte: weights, optimizer, random generators, baseline, metrics, rollouts, summary. Wall-clock times
alone may differ, and files that hold them are compared without.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS, SAVE_STEPS = 12, 2
OPTIONS = {
    "steps": STEPS,
    "save-steps": SAVE_STEPS,
    "families": "sum,sort",
    "per-device-train-batch-size": 8,
    "eval-prompts": 16,
    "check-prompts": 8,
    "check-every": 3,
    "logging-steps": 1,
}
NAME = "run"
LONGEST_STEP = 0.3
"""Seconds; a kill in a step comes at most so long after the step before."""
PATIENCE = 600.0
"""Seconds that a sitting may take."""
CLOCKS = {"seconds", "training_seconds", "step_time", "train_runtime", "train_samples_per_second"}
CLOCKS |= {"train_steps_per_second", "earlier_seconds"}
CLOCKS |= {f"poise/seconds_{phase}" for phase in ("sampling", "rewards", "features", "baseline")}
"""What wall-clock times are called, wherever they are written."""
NOT_COMPARED = {"training_args.bin", "checksums.sha256", "README.md"}
"""They hold the folder's own path; digests of files with times in them; the host's tags, in the order of a set."""
NOT_COMPARED |= {"report.html", "learning_curve.png", "learning_curve.svg"}
"""Drawn from files that are compared."""


@dataclass(frozen=True)
class Moment:
    """When to kill: `wait` seconds after `lines` lines of metrics, or inside the saving that comes next."""

    lines: int
    inside_saving: bool
    wait: float

    def __str__(self) -> str:
        what = "a saving began that came after " if self.inside_saving else ""
        return f"{self.wait:.3f} s after {what}{self.lines} lines of metrics"


def moments(num: int, *, seed: int) -> Iterator[Moment]:
    """Random ones; every third is inside saving."""
    generator = random.Random(seed)
    for number in range(num):
        inside = number % 3 == 0
        # Line 0 is written before the first step, and nothing is saved after the last line but the last checkpoint.
        lines = generator.randrange(0, STEPS if inside else STEPS + 2)
        yield Moment(lines, inside, generator.uniform(0, 0.03 if inside else LONGEST_STEP))


def command(output: Path, options: Mapping[str, Any]) -> list[str]:
    """The command that starts the run and goes on with it."""
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    start = "from poise.cli import app; app()"
    return [sys.executable, "-c", start, "train", "--output", str(output), "--name", NAME, *given]


def sitting(output: Path, moment: Moment | None = None, *, options: Mapping[str, Any] = OPTIONS) -> str:
    """Run the command to its end, or to a moment; how it ended: "done", "killed" or "killed while saving".

    Raises:
        RuntimeError: If it fails or takes too long.
    """
    log = output / "log.txt"
    output.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(command(output, options), stdout=file, stderr=file, env=environment)
    try:
        ended = moment is not None and arrived(process, output, moment)
        if ended:
            process.send_signal(signal.SIGKILL)
        code = process.wait(PATIENCE)
    finally:
        process.kill()
    if not ended and code != 0:
        raise RuntimeError(f"the run failed with exit code {code}:\n{log.read_text()[-3000:]}")
    if not ended:
        return "done"
    return "killed while saving" if unfinished_checkpoint(output).is_dir() else "killed"


def unfinished_checkpoint(output: Path) -> Path:
    """The folder that is there as long as a checkpoint is written."""
    return output / NAME / "checkpoints" / "unfinished-checkpoint"


def arrived(process: "subprocess.Popen[bytes]", output: Path, moment: Moment) -> bool:
    """Wait for a moment; False if the run ended before it."""

    def lines_are_there() -> bool:
        metrics = output / NAME / "metrics.jsonl"
        return metrics.is_file() and metrics.read_bytes().count(b"\n") >= moment.lines

    def is_saving() -> bool:
        return unfinished_checkpoint(output).is_dir()

    for condition in [lines_are_there, is_saving] if moment.inside_saving else [lines_are_there]:
        if not _comes_true(condition, process):
            return False
    time.sleep(moment.wait)
    return process.poll() is None


def _comes_true(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> bool:
    end = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None:
            return condition()
        if time.monotonic() > end:
            raise RuntimeError(f"the run took longer than {PATIENCE:g} seconds")
        time.sleep(0.003)
    return True


def differences(expected: Path, found: Path) -> list[str]:
    """The files of two runs that are not the same, and those that only one of them has."""
    names = {
        path.relative_to(folder).as_posix()
        for folder in (expected, found)
        for path in folder.rglob("*")
        if path.is_file()
    }
    compared = sorted(name for name in names if Path(name).name not in NOT_COMPARED)
    return [name for name in compared if _content(expected / name) != _content(found / name)]


def _content(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.suffix not in (".json", ".jsonl"):
        return path.read_bytes()
    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return repr([_timeless(json.loads(text)) for text in texts])  # as text, nan equals nan


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in CLOCKS}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    """Kill and resume, and say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"a run of {STEPS} steps in peace; files are in {folder}", flush=True)
        sitting(folder / "reference")
        kills = saving = identical = 0
        for number, moment in enumerate(moments(2 * asked.kills, seed=asked.seed)):
            output = folder / f"killed-{number}"
            how = sitting(output, moment) if kills < asked.kills else "done"
            if how == "done":  # the run came to its end before the moment
                continue
            sitting(output)
            different = differences(folder / "reference" / NAME, output / NAME)
            kills, saving, identical = kills + 1, saving + how.endswith("saving"), identical + (not different)
            print(f"{kills}: {how}, {moment}: {', '.join(different) or 'identical'}", flush=True)
        print(f"{identical} of {kills} runs that were killed, {saving} while saving, ended bit-identical")
    raise SystemExit(identical < asked.kills)


if __name__ == "__main__":
    main()
