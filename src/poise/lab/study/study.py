"""A study, from a model and some tasks to its tables.

    config.json            what is studied; another study in the same folder is refused
    TASK/training/, ...    rollouts and features (`poise.lab.study.rollouts`)
    TASK/critics/          estimates of the critics, and what they cost
    study.md, study.json, figures/

What takes long is kept as it comes, and the same command goes on; tables are made from files alone, and again whenever
a task is done.
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
from poise.lab.progress import Watch, silent
from poise.lab.study.comparisons import (
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
from poise.lab.study.critics import CriticFitting, fit_critics
from poise.lab.study.estimators import Estimates, View
from poise.lab.study.judging import calibration_points
from poise.lab.study.recommendation import Recommendation, recommendation
from poise.lab.study.rollouts import DrawnTask, Reader, StudiedTask, drawn_task, nothing_to_tell, studied_task
from poise.lab.study.settings import StudySettings, folder_name
from poise.models.named import named_model, named_tokenizer
from poise.storage.claims import claim


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
    watch: Watch = silent,
    report: Callable[[StudyResults], None] = lambda results: None,
) -> StudyResults:
    """Draw what is missing, fit, judge.

    Args:
        settings: What to study.
        folder: Where everything is kept.
        watch: Shown what goes on.
        report: Given the results so far whenever a task is done.

    Raises:
        ValueError: If a task has too few prompts, or no task has rewards that differ; if the folder holds another
            study.
        FileExistsError: If the folder holds something else.
    """
    loading = {"chat": settings.chat, "trust_remote_code": settings.trust_remote_code}
    policy, tokenizer = loaded_policy(settings.model, **loading)
    depth = len(decoder_blocks(policy)[1])
    layers = sorted(set(checked_layers(range(depth) if settings.layers is None else settings.layers, depth=depth)))
    older = loaded_policy(settings.older_model, **loading)[0] if settings.older_model else None
    told = {
        "weights": weights_fingerprint(policy),
        "older_weights": weights_fingerprint(older) if older else None,
        "layers": layers,
        "scalars": list(SCALARS),
    }
    usual = default_layer(depth)
    nearest = min(layers, key=lambda layer: abs(layer - usual))
    reader = Reader(policy, tokenizer, layers, sorted({*settings.pools, settings.pool_tokens}), settings.temperature)
    tasks: list[StudiedTask] = []
    try:
        for spec in settings.tasks:
            place = folder / folder_name(spec)
            tasks.append(studied_task(spec, place, settings, tokenizer=tokenizer))
        claim(folder, settings.drawn | told, what="study")
        drawn = [drawn_task(task, settings, reader, older=older, watch=watch) for task in tasks]
    finally:
        for task in tasks:
            task.graded.close()
    results = StudyResults(settings)
    for each in drawn:
        sentence = nothing_to_tell(each)
        if sentence:
            results.skipped.append(sentence)
            continue
        shown = _of_task(each.spec, watch)
        critics = {}
        if settings.critics:
            rates, hindsight = settings.critic_learning_rates, settings.critic_hindsight
            fitting = CriticFitting(settings.critic_epochs, rates, seed=settings.seed, hindsight=hindsight)
            place = each.folder / "critics"
            critics = fit_critics(place, policy, each.training, each.held_out, fitting=fitting, watch=shown)
        view = View(nearest, settings.pool_tokens)
        material = Material(each.training, each.held_out, settings.k, view, settings.resamples, settings.seed, shown)
        results.tasks.append(_task_study(each, material, critics, settings))
        report(results)
    if not results.tasks:
        raise ValueError("; ".join(results.skipped))
    return results


def loaded_policy(name: str, *, chat: bool = True, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A model in evaluation mode, on the GPU if there is one, and its tokenizer."""
    on_gpu = torch.cuda.is_available()
    tokenizer = named_tokenizer(name, chat=chat, trust_remote_code=trust_remote_code)
    model = named_model(name, trust_remote_code=trust_remote_code, **({"dtype": "auto"} if on_gpu else {}))
    return model.to("cuda" if on_gpu else "cpu").eval(), tokenizer


def _of_task(spec: str, watch: Watch) -> Watch:
    return lambda what, done, total: watch(f"{spec}: {what}", done, total)


def _task_study(
    drawn: DrawnTask, material: Material, critics: dict[str, Estimates], settings: StudySettings
) -> TaskStudy:
    """All tables of one task."""
    makers: dict[str, Callable[[], Table]] = {
        "estimators": lambda: estimator_table(material, critics),
        "features": lambda: feature_table(material),
        "layers": lambda: layer_table(material),
        "pools": lambda: pool_table(material),
        "probes": lambda: probe_table(material),
        "sizes": lambda: size_table(material),
    }
    tables = {name: make() for name, make in makers.items() if name in settings.tables}
    if drawn.older is not None:
        tables["age"] = age_table(material, drawn.older)
    recommended = None
    if {"layers", "pools", "features"} <= tables.keys():
        swept = (tables["layers"], tables["pools"], tables["features"])
        view = material.view
        recommended = recommendation(*swept, default_layer=view.layer, default_pool=view.pool_tokens)
    shown = {name: material.estimates(name, poise.preset(name)) for name in (REFERENCE, "paper")} | critics
    return TaskStudy(
        drawn.spec,
        len(drawn.training),
        len(drawn.held_out),
        drawn.left_out,
        noise_of(material.judging_rewards),
        tables,
        recommended,
        {name: calibration_points(material.judged(each)) for name, each in shown.items()},
    )
