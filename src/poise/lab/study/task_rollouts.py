"""Which prompts of a task are studied, and what did the policies answer?

    training/   two rollouts of each training prompt, and two of its history
    held-out/   k rollouts of each held-out prompt, and two of its history
    older/      two rollouts of each training prompt by an older model, if one was given

The rule: no prompt lies on both sides, and every task is known to have prompts enough before the first is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.evaluate.evaluation import Evaluation, EvaluationSettings, problems_fingerprint, weights_fingerprint
from poise.features.rollout_features import end_of_thinking_ids
from poise.lab.study.drawing import StudyRollouts, distinct_problems, draw, drawn_rollouts
from poise.lab.study.estimators import PAIR
from poise.lab.study.settings import FEWEST_HELD_OUT_PROMPTS, HISTORY, StudySettings
from poise.lab.study.tables import FEWEST_TRAINING_PROMPTS
from poise.tasks.embedded import END_OF_THINKING
from poise.tasks.graded_task import HELD_OUT_SEED, GradedTask
from poise.tasks.problem import Problem

SPLITS = ("training", "held-out", "older")
"""Folders of a task's rollouts; each is drawn with a seed of its own."""

Watch = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""


@dataclass(frozen=True)
class StudiedTask:
    """A task and its problems; call `graded.close` at the end."""

    spec: str
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


def studied_task(
    spec: str, settings: StudySettings, *, tokenizer: Any, chat_options: Mapping[str, Any] | None = None
) -> StudiedTask:
    """The problems of a task.

    Raises:
        ValueError: If there is no such task, or it has too few prompts.
        FileNotFoundError: If its file is not there.
    """
    graded = GradedTask(spec, tokenizer=tokenizer, chat_options=chat_options)
    held_out = distinct_problems(graded.task, settings.held_out_prompts, seed=HELD_OUT_SEED, split="heldout")
    training = distinct_problems(graded.task, settings.prompts, seed=settings.seed, split="train", apart_from=held_out)
    if len(training) < FEWEST_TRAINING_PROMPTS or len(held_out) < FEWEST_HELD_OUT_PROMPTS:
        raise ValueError(
            f"task {spec!r} has too few prompts: a study needs at least {FEWEST_TRAINING_PROMPTS} to train on and "
            f"{FEWEST_HELD_OUT_PROMPTS} held out, got {len(training)} and {len(held_out)}"
        )
    return StudiedTask(spec, graded, training, held_out)


def drawn_task(
    task: StudiedTask,
    folder: Path,
    settings: StudySettings,
    *,
    policy: Any,
    older: Any | None,
    tokenizer: Any,
    layers: Sequence[int],
    watch: Watch,
) -> DrawnTask:
    """Draw what is missing of a task: training prompts by both policies, held-out ones by the first alone."""
    end = end_of_thinking_ids(tokenizer, END_OF_THINKING)

    def rollouts(split: str, by: Any, problems: Sequence[Problem], k: int, featured: int) -> StudyRollouts:
        texts = task.graded.texts(problems)
        evaluation = Evaluation(
            folder / split,
            settings=EvaluationSettings(
                model=settings.model if by is policy else settings.older_model or "",
                weights=weights_fingerprint(by),
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
        draw(
            evaluation,
            by,
            tokenizer,
            task.graded.grader.rewards,
            featured=featured,
            layers=layers,
            pools=sorted({*settings.pools, settings.pool_tokens}),
            end_of_thinking_ids=end,
            watch=lambda done: watch(f"{task.spec}: drawing {split}", done, evaluation.num_batches),
        )
        return drawn_rollouts(evaluation, featured=featured, layers=layers)

    training = rollouts("training", policy, task.training, PAIR + HISTORY, PAIR)
    held_out = rollouts("held-out", policy, task.held_out, settings.k + HISTORY, settings.evidence)
    theirs = None if older is None else rollouts("older", older, task.training, PAIR, PAIR).gradable()
    kept, judges = training.gradable(), held_out.gradable()
    left_out = len(training) + len(held_out) - len(kept) - len(judges)
    return DrawnTask(task.spec, folder, kept, judges, theirs, left_out)


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
