"""Numbers that go wrong: they reach neither weights nor baseline, and the run says what happened and goes on."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import HOST_CHATTER, metric, share_of_digits
from transformers import TrainerCallback

from poise.engines.trl import finite_steps
from poise.engines.trl.finite_steps import numbers
from poise.features.rollout_features import Features

pytestmark = HOST_CHATTER

TRAINED = {"learning_rate": 1e-2, "weight_decay": 0.1, "per_device_train_batch_size": 8, "max_steps": 6}
"""Three generation batches, two steps each."""


class Weights(TrainerCallback):
    """Keeps the policy's parameters and the optimizer's momentum after every step."""

    def __init__(self) -> None:
        self.after: list[list[torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **named: Any) -> None:
        momenta = [each["exp_avg"] for each in optimizer.state.values()]
        self.after.append([each.detach().clone() for each in [*model.parameters(), *momenta]])

    def moved(self) -> list[bool]:
        """For each step but the first, whether it changed anything."""
        pairs = zip(self.after, self.after[1:], strict=False)
        return [len(a) != len(b) or any(not torch.equal(x, y) for x, y in zip(a, b, strict=True)) for a, b in pairs]


def explanation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "first_bad_step.json").read_text())


def infinite_in_the_second_batch() -> Any:
    calls: list[int] = []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        calls.append(1)
        rewards = share_of_digits(completions)
        return [math.inf, *rewards[1:]] if len(calls) == 2 else rewards

    return reward


def test_an_infinite_reward_reaches_neither_weights_nor_baseline(build, tmp_path, caplog):
    seen = Weights()
    trainer = build(reward=infinite_in_the_second_batch(), named={"callbacks": [seen]}, **TRAINED)
    with caplog.at_level(logging.WARNING, logger="poise"):
        trainer.train()
    assert seen.moved() == [True, False, False, True, True]
    assert all(each.isfinite().all() for after in seen.after for each in after)
    assert metric(trainer, "poise/skipped_share") == [0, 0, 1, 1, 0, 0]
    assert len(trainer.baseline.given) == 2  # the second batch was never shown to it
    assert all(given["rewards"].isfinite().all() for given in trainer.baseline.given)
    found = explanation(tmp_path)
    assert (found["step"], found["causes"]) == (3, ["loss", "rewards"])
    assert found["processes"][0]["rewards"]["not_finite"] == 1
    assert found["processes"][0]["features.prompt"]["not_finite"] == 0
    said = [
        record.message for record in caplog.records if "step 3 is skipped, not finite: loss, rewards" in record.message
    ]
    assert len(said) == 1


@pytest.mark.parametrize("part", ["prompt", "completion", "entropies"])
def test_features_that_are_not_finite_reach_neither_weights_nor_baseline(build, tmp_path, monkeypatch, part):
    seen = Weights()
    trainer = build(named={"callbacks": [seen]}, **TRAINED)
    mapped = Features.mapped

    def broken(features: Features, function: Any) -> Features:
        features = mapped(features, function)
        if trainer.state.global_step == 2:
            getattr(features, part)[3, 0] = torch.nan
        return features

    monkeypatch.setattr(Features, "mapped", broken)
    trainer.train()
    assert seen.moved() == [True, False, False, True, True]
    assert len(trainer.baseline.given) == 2
    found = explanation(tmp_path)
    assert found["causes"] == [f"features.{part}", "loss"]
    assert found["processes"][0][f"features.{part}"]["not_finite"] == 1


def test_log_probabilities_that_are_not_finite_reach_neither_weights_nor_baseline(build, tmp_path, monkeypatch):
    seen = Weights()
    trainer = build(named={"callbacks": [seen]}, **TRAINED)
    behaviour_pass = trainer._behaviour_pass

    def broken(scored: dict[str, Any]) -> Any:
        found = behaviour_pass(scored)
        if trainer.state.global_step == 2:
            found.logprobs[3, 0] = -torch.inf  # TRL's own tensor: its ratios are not finite either
        return found

    monkeypatch.setattr(trainer, "_behaviour_pass", broken)
    trainer.train()
    assert seen.moved() == [True, False, False, True, True]
    assert len(trainer.baseline.given) == 2
    found = explanation(tmp_path)
    assert found["causes"] == ["loss", "weights"]
    assert found["processes"][0]["weights"]["not_finite"] == 1


def test_a_gradient_that_is_not_finite_is_taken_away_and_explained(build, tmp_path):
    seen = Weights()
    trainer = build(named={"callbacks": [seen]}, **TRAINED)
    parameter = list(trainer.model.parameters())[5]
    parameter.register_hook(lambda gradient: gradient * torch.inf if trainer.state.global_step == 3 else gradient)
    trainer.train()
    assert seen.moved() == [True, True, False, True, True]
    assert metric(trainer, "poise/skipped_share") == [0, 0, 0, 1, 0, 0]
    found = explanation(tmp_path)
    assert (found["step"], found["causes"]) == (4, ["gradient"])
    (process,) = found["processes"]
    assert process["gradients_not_finite"]
    # What is told of the minibatch is what the loss was made from.
    assert process["loss"]["not_finite"] == process["new_logprobs"]["not_finite"] == 0
    assert process["new_logprobs"]["max"] <= 0
    assert process["ratio"]["min"] < 1 < process["ratio"]["max"]  # the second minibatch: the policy has moved
    assert process["ratio"]["of"] == process["old_logprobs"]["of"] > 8


def test_without_the_guard_one_bad_gradient_spoils_the_policy(build):
    # The control: the host alone takes the step. It is the last one: nothing can be sampled any more.
    trainer = build(**TRAINED)
    trainer.remove_callback(trainer.finite_steps)
    parameter = list(trainer.model.parameters())[5]
    parameter.register_hook(lambda gradient: gradient * torch.inf if trainer.state.global_step == 5 else gradient)
    trainer.train()
    assert not all(each.isfinite().all() for each in trainer.model.parameters())


def test_one_bad_minibatch_of_an_accumulated_gradient_skips_its_step_alone(build):
    seen = Weights()
    trainer = build(named={"callbacks": [seen]}, **TRAINED | {"gradient_accumulation_steps": 2, "max_steps": 4})
    loss = trainer.compute_loss.__func__
    calls: list[int] = []

    def broken(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return loss(
            trainer, model, inputs | {"advantages": inputs["advantages"] * (torch.nan if len(calls) == 3 else 1)}
        )

    trainer.compute_loss = broken
    trainer.train()
    assert seen.moved() == [False, True, True]
    assert metric(trainer, "poise/skipped_share") == [0, 1, 0, 0]


def test_a_run_whose_every_step_is_bad_ends_with_a_sentence(build, monkeypatch):
    monkeypatch.setattr(finite_steps, "MOST_IN_A_ROW", 3)
    trainer = build(reward=lambda completions, **columns: [math.inf] * len(completions), **TRAINED)
    with pytest.raises(
        FloatingPointError, match="3 steps in a row had numbers that are not finite, the last of them step 3"
    ):
        trainer.train()


def test_a_run_without_bad_steps_has_no_explanation_and_forgets_an_earlier_one(build, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "first_bad_step.json").write_text("{}")
    build().train()
    assert not (tmp_path / "run" / "first_bad_step.json").exists()


def test_numbers_are_told_by_their_finite_ends():
    assert numbers(torch.tensor([1.0, math.nan, -2.0, math.inf])) == {"min": -2, "max": 1, "not_finite": 2, "of": 4}
    assert numbers(torch.tensor([math.nan])) == {"min": None, "max": None, "not_finite": 1, "of": 1}
