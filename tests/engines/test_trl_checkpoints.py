"""Checkpoints of the TRL engine: whole or not there, refused where they do not fit, and continued to the bit."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import random_policy
from recording import HOST_CHATTER, RecordedTrainer, addition_prompts, metric
from transformers import TrainerCallback

import poise
from poise.engines.trl import PoiseConfig
from poise.engines.trl.checkpoints import UNFINISHED, CheckpointError

pytestmark = HOST_CHATTER

CHECKPOINTED = {"save_strategy": "steps", "save_steps": 2}


class Killed(Exception):
    """What ends a run in the middle of a step."""


class KilledAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def checkpoints(folder: Path) -> list[str]:
    return sorted((each.name for each in folder.iterdir() if each.is_dir()), key=lambda name: (len(name), name))


def weights(trainer: RecordedTrainer) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in trainer.model.parameters()])


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({}, 5),
        ({"num_iterations": 2, "save_steps": 4}, 5),
        ({"update_share": 0.5}, 5),
        ({"data": addition_prompts(16)}, 5),
        ({"data": addition_prompts(16)}, 7),
    ],
    ids=["minibatches", "iterations", "a share of the rollouts", "at the end of an epoch", "in the second epoch"],
)
def test_a_killed_run_started_again_goes_on_as_if_it_had_not_been(build, tmp_path, options, step):
    settings = CHECKPOINTED | {"learning_rate": 1e-2, "max_steps": 8, "per_device_train_batch_size": 8} | options
    whole = build(**settings)
    whole.train()
    killed = build(**settings, output_dir=str(tmp_path / "killed"), named={"callbacks": [KilledAt(step)]})
    with pytest.raises(Killed):
        killed.train()
    assert checkpoints(tmp_path / "killed")[-1] == f"checkpoint-{step - 1}"
    again = build(**settings, output_dir=str(tmp_path / "killed"))
    again.train(resume_from_checkpoint=True)
    missed = len(whole.baseline.gave) - len(again.baseline.gave)
    assert 0 < missed < len(whole.baseline.gave)
    for expected, found in zip(whole.baseline.gave[missed:], again.baseline.gave, strict=True):
        assert expected.advantages.abs().max() > 0.01
        assert torch.equal(found.advantages, expected.advantages)
        assert str(found.metrics) == str(expected.metrics)  # as text, nan equals nan
    assert metric(again, "reward") == metric(whole, "reward")
    assert torch.equal(weights(again), weights(whole))
    # The control: with an empty window the same rollouts have other advantages.
    empty = poise.OnlineBaseline(poise.preset("poise")).step(**again.baseline.given[0])
    assert not torch.equal(empty.advantages, again.baseline.gave[0].advantages)


def test_a_run_that_is_killed_while_it_saves_leaves_only_whole_checkpoints(build, tmp_path, monkeypatch):
    trainer = build(max_steps=4, **CHECKPOINTED)
    save = trainer.baseline.baseline.save

    def killed_at_the_second(folder: Path, **named: Any) -> None:
        if trainer.state.global_step == 4:
            raise Killed
        save(folder, **named)

    monkeypatch.setattr(trainer.baseline.baseline, "save", killed_at_the_second)
    with pytest.raises(Killed):
        trainer.train()
    folder = tmp_path / "run"
    assert checkpoints(folder) == ["checkpoint-2", UNFINISHED]
    again = build(max_steps=4, **CHECKPOINTED)
    again.train(resume_from_checkpoint=True)
    assert len(again.baseline.gave) == 1
    assert checkpoints(folder) == ["checkpoint-2", "checkpoint-4"]
    assert {"poise.json", "poise.safetensors", "trainer_state.json", "optimizer.pt"} <= {
        each.name for each in (folder / "checkpoint-4").iterdir()
    }


def test_old_checkpoints_are_deleted_and_the_best_is_known_by_its_name(build, tmp_path):
    trainer = build(
        max_steps=6,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        per_device_eval_batch_size=16,
        named={"eval_dataset": build().train_dataset.select(range(8))},
        **CHECKPOINTED,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert Path(best).is_dir()
    assert UNFINISHED not in best
    assert json.loads((Path(best) / "trainer_state.json").read_text())["best_model_checkpoint"] == best
    assert checkpoints(tmp_path / "run") == [Path(best).name]


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(build, tmp_path):
    build(max_steps=2, **CHECKPOINTED).train()
    (tmp_path / "run" / "checkpoint-2" / "left over").touch()
    build(max_steps=2, **CHECKPOINTED).train()
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert not (tmp_path / "run" / "checkpoint-2" / "left over").exists()


@pytest.fixture
def checkpoint(build: Callable[..., RecordedTrainer], tmp_path: Path) -> str:
    build(max_steps=2, layers=[1], **CHECKPOINTED).train()
    return str(tmp_path / "run" / "checkpoint-2")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": [2]}, r"this run has layers \[2\], the baseline in .*checkpoint-2 was fitted for \[1\]"),
        ({"pool_tokens": 5}, "this run has pool_tokens 5, .* was fitted for 3"),
        ({"end_of_thinking": "#"}, "this run has end_of_thinking '#', .* was fitted for '=>'"),
        ({"loss_type": "grpo"}, "this run has weights_divided_by_length True, .* was fitted for False"),
        ({"preset": "poise-value"}, "this baseline has preset 'poise-value', the state was made with 'poise'"),
        ({"model": random_policy(layers=3)}, "this run has num_hidden_layers 3, .* was fitted for 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_something_else_is_refused_with_both_sides(build, checkpoint, options, sentence):
    other = build(max_steps=4, **({"layers": [1]} | options))
    with pytest.raises(CheckpointError, match=sentence):
        other.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_without_a_baseline_resumes_with_an_empty_window(build, checkpoint):
    for name in ("poise.json", "poise.safetensors", "checksums.sha256"):
        (Path(checkpoint) / name).unlink()
    resumed = build(max_steps=4, layers=[1])
    with pytest.warns(UserWarning, match="starts with an empty window"):
        resumed.train(resume_from_checkpoint=checkpoint)
    fresh = poise.OnlineBaseline(poise.preset("poise")).step(**resumed.baseline.given[0])
    assert torch.equal(fresh.advantages, resumed.baseline.gave[0].advantages)


def test_arrays_of_another_save_are_refused(checkpoint):
    arrays = Path(checkpoint) / "poise.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="is not the one that poise\\.json was written with"):
        poise.OnlineBaseline(poise.preset("poise")).restore(checkpoint)


@pytest.mark.parametrize(
    ("options", "every", "rounded"),
    [
        ({"save_steps": 3}, 2, 4),
        ({"save_steps": 4}, 2, 4),
        ({"save_steps": 5, "steps_per_generation": 3, "num_iterations": 2}, 6, 6),
        ({"save_steps": 3, "gradient_accumulation_steps": 3, "steps_per_generation": 2}, 2, 4),
        ({"save_steps": 3, "steps_per_generation": 1}, 1, 3),
        ({"save_steps": 0.3, "max_steps": 10}, 2, 4),
        ({"save_steps": 0.4, "max_steps": 10}, 2, 0.4),
        ({"save_steps": 3, "save_strategy": "epoch"}, 2, 3),
    ],
)
def test_save_steps_are_rounded_up_to_whole_generations_and_that_is_said_once(
    tmp_path, caplog, options, every, rounded
):
    with caplog.at_level(logging.WARNING, logger="poise"):
        args = PoiseConfig(str(tmp_path), bf16=False, use_cpu=True, **({"max_steps": 12} | options))
    assert args.steps_between_generations == every
    assert args.save_steps == rounded
    assert len([each for each in caplog.records if "save_steps is" in each.message]) == (
        rounded != options["save_steps"] >= 1
    )


def test_a_share_of_epochs_is_rounded_up_when_training_begins(build, tmp_path):
    build(
        max_steps=-1, num_train_epochs=3, save_strategy="steps", save_steps=0.2, per_device_train_batch_size=32
    ).train()
    assert checkpoints(tmp_path / "run") == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
