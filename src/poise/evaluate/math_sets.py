"""The math sets that papers report on, read from local files.

A set is read from a local file of its published format (columns problem or question, and answer), found by
the names under which it is published. Nothing is downloaded.
"""

import re
from dataclasses import replace
from pathlib import Path

from poise.tasks.data_set import FILES, data_set_problems
from poise.tasks.problem import Problem
from poise.tasks.task import Task

MATH_SETS: dict[str, tuple[str, ...]] = {
    "aime24": ("aime24", "aime2024"),
    "aime25": ("aime25", "aime2025"),
    "aime26": ("aime26", "aime2026"),
    "amc23": ("amc23", "amc2023"),
    "amc24": ("amc24", "amc2024"),
    "hmmt25": ("hmmt25", "hmmt2025", "hmmtfeb25", "hmmtfeb2025"),
    "brumo25": ("brumo25", "brumo2025"),
    "math500": ("math500",),
}
"""For each set, the names under which it is published, without case and punctuation."""

INSTRUCTION = "Please output the final answer within \\boxed{}."
"""Stands after every problem, as in the evaluation that the method's authors released."""


def is_math_set(spec: str) -> bool:
    """Whether a text names one of the sets, or several with commas between."""
    return all(name.strip() in MATH_SETS for name in spec.split(","))


def math_set_task(spec: str, *, data_dir: Path, instruction: str = INSTRUCTION) -> Task:
    """One math set, or several as one task; each is a domain of its own.

    Args:
        spec: A name out of `MATH_SETS`, or several with commas between.
        data_dir: Where a file `<name>.jsonl` (or .parquet, .json, .csv) lies, or a folder of that name with one.
        instruction: What stands after every problem.

    Raises:
        ValueError: If a name is unknown or given twice, or a file is not of the format.
        FileNotFoundError: If a set is not there, or in several places.
    """
    names = [name.strip() for name in spec.split(",")]
    if unknown := [name for name in names if name not in MATH_SETS]:
        raise ValueError(f"math sets are {', '.join(MATH_SETS)}, got {', '.join(unknown)}")
    if len(set(names)) < len(names):
        raise ValueError(f"each math set counts once, got {spec}")
    options = {"instruction": instruction} if instruction else {}
    sources = {}
    for name in names:
        _, sources[name] = data_set_problems(str(math_set_file(name, data_dir)), options, needs_answers=True)

    def problems(num: int, *, seed: int, split: str = "all") -> list[Problem]:
        """Up to `num` of each set, the same for the same seed."""
        return [
            replace(problem, domain=name)
            for name, source in sources.items()
            for problem in source(num, seed=seed, split="all")
        ]

    return Task("+".join(names), problems)


def math_set_file(name: str, data_dir: Path) -> Path:
    """The one file of a set.

    Raises:
        FileNotFoundError: If there is none, or more than one.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"--data-dir needs a folder with the files of math sets, got {data_dir}")
    known = MATH_SETS[name]
    found = [
        path
        for path in sorted(data_dir.rglob("*"))
        if path.suffix in FILES
        and path.is_file()
        and any(_bare(part) in known for part in (path.stem, *path.relative_to(data_dir).parent.parts))
    ]
    if len(found) != 1:
        came = ", ".join(str(path.relative_to(data_dir)) for path in found) or "none"
        raise FileNotFoundError(f"{data_dir} needs one file for {name}, such as {name}.jsonl, found {came}")
    return found[0]


def _bare(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
