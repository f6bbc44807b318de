"""A harness that starts, kills, finishes and restarts one run in several processes at once, at random moments.

    python scripts/race_runs.py --races 50

A short `poise train` runs once in peace. Then, for each race, it is begun in a new folder; at a random moment (every
third time it is killed there, every third time it is about to end) the same command is started once or twice more. No
process may end in anything but its results or one sentence, and when all have ended and the command was given once
more, every file must be what it is in peace, as in `kill_and_resume.py`.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kill_and_resume import NAME, OPTIONS, PATIENCE, differences

STEPS = 6
CONTEXT = multiprocessing.get_context("forkserver")  # imports once: processes begin within milliseconds
ENDS = {0: "finished it or found it done", 2: "found it in use", -9: "were killed"}


class RaceLost(Exception):
    """A process that ended as none may, or a run that is not what it is in peace; the message says which."""


@dataclass(frozen=True)
class Race:
    """When others start: `wait` seconds after the first has written so many lines of metrics; and what it does then."""

    lines: int
    wait: float
    killed: bool
    others: int


def races(num: int, *, seed: int) -> Iterator[Race]:
    """Random ones; of three, one first process is killed, and one is at its end."""
    generator = random.Random(seed)
    for number in range(num):
        at_the_end = number % 3 == 1
        lines = STEPS + 1 if at_the_end else generator.randrange(0, STEPS + 1)
        yield Race(lines, generator.uniform(0.0, 1.0 if at_the_end else 0.4), number % 3 == 0, generator.randint(1, 2))


def prepare() -> None:
    """Let processes begin with everything imported; to be called before the first one."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    CONTEXT.set_forkserver_preload(["poise.cli", "poise.train.run"])


def training(output: Path) -> list[str]:
    """The arguments of the command."""
    options = OPTIONS | {"steps": STEPS, "output": output, "name": NAME}
    return ["train", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def poise(arguments: list[str], log: Path) -> None:
    """The command, with what it prints in a file."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from poise.cli import app

    app(arguments)


def started(arguments: list[str], log: Path) -> Any:
    """A process of the command; its name is where it writes what it prints."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=poise, args=(arguments, log), name=str(log))
    process.start()
    return process


def ended(process: Any, *, killed: bool = False) -> tuple[int, str]:
    """The exit code of a process and what it printed.

    Raises:
        RaceLost: If it did not end, or otherwise than with its results or one sentence.
    """
    process.join(PATIENCE)
    log = Path(process.name)
    printed = log.read_text(errors="replace") if log.is_file() else ""
    code = process.exitcode
    process.kill()
    if code not in (0, 2, *[-9] * killed) or "Traceback" in printed:
        raise RaceLost(f"{log.name} ended with {code}: {printed[-2000:]}")
    return code, printed


def in_peace(output: Path) -> Path:
    """The run without others."""
    ended(started(training(output), output / "peace.log"))
    return output / NAME


def raced(output: Path, race: Race, expected: Path) -> Counter[str]:
    """How the processes of a race ended.

    Raises:
        RaceLost: If one ended as none may, or the run is not what it is in peace.
    """
    first = started(training(output), output / "first.log")
    metrics = output / NAME / "metrics.jsonl"
    while first.is_alive() and (not metrics.is_file() or metrics.read_bytes().count(b"\n") < race.lines):
        time.sleep(0.003)
    time.sleep(race.wait)
    if race.killed:
        first.kill()
    others = [started(training(output), output / f"other-{number}.log") for number in range(race.others)]
    ends = [ended(first, killed=race.killed), *map(ended, others)]
    if odd := [printed for code, printed in ends if code == 2 and "is in use" not in printed]:
        raise RaceLost(f"refused for another reason: {odd[0]}")
    ended(started(training(output), output / "last.log"))
    if different := differences(expected, output / NAME):
        raise RaceLost(f"not as in peace: {', '.join(different)}")
    return Counter(ENDS[code] for code, _ in ends)


def main() -> None:
    """Race, and say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    prepare()
    ends, lost = Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        expected = in_peace(Path(name) / "peace")
        for number, race in enumerate(races(asked.races, seed=asked.seed)):
            try:
                ends += raced(Path(name) / f"race-{number}", race, expected)
            except RaceLost as error:
                lost += 1
                print(f"{race}: {error}", file=sys.stderr, flush=True)
    told = ", ".join(f"{count} {what}" for what, count in sorted(ends.items()))
    print(f"{asked.races - lost} of {asked.races} races ended as a run in peace; of their processes {told}")
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
