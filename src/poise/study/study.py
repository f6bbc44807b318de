"""What is a study, from a model and some tasks to its tables?

    config.json            what is studied; another study in the same folder is refused
    TASK/training/         two rollouts of each training prompt, and two of its history  (`poise.study.drawing`)
    TASK/held-out/         k rollouts of each held-out prompt, and two of its history
    TASK/older/            training rollouts of an older model, if one was given
    TASK/critics/          what the critics said, and what they cost
    study.md, study.json, figures/

The rule: what takes long is kept as it comes, and the same command goes on; tables are made from files alone, and again
whenever a task is done.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import poise
from poise.evaluate.evaluation import Evaluation, EvaluationSettings, problems_fingerprint, weights_fingerprint
from poise.hidden_states import decoder_blocks
from poise.models.named import named_model, named_tokenizer
from poise.rewards.graded_task import HELD_OUT_SEED, GradedTask
from poise.scalars import SCALARS
from poise.study.critics import CriticFitting, kept_critic_estimates
from poise.study.drawing import StudyRollouts, check_same_study, distinct_problems, draw, drawn_rollouts
from poise.study.estimators import PAIR, Estimates, View
from poise.study.judging import calibration_points, judged, resampled_prompts
from poise.study.recommendation import Recommendation, recommendation
from poise.study.tables import (
    FEWEST_TRAINING_PROMPTS,
    REFERENCE,
    Material,
    Noise,
    Table,
    age_table,
    estimator_table,
    feature_table,
    layer_table,
    noise_of,
    pool_table,
    probe_table,
    size_table,
)
from poise.tasks.embedded import END_OF_THINKING
from poise.tasks.problem import Problem

HISTORY = 2
"""Rollouts of each prompt that stand for an earlier step."""
FEWEST_HELD_OUT_PROMPTS = 16
TABLES = ("estimators", "features", "layers", "pools", "probes", "sizes")
"""What is compared; with an older model, the age of the window too."""
SPLITS = ("training", "held-out", "older")
"""Folders of a task's rollouts; each is drawn with a seed of its own."""

Watch = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""


@dataclass(frozen=True)
class StudySettings:
    """What is studied: everything that the drawn rollouts depend on, and how they are looked at."""

    model: str
    tasks: tuple[str, ...]
    older_model: str | None = None
    prompts: int = 256
    """Training prompts of each task."""
    held_out_prompts: int = 128
    k: int = 8
    """Rollouts of a held-out prompt that judge."""
    evidence: int = 4
    """Rollouts of a held-out prompt that are evidence, one at a time; the first of the k."""
    temperature: float = 1.0
    max_completion_length: int = 64
    layers: tuple[int, ...] | None = None
    """None: all."""
    pools: tuple[int, ...] = (1, 5, 10, 20)
    pool_tokens: int = 10
    """Of all tables but the one that compares pooling windows."""
    seed: int = 0
    batch_size: int = 128
    critics: bool = True
    critic_epochs: int = 2
    critic_learning_rates: tuple[float, ...] = (3e-5,)
    critic_batch_size: int = 16
    resamples: int = 500
    """Of held-out prompts, for intervals."""
    tables: tuple[str, ...] = TABLES

    def __post_init__(self) -> None:
        if self.k < 3:
            raise ValueError(
                f"an estimate is made from one rollout and judged by two others or more: k must be at least 3, "
                f"got {self.k}"
            )
        if not 1 <= self.evidence <= self.k:
            raise ValueError(f"evidence must lie between 1 and k = {self.k}, got {self.evidence}")
        if self.prompts < FEWEST_TRAINING_PROMPTS or self.held_out_prompts < FEWEST_HELD_OUT_PROMPTS:
            raise ValueError(
                f"a study needs at least {FEWEST_TRAINING_PROMPTS} training prompts and {FEWEST_HELD_OUT_PROMPTS} held "
                f"out, got {self.prompts} and {self.held_out_prompts}"
            )
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"a study needs one task or more, each once, got {', '.join(self.tasks) or 'none'}")
        for name, lowest in (("critic_epochs", 1), ("critic_batch_size", 1), ("resamples", 1), ("pool_tokens", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be {lowest} or more, got {getattr(self, name)}")
        if not self.critic_learning_rates or min(self.critic_learning_rates) <= 0:
            raise ValueError(f"critic_learning_rates must be positive, got {self.critic_learning_rates}")
        unknown = [name for name in self.tables if name not in TABLES]
        if unknown or not self.tables:
            raise ValueError(f"tables are {', '.join(TABLES)}; got {', '.join(unknown) or 'none'}")
        if min(self.pools, default=0) < 1:
            raise ValueError(f"pools must be numbers of tokens from 1 on, got {self.pools}")

    @property
    def drawn(self) -> dict[str, Any]:
        """What files in the folder depend on."""
        afterwards = {"critics", "critic_epochs", "critic_learning_rates", "critic_batch_size", "resamples", "tables"}
        by_weights = {"model", "older_model"}  # told apart by their fingerprints, wherever they lie
        return {name: each for name, each in dataclasses.asdict(self).items() if name not in afterwards | by_weights}


@dataclass(frozen=True)
class TaskStudy:
    """What a study found on one task."""

    task: str
    num_training: int
    num_held_out: int
    left_out: int
    """Prompts with a rollout that could not be graded."""
    noise: Noise
    tables: dict[str, Table]
    recommendation: Recommendation | None
    """None where the tables that it rests on were not asked for."""
    calibration: dict[str, list[tuple[float, float]]]
    """Of some estimators: mean estimate and mean reward of ten bins."""


@dataclass(frozen=True)
class StudyResults:
    """What a study found."""

    settings: StudySettings
    tasks: list[TaskStudy] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """A sentence for each task that could not be studied."""


@dataclass(frozen=True)
class DrawnTask:
    """A task's rollouts."""

    spec: str
    folder: Path
    training: StudyRollouts
    held_out: StudyRollouts
    older: StudyRollouts | None
    left_out: int


def study(
    settings: StudySettings,
    folder: Path,
    *,
    chat_options: dict[str, Any] | None = None,
    watch: Watch = lambda what, done, total: None,
    report: Callable[[StudyResults], None] = lambda results: None,
) -> StudyResults:
    """Draw what is missing, fit, judge.

    Args:
        settings: What to study.
        folder: Where everything is kept.
        chat_options: For the tokenizer's chat template.
        watch: Shown what goes on.
        report: Given the results so far whenever a task is done.

    Raises:
        ValueError: If a task has too few prompts, or no task has rewards that differ; if the folder holds another
            study.
        FileExistsError: If the folder holds something else.
    """
    policy, tokenizer = _loaded(settings.model)
    layers = _checked_layers(policy, settings)
    older = _loaded(settings.older_model)[0] if settings.older_model else None
    fingerprints = {
        "weights": weights_fingerprint(policy),
        "older_weights": weights_fingerprint(older) if older else None,
    }
    check_same_study(
        folder,
        settings.drawn
        | fingerprints
        | {"layers": layers, "scalars": list(SCALARS)}
        | {"chat_options": chat_options or {}},
    )
    default_layer = min(layers, key=lambda layer: abs(layer - int(0.6 * len(decoder_blocks(policy)[1]))))
    drawn = [
        _drawn_task(
            spec,
            folder / folder_name(spec),
            settings,
            policies={"": policy} | ({"older": older} if older else {}),
            tokenizer=tokenizer,
            layers=layers,
            chat_options=chat_options,
            watch=watch,
        )
        for spec in settings.tasks
    ]
    results = StudyResults(settings)
    for each in drawn:
        sentence = nothing_to_tell(each)
        if sentence:
            results.skipped.append(sentence)
            continue
        critics = _critics(each, policy, settings, watch) if settings.critics else {}
        results.tasks.append(_task_study(each, critics, settings, default_layer, watch=watch))
        report(results)
    if not results.tasks:
        raise ValueError("; ".join(results.skipped))
    return results


def folder_name(text: str) -> str:
    """A name for a task's folder."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-.") or "task"


def _loaded(name: str) -> tuple[Any, Any]:
    on_gpu = torch.cuda.is_available()
    tokenizer = named_tokenizer(name)
    return named_model(name, **({"dtype": "auto"} if on_gpu else {})).to("cuda" if on_gpu else "cpu").eval(), tokenizer


def _checked_layers(policy: Any, settings: StudySettings) -> list[int]:
    depth = len(decoder_blocks(policy)[1])
    layers = list(range(depth)) if settings.layers is None else sorted(set(settings.layers))
    if not layers or layers[0] < 0 or layers[-1] >= depth:
        raise ValueError(f"layers must lie between 0 and {depth - 1}, got {', '.join(map(str, layers)) or 'none'}")
    return layers


def _drawn_task(
    spec: str,
    folder: Path,
    settings: StudySettings,
    *,
    policies: dict[str, Any],
    tokenizer: Any,
    layers: list[int],
    chat_options: dict[str, Any] | None,
    watch: Watch,
) -> DrawnTask:
    """Draw what is missing of a task: training prompts by every policy, held-out ones by the first alone."""
    graded = GradedTask(spec, tokenizer=tokenizer, chat_options=chat_options)
    try:
        held_out = distinct_problems(graded.task, settings.held_out_prompts, seed=HELD_OUT_SEED, split="heldout")
        training = distinct_problems(
            graded.task, settings.prompts, seed=settings.seed, split="train", apart_from=held_out
        )
        if len(training) < FEWEST_TRAINING_PROMPTS or len(held_out) < FEWEST_HELD_OUT_PROMPTS:
            raise ValueError(
                f"task {spec!r} has too few prompts: a study needs at least {FEWEST_TRAINING_PROMPTS} to train on and "
                f"{FEWEST_HELD_OUT_PROMPTS} held out, got {len(training)} and {len(held_out)}"
            )
        end = tokenizer.encode(END_OF_THINKING, add_special_tokens=False)
        ends = [] if tokenizer.unk_token_id in end else end
        pools = sorted({*settings.pools, settings.pool_tokens})

        def rollouts(name: str, policy: Any, problems: Sequence[Problem], k: int, featured: int) -> StudyRollouts:
            seed = len(SPLITS) * settings.seed + SPLITS.index(name)
            texts = graded.texts(problems)
            evaluation = Evaluation(
                folder / name,
                settings=EvaluationSettings(
                    model=settings.model,
                    weights=weights_fingerprint(policy),
                    task=spec,
                    problems=problems_fingerprint(problems, texts),
                    num_prompts=len(problems),
                    k=k,
                    temperature=settings.temperature,
                    top_p=1.0,
                    top_k=0,
                    max_completion_length=settings.max_completion_length,
                    seed=seed,
                    batch_size=settings.batch_size,
                ),
                problems=problems,
                prompts=texts,
            )
            draw(
                evaluation,
                policy,
                tokenizer,
                graded.grader.rewards,
                featured=featured,
                layers=layers,
                pools=pools,
                end_of_thinking_ids=ends,
                watch=lambda done: watch(f"{spec}: drawing {name}", done, evaluation.num_batches),
            )
            return drawn_rollouts(evaluation, featured=featured, layers=layers)

        mine = rollouts("training", policies[""], training, PAIR + HISTORY, PAIR)
        theirs = rollouts("older", policies["older"], training, PAIR, PAIR) if "older" in policies else None
        judging = rollouts("held-out", policies[""], held_out, settings.k + HISTORY, settings.evidence)
    finally:
        graded.close()
    kept, judges = mine.gradable(), judging.gradable()
    left_out = len(mine) + len(judging) - len(kept) - len(judges)
    return DrawnTask(spec, folder, kept, judges, theirs.gradable() if theirs else None, left_out)


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


def _critics(drawn: DrawnTask, policy: Any, settings: StudySettings, watch: Watch) -> dict[str, Estimates]:
    return kept_critic_estimates(
        drawn.folder / "critics",
        policy,
        drawn.training,
        drawn.held_out,
        fitting=CriticFitting(
            settings.critic_epochs, settings.critic_learning_rates, settings.critic_batch_size, seed=settings.seed
        ),
        watch=lambda name, done, total: watch(f"{drawn.spec}: {name}", done, total),
    )


def _task_study(
    drawn: DrawnTask, critics: dict[str, Estimates], settings: StudySettings, default_layer: int, *, watch: Watch
) -> TaskStudy:
    """All tables of one task."""
    fitted = 0

    def told(what: str) -> None:
        nonlocal fitted
        fitted += 1
        watch(f"{drawn.spec}: fitting {what}", fitted, 0)

    material = Material(
        drawn.training,
        drawn.held_out,
        settings.k,
        View(default_layer, settings.pool_tokens),
        resampled_prompts(len(drawn.held_out), times=settings.resamples, seed=settings.seed),
        told,
    )
    makers: dict[str, Callable[[], Table]] = {
        "estimators": lambda: estimator_table(material, critics),
        "features": lambda: feature_table(material),
        "layers": lambda: layer_table(material),
        "pools": lambda: pool_table(material),
        "probes": lambda: probe_table(material),
        "sizes": lambda: size_table(material, seed=settings.seed),
    }
    tables = {name: make() for name, make in makers.items() if name in settings.tables}
    if drawn.older is not None:
        tables["age"] = age_table(material, drawn.older)
    recommended = None
    if {"layers", "pools", "features"} <= tables.keys():
        recommended = recommendation(
            tables["layers"],
            tables["pools"],
            tables["features"],
            default_layer=default_layer,
            default_pool=settings.pool_tokens,
        )
    shown = {
        REFERENCE: material.estimates(poise.preset(REFERENCE)),
        "paper": material.estimates(poise.preset("paper")),
    } | critics
    return TaskStudy(
        drawn.spec,
        len(drawn.training),
        len(drawn.held_out),
        drawn.left_out,
        noise_of(material.judging_rewards),
        tables,
        recommended,
        {name: calibration_points(judged(each.values, material.judging_rewards)) for name, each in shown.items()},
    )
