"""Where benchmark results go: a JSON file and a markdown table, each with its command, commit and machine."""

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "results"


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Mean of independent repetitions and half the width of its 95 % interval (Student's t)."""
    from scipy.stats import t

    values = np.asarray(samples, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    spread = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(t.ppf(0.975, len(values) - 1) * spread)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
