"""What is a study, from a model and some tasks to its tables?

    config.json            what is studied; another study in the same folder is refused
    TASK/training/, ...    rollouts and features (`poise.lab.study.task_rollouts`)
    TASK/critics/          what the critics said, and what they cost
    study.md, study.json, figures/

The rule: what takes long is kept as it comes, and the same command goes on; tables are made from files alone, and again
whenever a task is done.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import poise
from poise.evaluate.evaluation import weights_fingerprint
from poise.features.hidden_states import checked_layers, decoder_blocks, default_layer
from poise.features.scalars import SCALARS
from poise.lab.study.comparisons import (
    age_table,
    estimator_table,
    feature_table,
    layer_table,
    pool_table,
    probe_table,
    size_table,
)
from poise.lab.study.critics import CriticFitting, kept_critic_estimates
from poise.lab.study.drawing import check_same_study
from poise.lab.study.estimators import Estimates, View
from poise.lab.study.judging import calibration_points, judged, resampled_prompts
from poise.lab.study.recommendation import Recommendation, recommendation
from poise.lab.study.settings import StudySettings, folder_name
from poise.lab.study.tables import REFERENCE, Material, Noise, Table, noise_of
from poise.lab.study.task_rollouts import (
    DrawnTask,
    StudiedTask,
    Watch,
    drawn_task,
    nothing_to_tell,
    studied_task,
)
from poise.models.named import named_model, named_tokenizer


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
    policy, tokenizer = loaded_policy(settings.model, chat=settings.chat)
    layers = _studied_layers(policy, settings)
    older = loaded_policy(settings.older_model, chat=settings.chat)[0] if settings.older_model else None
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
    usual = default_layer(len(decoder_blocks(policy)[1]))
    nearest = min(layers, key=lambda layer: abs(layer - usual))
    tasks: list[StudiedTask] = []
    drawn: list[DrawnTask] = []
    try:
        for spec in settings.tasks:
            tasks.append(studied_task(spec, settings, tokenizer=tokenizer, chat_options=chat_options))
        for task in tasks:
            place = folder / folder_name(task.spec)
            drawn.append(
                drawn_task(
                    task,
                    place,
                    settings,
                    policy=policy,
                    older=older,
                    tokenizer=tokenizer,
                    layers=layers,
                    watch=watch,
                )
            )
    finally:
        for task in tasks:
            task.graded.close()
    results = StudyResults(settings)
    for each in drawn:
        sentence = nothing_to_tell(each)
        if sentence:
            results.skipped.append(sentence)
            continue
        critics = _critics(each, policy, settings, watch) if settings.critics else {}
        results.tasks.append(_task_study(each, critics, settings, nearest, watch=watch))
        report(results)
    if not results.tasks:
        raise ValueError("; ".join(results.skipped))
    return results


def loaded_policy(name: str, *, chat: bool = True) -> tuple[Any, Any]:
    """A model in evaluation mode, on the GPU if there is one, and its tokenizer."""
    on_gpu = torch.cuda.is_available()
    tokenizer = named_tokenizer(name, chat=chat)
    return named_model(name, **({"dtype": "auto"} if on_gpu else {})).to("cuda" if on_gpu else "cpu").eval(), tokenizer


def _studied_layers(policy: Any, settings: StudySettings) -> list[int]:
    depth = len(decoder_blocks(policy)[1])
    return sorted(set(checked_layers(range(depth) if settings.layers is None else settings.layers, depth=depth)))


def _critics(drawn: DrawnTask, policy: Any, settings: StudySettings, watch: Watch) -> dict[str, Estimates]:
    return kept_critic_estimates(
        drawn.folder / "critics",
        policy,
        drawn.training,
        drawn.held_out,
        fitting=CriticFitting(
            settings.critic_epochs,
            settings.critic_learning_rates,
            settings.critic_batch_size,
            seed=settings.seed,
            hindsight=settings.critic_hindsight,
        ),
        watch=lambda name, done, total: watch(f"{drawn.spec}: {name}", done, total),
    )


def _task_study(
    drawn: DrawnTask, critics: dict[str, Estimates], settings: StudySettings, layer: int, *, watch: Watch
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
        View(layer, settings.pool_tokens),
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
            default_layer=layer,
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
