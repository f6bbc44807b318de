"""The rollouts of a study: drawn once, read in the same sitting, and found again.

    training/   two rollouts of each training prompt, and two of its history
    held-out/   k rollouts of each held-out prompt, and two of its history
    older/      two rollouts of each training prompt by an older model, if one was given
        completions/    one parquet file a batch: `poise.evaluate.evaluation`, which goes on where it was interrupted
        features/       beside it one safetensors file: token ids, states of all layers, scalars, weights

A batch is there when both of its files are. No prompt lies on both sides, and every task is known to have prompts
enough before the first is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from poise.evaluate.evaluation import (
    Evaluation,
    EvaluationSettings,
    batch_seed,
    problems_fingerprint,
    weights_fingerprint,
)
from poise.evaluate.sampling import SampledCompletion, measured_completions
from poise.features.rollout_features import end_of_thinking_ids
from poise.lab.progress import Watch, silent
from poise.lab.study.reading import Reading, reading
from poise.lab.study.settings import FEWEST_HELD_OUT_PROMPTS, FEWEST_TRAINING_PROMPTS, HISTORY, PAIR, StudySettings
from poise.storage.whole_files import written_whole
from poise.tasks.embedded import END_OF_THINKING
from poise.tasks.graded_task import HELD_OUT_SEED, GradedTask
from poise.tasks.problem import Problem
from poise.tasks.task import Task

SPLITS = ("training", "held-out", "older")
"""Folders of a task's rollouts; each is drawn with a seed of its own."""


@dataclass(frozen=True)
class StudyRollouts:
    """Rollouts of some prompts: `rewards` of all of them, everything else of the first `featured` of each prompt."""

    prompts: list[str]
    domains: list[str]
    rewards: Float[Tensor, "prompts rollouts"]
    prompt_states: dict[int, Float[Tensor, "prompts layers width"]]
    """By the number of tokens that are pooled; of the first rollout, for causal attention makes them alike."""
    completion_states: dict[int, Float[Tensor, "prompts featured layers width"]]
    scalars: Float[Tensor, "prompts featured scalars"]
    """A column for each of `poise.features.scalars.SCALARS`."""
    weights: Float[Tensor, "prompts featured"]
    prompt_ids: list[list[int]]
    completion_ids: list[list[list[int]]]
    layers: list[int]

    @property
    def featured(self) -> int:
        """Rollouts of a prompt with features."""
        return self.scalars.shape[1]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Sequence[int]) -> "StudyRollouts":
        index = torch.tensor(list(rows), dtype=torch.int64)

        def chosen(part: Any) -> Any:
            if isinstance(part, dict):
                return {pool: states[index] for pool, states in part.items()}
            return part[index] if isinstance(part, Tensor) else [part[row] for row in rows]

        parts = {name: chosen(getattr(self, name)) for name in self.__dataclass_fields__ if name != "layers"}
        return StudyRollouts(**parts, layers=self.layers)

    def gradable(self) -> "StudyRollouts":
        """The prompts all of whose rollouts could be graded."""
        return self[(~self.rewards.isnan().any(dim=1)).nonzero()[:, 0].tolist()]


@dataclass(frozen=True)
class StudiedTask:
    """A task, its problems and its folder; call `graded.close` at the end."""

    spec: str
    folder: Path
    graded: GradedTask
    training: list[Problem]
    held_out: list[Problem]


@dataclass(frozen=True)
class DrawnTask:
    """A task's rollouts."""

    spec: str
    folder: Path
    training: StudyRollouts
    held_out: StudyRollouts
    older: StudyRollouts | None
    left_out: int
    """Prompts with a rollout that could not be graded."""


def studied_task(spec: str, folder: Path, settings: StudySettings, *, tokenizer: Any) -> StudiedTask:
    """The problems of a task.

    Raises:
        ValueError: If there is no such task, or it has too few prompts.
        FileNotFoundError: If its file is not there.
    """
    graded = GradedTask(spec, tokenizer=tokenizer)
    held_out = distinct_problems(graded.task, settings.held_out_prompts, seed=HELD_OUT_SEED, split="heldout")
    training = distinct_problems(graded.task, settings.prompts, seed=settings.seed, split="train", apart_from=held_out)
    if len(training) < FEWEST_TRAINING_PROMPTS or len(held_out) < FEWEST_HELD_OUT_PROMPTS:
        raise ValueError(
            f"task {spec!r} has too few prompts: a study needs at least {FEWEST_TRAINING_PROMPTS} to train on and "
            f"{FEWEST_HELD_OUT_PROMPTS} held out, got {len(training)} and {len(held_out)}"
        )
    return StudiedTask(spec, folder, graded, training, held_out)


def distinct_problems(
    task: Task, num: int, *, seed: int, split: str, apart_from: Sequence[Problem] = ()
) -> list[Problem]:
    """Up to `num` problems of different prompts, none of them among those of `apart_from`."""
    taken = {problem.prompt for problem in apart_from}
    found: dict[str, Problem] = {}
    for problem in task.problems(2 * num, seed=seed, split=split):
        if problem.prompt not in taken:
            found.setdefault(problem.prompt, problem)
    return list(found.values())[:num]


def drawn_task(
    task: StudiedTask, settings: StudySettings, reader: "Reader", *, older: Any | None, watch: Watch = silent
) -> DrawnTask:
    """Draw what is missing of a task: training prompts by both policies, held-out ones by the first alone.

    Args:
        task, settings: What is drawn.
        reader: Of the policy that is studied.
        older: The older policy, if there is one.
        watch: Told how many batches are drawn.
    """

    def rollouts(split: str, by: Reader, problems: Sequence[Problem], k: int, featured: int) -> StudyRollouts:
        texts = task.graded.texts(problems)
        evaluation = Evaluation(
            task.folder / split,
            settings=EvaluationSettings(
                model=(settings.older_model or "") if split == "older" else settings.model,
                weights=weights_fingerprint(by.policy),
                task=task.spec,
                problems=problems_fingerprint(problems, texts),
                num_prompts=len(problems),
                k=k,
                temperature=settings.temperature,
                top_p=1.0,
                top_k=0,
                max_completion_length=settings.max_completion_length,
                seed=len(SPLITS) * settings.seed + SPLITS.index(split),
                batch_size=settings.batch_size,
            ),
            problems=problems,
            prompts=texts,
        )
        shown: Watch = lambda what, done, total: watch(f"{task.spec}: drawing {split}", done, total)  # noqa: E731
        draw(evaluation, by, task.graded.grader.rewards, featured=featured, watch=shown)
        return drawn_rollouts(evaluation, featured=featured, layers=by.layers)

    training = rollouts("training", reader, task.training, PAIR + HISTORY, PAIR)
    held_out = rollouts("held-out", reader, task.held_out, settings.k + HISTORY, settings.evidence)
    theirs = None
    if older is not None:
        by_older = Reader(older, reader.tokenizer, reader.layers, reader.pools, reader.temperature)
        theirs = rollouts("older", by_older, task.training, PAIR, PAIR).gradable()
    kept, judges = training.gradable(), held_out.gradable()
    left_out = len(training) + len(held_out) - len(kept) - len(judges)
    return DrawnTask(task.spec, task.folder, kept, judges, theirs, left_out)


def nothing_to_tell(drawn: DrawnTask) -> str:
    """Why a task cannot be studied; empty where it can."""
    if len(drawn.training) < FEWEST_TRAINING_PROMPTS or len(drawn.held_out) < FEWEST_HELD_OUT_PROMPTS:
        return (
            f"task {drawn.spec!r} has too few prompts all of whose rollouts could be graded: {len(drawn.training)} to "
            f"train on and {len(drawn.held_out)} held out"
        )
    for rewards in (drawn.training.rewards[:, :PAIR], drawn.held_out.rewards):
        if bool((rewards == rewards[0, 0]).all()):
            return (
                f"task {drawn.spec!r} says nothing about any estimator: every rollout earned {float(rewards[0, 0]):g}; "
                "choose a task that this model solves sometimes"
            )
    return ""


@dataclass(frozen=True)
class Reader:
    """A policy, and what is read from its forward passes."""

    policy: Any
    tokenizer: Any
    layers: list[int]
    pools: list[int]
    """Numbers of last tokens that are averaged."""
    temperature: float

    def __call__(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Reading:
        """Read rollouts, given as token ids."""
        return reading(
            self.policy,
            prompts,
            completions,
            layers=self.layers,
            pools=self.pools,
            end_of_thinking_ids=end_of_thinking_ids(self.tokenizer, END_OF_THINKING),
            temperature=self.temperature,
        )


def draw(evaluation: Evaluation, reader: Reader, rewards: Any, *, featured: int, watch: Watch = silent) -> None:
    """Draw, read and grade what is missing of an evaluation.

    Args:
        evaluation: Its settings say what is drawn.
        reader: Who draws, and what is read.
        rewards: The verifier.
        featured: Rollouts of each prompt whose features are read.
        watch: Told how many batches are done.
    """
    settings, tokenizer = evaluation.settings, reader.tokenizer
    (evaluation.path / "features").mkdir(exist_ok=True)
    numbers = {batch_seed(settings.seed, number): number for number in range(evaluation.num_batches)}
    for number in numbers.values():
        if not _is_whole(_features_file(evaluation, number)):
            evaluation.file(number).unlink(missing_ok=True)

    def complete(texts: list[str], *, seed: int) -> list[SampledCompletion]:
        drawn = measured_completions(
            reader.policy, tokenizer, texts, sampling=settings.sampling, seed=seed, batch_size=settings.batch_size
        )
        kept = [(place, each) for place, (_, each) in enumerate(evaluation.rows(numbers[seed])) if each < featured]
        prompt_ids = [tokenizer(texts[place], add_special_tokens=False)["input_ids"] for place, _ in kept]
        completion_ids = [drawn[place].token_ids for place, _ in kept]
        tensors: dict[str, Tensor] = {}
        if kept:
            read = reader(prompt_ids, completion_ids)
            first = torch.tensor([each == 0 for _, each in kept])
            tensors |= {f"prompt.{pool}": states[first] for pool, states in read.prompt.items()}
            tensors |= {f"completion.{pool}": states for pool, states in read.completion.items()}
            tensors |= {"scalars": read.scalars, "weights": read.weights}
        for name, ids in (("prompt", prompt_ids), ("completion", completion_ids)):
            tensors[f"{name}_ids"] = torch.tensor([token for each in ids for token in each], dtype=torch.int32)
            tensors[f"{name}_lengths"] = torch.tensor([len(each) for each in ids], dtype=torch.int32)
        with written_whole(_features_file(evaluation, numbers[seed])) as place:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place)
        return drawn

    evaluation.run(complete, rewards, watch=lambda done: watch("drawing", done, evaluation.num_batches))


def drawn_rollouts(evaluation: Evaluation, *, featured: int, layers: Sequence[int]) -> StudyRollouts:
    """What was drawn.

    Args:
        evaluation: All of whose batches are there.
        featured: Rollouts of each prompt whose features were read.
        layers: That were read.
    """
    settings = evaluation.settings
    rewards = torch.full((settings.num_prompts, settings.k), torch.nan, dtype=torch.float64)
    prompts, domains = [""] * settings.num_prompts, [""] * settings.num_prompts
    parts: dict[str, list[Tensor]] = {}
    for number in range(evaluation.num_batches):
        for each in evaluation.completions(number) or []:
            prompts[each.problem], domains[each.problem] = each.prompt, each.domain
            if each.reward is not None:
                rewards[each.problem, each.draw] = each.reward
        for name, tensor in load_file(_features_file(evaluation, number)).items():
            parts.setdefault(name, []).append(tensor)
    joined = {name: torch.cat(each) for name, each in parts.items()}  # rows lie in the order (problem, rollout)
    by_prompt = (settings.num_prompts, featured)
    pools = sorted(int(name.removeprefix("prompt.")) for name in joined if name.startswith("prompt."))
    ids = {
        name: [each.tolist() for each in joined[f"{name}_ids"].split(joined[f"{name}_lengths"].tolist())]
        for name in ("prompt", "completion")
    }
    return StudyRollouts(
        prompts,
        domains,
        rewards,
        {pool: joined[f"prompt.{pool}"] for pool in pools},
        {pool: joined[f"completion.{pool}"].unflatten(0, by_prompt) for pool in pools},
        joined["scalars"].unflatten(0, by_prompt),
        joined["weights"].unflatten(0, by_prompt),
        ids["prompt"][::featured],
        [ids["completion"][first : first + featured] for first in range(0, len(ids["completion"]), featured)],
        list(layers),
    )


def _features_file(evaluation: Evaluation, number: int) -> Path:
    return evaluation.path / "features" / f"batch-{number:06d}.safetensors"


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
