"""Tasks by the texts that name them.

    embedded                               the world of the embedded model; `embedded?families=sum,sort`
    reasoning-gym:chain_sum?min_terms=2    any data set of reasoning-gym with fields of its configuration
    path.jsonl, path.parquet, a folder, or the name of a Hugging Face data set; `?prompt=COLUMN&answer=COLUMN`
    A + B, 3*A + B                         a mixture, evenly or by weight

A task is a source of problems that the same arguments draw again, and a verifier that grades any of them.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poise.tasks import embedded
from poise.tasks.data_set import data_set_problems
from poise.tasks.generated import reasoning_gym_problems
from poise.tasks.problem import Problem, ProblemSource
from poise.tasks.verifiers import graded

__all__ = ["Problem", "ProblemSource", "Task", "task_named"]


@dataclass(frozen=True)
class Task:
    """What a policy is trained and measured on.

    Attributes:
        name: Short, for file names and tables.
        problems: `problems(num, *, seed, split)`: a generated task gives `num`, a data set no more than it holds.
        verifier: `verifier(completion, problem)`, a reward from 0 to 1. It may hang or crash: `poise.rewards.Grader`
            calls it where that does no harm.
    """

    name: str
    problems: ProblemSource
    verifier: Callable[[str, Problem], float] = graded


def task_named(spec: str, *, needs_answers: bool = True) -> Task:
    """The task that a text names (see above).

    Args:
        spec: The text.
        needs_answers: Whether a data set without a column of answers is refused; False where the reward does not come
            from comparing answers.

    Raises:
        ValueError: If the text is no task, names something unknown, or a data set lacks a column or is empty.
        FileNotFoundError: If a file is not there.
    """
    parts = [part.strip() for part in re.split(r"\s\+\s", spec)]
    if len(parts) > 1 or re.match(r"[\d.]+\s*\*", parts[0]):
        return _mixture(parts, needs_answers=needs_answers)
    source, _, query = parts[0].partition("?")
    options = _options(query, spec=spec)
    if source == "embedded":
        return _embedded(options)
    if source.startswith("reasoning-gym:"):
        name = source.removeprefix("reasoning-gym:")
        return Task(name, reasoning_gym_problems(name, options))
    if not source:
        raise ValueError("a task needs a name, got an empty text")
    name, problems = data_set_problems(source, options, needs_answers=needs_answers)
    return Task(name, problems)


def _options(query: str, *, spec: str) -> dict[str, str]:
    """`a=1&b=x` as names and texts."""
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, separator, value = part.partition("=")
        if not separator or not name:
            raise ValueError(f"options of a task need the form ?field=value&field=value, got {part!r} in {spec!r}")
        options[name.strip()] = value.strip()
    return options


def _embedded(options: dict[str, str]) -> Task:
    families = [name.strip() for name in options.pop("families").split(",")] if "families" in options else None
    if options:
        raise ValueError(f"the task embedded has one option, families, got {', '.join(options)}")
    embedded.problems(0, seed=0, families=families)  # names an unknown family

    def problems(num: int, *, seed: int, split: str = "train") -> list[Problem]:
        return embedded.problems(num, seed=seed, families=families, split=split)

    return Task("-".join(families or ["embedded"]), problems)


def _mixture(parts: Sequence[str], *, needs_answers: bool) -> Task:
    weights: list[float] = []
    tasks: list[Task] = []
    for part in parts:
        weighted = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*\*\s*(.+)", part)
        weights.append(float(weighted[1]) if weighted else 1.0)
        tasks.append(task_named(weighted[2] if weighted else part, needs_answers=needs_answers))
    if min(weights) <= 0:
        raise ValueError(f"weights of a mixture must be greater than 0, got {', '.join(map(str, weights))}")

    def problems(num: int, *, seed: int, split: str = "train") -> list[Problem]:
        """Every problem's task is drawn by weight; the tasks that still have problems share what the others lack."""
        rng = random.Random(f"poise mixture {split} {seed}")
        left = [iter(task.problems(num, seed=seed, split=split)) for task in tasks]
        chances = list(weights)
        drawn: list[Problem] = []
        while len(drawn) < num and any(chances):
            place = rng.choices(range(len(tasks)), chances)[0]
            problem = next(left[place], None)
            if problem is None:
                chances[place] = 0.0
            else:
                drawn.append(problem)
        return drawn

    return Task("+".join(task.name for task in tasks), problems)
