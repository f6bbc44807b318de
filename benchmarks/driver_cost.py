"""The cost of a step of poise to the driver of a cluster: bytes received, seconds, memory.

One step of `OnlineBaseline` (preset `poise`, window full, three domains, G = 2) on random features, for some numbers of
rollouts and hidden widths, each in a process of its own. Bytes are counted, not measured. Seconds and memory grow with
rows and with what rows hold,

    y = y_0 + y_1 rows + y_2 rows width,   no coefficient below 0 (least squares on relative errors),

and the sheet continues that to 10^6 rollouts. Continued numbers are marked; the fit's largest relative error is said.

    OMP_NUM_THREADS=1 python benchmarks/driver_cost.py [--rows 1000 3000 10000] [--widths 1024 2560 4096]
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import markdown_table, save
from scipy.optimize import nnls

import poise
from poise.features.rollout_features import Features

SHEET_ROWS = (10**3, 10**4, 10**5, 10**6)
_RECIPE: Any = poise.preset("poise").recipe
WINDOW_ROWS, PROJECTED = _RECIPE.window_rows, _RECIPE.projection_size
MIB, GIB = 2**20, 2**30


def bytes_to_driver(rows: int, width: int, *, layers: int = 1) -> int:
    """What the workers send for a step: two states in float32, three entropies, four flags, a weight in float64."""
    return rows * (2 * 4 * width * layers + 3 * 4 + 4 + 8)


def random_step(rows: int, width: int, generator: torch.Generator) -> tuple[Features, torch.Tensor]:
    """Features and rewards; what they hold does not change what they cost."""
    features = Features(
        prompt=torch.randn(rows, width, generator=generator),
        completion=torch.randn(rows, width, generator=generator),
        entropies=torch.rand(rows, 3, generator=generator),
        missing=torch.zeros(rows, 4, dtype=torch.bool),
    )
    return features, torch.bernoulli(torch.full((rows,), 0.4), generator=generator)


def measured(rows: int, width: int, steps: int) -> dict[str, float]:
    """Median seconds of steps after the window is full, and how far the process grew above what it was before."""
    generator = torch.Generator().manual_seed(0)
    baseline = poise.OnlineBaseline(poise.preset("poise"))
    domains = [("math", "code", "other")[row // 2 % 3] for row in range(rows)]

    def seconds_of(number: int) -> float:
        features, rewards = random_step(rows, width, generator)
        weights = torch.rand(rows, generator=generator)
        prompts = [f"{number}-{row // 2}" for row in range(rows)]
        start = time.perf_counter()
        baseline.step(features, rewards, prompts=prompts, domains=domains, weights=weights)
        return time.perf_counter() - start

    before = resident_peak()
    filling = -(-WINDOW_ROWS // rows)
    seconds = [seconds_of(number) for number in range(filling + steps)]
    return {"seconds": float(np.median(seconds[filling:])), "bytes": resident_peak() - before}


def resident_peak() -> float:
    """Peak resident bytes since this program began; `getrusage` would hand on those of the program that started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(status["VmHWM"].split()[0]) * 1024


def in_a_process(rows: int, width: int, steps: int) -> dict[str, float]:
    """`measured` in a fresh process: the peak of one size hides that of a smaller one."""
    command = [sys.executable, __file__, "--one", str(rows), str(width), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def fitted(points: list[tuple[int, int]], values: list[float]) -> tuple[np.ndarray, float]:
    """Coefficients of the formula in the file's head, and the largest relative error at the points."""
    columns = np.array([[1, rows, rows * width] for rows, width in points], dtype=float)
    target = np.array(values)
    coefficients, _ = nnls(columns / target[:, None], np.ones(len(target)))
    return coefficients, float(np.abs(columns @ coefficients / target - 1).max())


def sheet(
    points: list[tuple[int, int]], found: list[dict[str, float]], widths: list[int]
) -> tuple[str, dict[str, object]]:
    """The table, and its formulas."""
    seconds, seconds_error = fitted(points, [each["seconds"] for each in found])
    memory, memory_error = fitted(points, [each["bytes"] for each in found])
    largest = max(rows for rows, _ in points)
    lines = []
    for width, rows in product(widths, SHEET_ROWS):
        terms = np.array([1, rows, rows * width], dtype=float)
        mark = "" if rows <= largest else " *"
        lines.append(
            [
                f"{width:,}",
                f"{rows:,}",
                f"{bytes_to_driver(rows, width) / MIB:,.0f}",
                f"{bytes_to_driver(rows, PROJECTED) / MIB:,.0f}",
                f"{seconds @ terms:,.2f}{mark}",
                f"{memory @ terms / GIB:,.2f}{mark}",
            ]
        )
    header = [
        "width",
        "rollouts a step",
        "MiB to the driver",
        f"MiB if projected to {PROJECTED}",
        "seconds",
        "GiB",
    ]
    told = (
        f"seconds = {seconds[0]:.3g} + {seconds[1]:.3g} rows + {seconds[2]:.3g} rows width "
        f"(largest error {seconds_error:.0%}); bytes = {memory[0]:.3g} + {memory[1]:.3g} rows + "
        f"{memory[2]:.3g} rows width ({memory_error:.0%}). * continued beyond the {largest:,} rollouts measured."
    )
    formulas = {"seconds": seconds.tolist(), "bytes": memory.tolist(), "errors": [seconds_error, memory_error]}
    return f"{markdown_table(header, lines)}\n\n{told}", formulas


def main() -> None:
    """Measure, fit, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2560, 4096])
    parser.add_argument("--steps", type=int, default=5, help="steps of each size, after those that fill the window")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one[0], given.one[1], given.steps)))
        return
    if given.steps < 1 or len(given.rows) < 2 or len(given.widths) < 2:
        parser.error("the formula needs two numbers of rows, two widths and a step, or more")
    if any(rows % 2 or rows < 2 for rows in given.rows) or any(a == b for a, b in pairwise(sorted(given.rows))):
        parser.error("rows need to be different even numbers")
    points = list(product(given.rows, given.widths))
    found = []
    for rows, width in points:
        found.append(in_a_process(rows, width, given.steps))
        print(f"{rows:,} rollouts, width {width:,}: {found[-1]['seconds']:.3f} s, {found[-1]['bytes'] / MIB:,.0f} MiB")
    table, formulas = sheet(points, found, given.widths)
    sizes = [{"rows": rows, "width": width} | each for (rows, width), each in zip(points, found, strict=True)]
    save("driver_cost", {"measured": sizes, "formulas": formulas}, table)


if __name__ == "__main__":
    main()
