"""The cost of a worker: milliseconds a rollout of verdicts in workers over verdicts in this process.

    python benchmarks/reward_workers.py

Trivial verdicts (`exact`, sent to workers all the same), math-verify's, and a whole program behind walls. A pair is one
batch in this process and one in workers; pairs alternate, and the median of differences counts.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from results import markdown_table, save

from poise.rewards import VERIFIERS, Grader, graded
from poise.tasks.problem import Problem

ROLLOUTS, PAIRS = 2_000, 7
ADD = "def add(a, b):\n    return a + b\n"
PROBLEMS = {
    "trivial": ("12", Problem("", "12", "x", verifier="exact"), ROLLOUTS),
    "math-verify": (r"\boxed{\frac{2}{4}}", Problem("", r"\frac12", "x", verifier="math"), ROLLOUTS // 4),
    "python, one assert": (
        ADD,
        Problem("", "", "x", verifier="python", details=json.dumps({"tests": ["assert add(1, 2) == 3"]})),
        20,
    ),
}


def milliseconds(function: Callable[[], object], rollouts: int) -> float:
    """Of one rollout, of a function that grades so many."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) / rollouts * 1e3


def main() -> None:
    """Measure and write the table."""
    VERIFIERS["exact"] = replace(VERIFIERS["exact"], harmless=False)  # else it needs no worker
    rows = []
    with Grader(workers=1) as grader:
        for name, (completion, problem, rollouts) in PROBLEMS.items():
            completions, problems = [completion] * rollouts, [problem] * rollouts
            assert grader.rewards([completion], [problem]) == [1.0]  # workers have started, imports are made
            assert graded(completion, problem) == 1.0
            pairs = []
            for pair in range(PAIRS):
                here = milliseconds(partial(list, map(graded, completions, problems)), rollouts)
                there = milliseconds(partial(grader.rewards, completions, problems), rollouts)
                pairs.append((here, there))
                print(f"{name}: pair {pair + 1} of {PAIRS}: {here:.3f} ms here, {there:.3f} ms in a worker", flush=True)
            rows.append(
                {
                    "verifier": name,
                    "rollouts": rollouts,
                    "ms_here": round(statistics.median(here for here, _ in pairs), 4),
                    "ms_in_worker": round(statistics.median(there for _, there in pairs), 4),
                    "ms_overhead": round(statistics.median(there - here for here, there in pairs), 4),
                }
            )
    table = markdown_table(
        ["verifier", "ms a rollout here", "in a worker", "overhead"],
        [[str(row[key]) for key in ("verifier", "ms_here", "ms_in_worker", "ms_overhead")] for row in rows],
    )
    save("reward_workers", {"rows": rows}, table)


if __name__ == "__main__":
    main()
