"""An evaluation in a folder: it goes on where it was interrupted, and ends as if it had not been.

    config.json      what is measured; another configuration in the same folder is refused
    completions/     one parquet file a batch, graded; written whole or not at all
    results.json, results.md

A batch's random state depends on the seed and on the number of the batch alone, and results are made from the
files alone. So it does not matter which sitting drew which batch.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow
import pyarrow.parquet
import torch
from torch import nn

from poise.evaluate.sampling import SampledCompletion, Sampling
from poise.evaluate.scores import GradedCompletion, Scores, markdown_table, scores, scores_by_domain
from poise.storage.claims import claim
from poise.storage.whole_files import write_whole, written_whole
from poise.tasks.problem import Problem

COMPLETIONS_SCHEMA = pyarrow.schema(
    [
        ("problem", pyarrow.int64()),
        ("draw", pyarrow.int64()),
        ("domain", pyarrow.string()),
        ("prompt", pyarrow.string()),  # as the policy saw it
        ("completion", pyarrow.string()),
        ("num_tokens", pyarrow.int64()),
        ("truncated", pyarrow.bool_()),
        ("reward", pyarrow.float64()),  # null where it could not be graded
    ],
    metadata={"poise_completions_version": "1"},
)


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that the results depend on."""

    model: str
    """As it was given."""
    weights: str
    """Fingerprint."""
    task: str
    problems: str
    """Fingerprint of the problems and of the prompts made from them."""
    num_prompts: int
    k: int
    """Completions a problem."""
    temperature: float
    top_p: float
    top_k: int
    max_completion_length: int
    seed: int
    batch_size: int
    ends: list[int] = field(default_factory=list)
    """Tokens that end a completion."""
    reward: list[str] = field(default_factory=list)
    """Reward functions that are measured in place of the task's verifier."""

    def __post_init__(self) -> None:
        for name in ("num_prompts", "k", "max_completion_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be greater than 0 and at most 1, got {self.top_p:g}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")

    @property
    def sampling(self) -> Sampling:
        """How completions are drawn."""
        return Sampling(self.max_completion_length, self.temperature, self.top_p, self.top_k)


@runtime_checkable
class Complete(Protocol):
    """Draws one completion a prompt; the same for the same prompts and seed."""

    def __call__(self, prompts: list[str], /, *, seed: int) -> Sequence[SampledCompletion]:
        """The completions, in the order of the prompts."""
        ...


Rewards = Callable[[list[str], list[Problem]], Sequence[float]]
"""One reward for each of some completions, NaN where ungradable."""


class Evaluation:
    """An evaluation in a folder, new or to be continued.

    Args:
        path: The folder.
        settings: What to measure.
        problems: As many as `settings.num_prompts`.
        prompts: What the policy gets to see of each problem.

    Raises:
        ValueError: If the folder holds an evaluation with other settings, or the numbers differ.
        FileExistsError: If it holds something else.
    """

    def __init__(
        self, path: Path, *, settings: EvaluationSettings, problems: Sequence[Problem], prompts: Sequence[str]
    ) -> None:
        if not len(problems) == len(prompts) == settings.num_prompts:
            raise ValueError(f"{settings.num_prompts} prompts were asked for, got {len(problems)} and {len(prompts)}")
        self.path, self.settings = path, settings
        self._problems, self._prompts = list(problems), list(prompts)
        self._folder = path / "completions"
        total = settings.num_prompts * settings.k
        self._batches = [
            range(first, min(first + settings.batch_size, total)) for first in range(0, total, settings.batch_size)
        ]
        # Where the model lies does not matter when its weights are the same.
        claim(path, dataclasses.asdict(settings), what="evaluation", ignored=["model"])
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def num_batches(self) -> int:
        """Files that there are when all is done."""
        return len(self._batches)

    def rows(self, number: int) -> list[tuple[int, int]]:
        """Problem and draw of each completion of a batch."""
        return [divmod(row, self.settings.k) for row in self._batches[number]]

    @property
    def missing(self) -> list[int]:
        """Numbers of the batches that are still to be drawn; one whose file cannot be read is drawn again."""
        return [number for number in range(self.num_batches) if self.completions(number) is None]

    def run(
        self, complete: Complete, rewards: Rewards, *, watch: Callable[[int], None] = lambda num_done: None
    ) -> dict[str, Any]:
        """Draw and grade what is missing, and write the results.

        Args:
            complete: The policy.
            rewards: The verifier.
            watch: Told how many batches are done, before the first and after each.

        Returns:
            What is written to `results.json`.
        """
        missing = self.missing
        watch(self.num_batches - len(missing))
        for num_drawn, number in enumerate(missing, start=1):
            rows = self.rows(number)
            prompts = [self._prompts[problem] for problem, _ in rows]
            drawn = complete(prompts, seed=batch_seed(self.settings.seed, number))
            graded = rewards([each.text for each in drawn], [self._problems[problem] for problem, _ in rows])
            self._write(number, rows, drawn, graded)
            watch(self.num_batches - len(missing) + num_drawn)
        return self.write_results()

    def write_results(self) -> dict[str, Any]:
        """Make `results.json` and `results.md` from the files of completions; all must be there."""
        completions: list[GradedCompletion] = []
        for number in range(self.num_batches):
            batch = self.completions(number)
            if batch is None:
                raise ValueError(f"{self.file(number)} is missing: run the evaluation to its end first")
            completions += batch
        k = self.settings.k
        everything, by_domain = scores(completions, k=k), scores_by_domain(completions, k=k)
        results = {
            "settings": dataclasses.asdict(self.settings),
            "all": everything.as_json(k=k),
            "by_domain": {name: each.as_json(k=k) for name, each in by_domain.items()},
        }
        write_whole(self.path / "results.json", json.dumps(results, indent=2) + "\n")
        write_whole(self.path / "results.md", results_text(self.settings, everything, by_domain))
        return results

    def file(self, number: int) -> Path:
        """Where a batch's completions are, or will be."""
        return self._folder / f"batch-{number:06d}.parquet"

    def completions(self, number: int) -> list[GradedCompletion] | None:
        """What a batch's file holds; None where there is none that can be read."""
        try:
            table = pyarrow.parquet.read_table(self.file(number), schema=COMPLETIONS_SCHEMA)
        except (OSError, pyarrow.ArrowException):
            return None
        return [GradedCompletion(**row) for row in table.to_pylist()]

    def _write(
        self,
        number: int,
        rows: Sequence[tuple[int, int]],
        drawn: Sequence[SampledCompletion],
        graded: Sequence[float],
    ) -> None:
        if not len(rows) == len(drawn) == len(graded):
            raise ValueError(
                f"{len(rows)} prompts need one completion and one reward each, got {len(drawn)} and {len(graded)}"
            )
        lines = [
            {
                "problem": problem,
                "draw": draw,
                "domain": self._problems[problem].domain,
                "prompt": self._prompts[problem],
                "completion": each.text,
                "num_tokens": each.num_tokens,
                "truncated": each.truncated,
                "reward": float(reward) if math.isfinite(reward) else None,
            }
            for (problem, draw), each, reward in zip(rows, drawn, graded, strict=True)
        ]
        with written_whole(self.file(number)) as place:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines, schema=COMPLETIONS_SCHEMA), place)


def batch_seed(seed: int, number: int) -> int:
    """The seed of a batch's draws."""
    return int.from_bytes(hashlib.sha256(f"poise evaluation {seed} {number}".encode()).digest()[:7], "big")


def problems_fingerprint(problems: Sequence[Problem], prompts: Sequence[str]) -> str:
    """Twelve hexadecimal digits that differ when a problem, its grading or its prompt does."""
    told = [[p.prompt, p.answer, p.domain, p.verifier, p.details, q] for p, q in zip(problems, prompts, strict=True)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def weights_fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits that differ when a weight, its name or its type does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def results_text(settings: EvaluationSettings, everything: Scores, by_domain: dict[str, Scores]) -> str:
    """The results as markdown: what was measured, and the table."""
    top = f", top-p {settings.top_p:g}" if settings.top_p < 1 else ""
    top += f", top-k {settings.top_k}" if settings.top_k else ""
    return (
        f"# {settings.model} on {settings.task}\n\n"
        f"{settings.num_prompts} problems, {settings.k} completions each; temperature {settings.temperature:g}{top}, "
        f"at most {settings.max_completion_length} tokens, seed {settings.seed}. "
        "In brackets: 95 % intervals over problems.\n\n"
    ) + markdown_table(everything, by_domain, k=settings.k)
