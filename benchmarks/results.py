"""Files of benchmark results: JSON and a markdown table, each with its command, commit and machine."""

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from poise.evaluate.statistics import mean_interval
from poise.evaluate.tables import markdown_table

__all__ = ["interval", "markdown_table", "save"]

FOLDER = Path(__file__).parent / "results"


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Mean of independent repetitions and half the width of its 95 % interval."""
    found = mean_interval(samples)
    return found.value, found.high - found.value


def save(name: str, result: dict[str, Any], table: str) -> None:
    """Write `results/<name>.json` and `results/<name>.md`, print the table, and say where they are."""
    FOLDER.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=FOLDER)
    origin = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}",
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(origin | result, indent=1) + "\n")
    about = f"`{origin['command']}` at commit {origin['commit']} ({origin['machine']})"
    (FOLDER / f"{name}.md").write_text(f"{about}\n\n{table}\n")
    print(f"\n{table}\n\nresults: {FOLDER / name}.json and .md")
