"""The contract with TRL: it holds of the release that is installed, and each way of breaking it is one sentence."""

import inspect
import time
from typing import Any

import pytest
import torch
from recording import HOST_CHATTER
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from poise.engines import trl as engine
from poise.engines.trl import PoiseTrainer, contract
from poise.engines.trl.checkpoints import CheckpointedTrainer

pytestmark = HOST_CHATTER


def test_it_holds_of_the_installed_release_and_is_checked_fast():
    contract.check()
    began = time.process_time()
    assert list(contract.differences()) == []
    assert time.process_time() - began < 0.2
    assert "has all that the trainer rests on, and its tests were run with it" in contract.report()


def test_a_release_that_the_tests_were_not_run_with_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(contract, "version", lambda name: "1.19.0")
    assert "its tests were not run with it, but with 1.16" in contract.report()


def test_overridden_methods_are_those_under_contract():
    own = {name for part in (PoiseTrainer, CheckpointedTrainer) for name, each in vars(part).items() if callable(each)}
    assert {name for name in own if hasattr(GRPOTrainer, name)} - {"__init__"} == set(contract.METHODS)


def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, rows, prompts: None)


def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GRPOTrainer, "_generate")


def without_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(GRPOConfig.__dataclass_fields__, "scale_rewards")


def scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "RepeatSampler", lambda data, **options: [0, 1, 0, 1, 2, 3, 2, 3])


def unaligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "shuffle_sequence_dict", lambda rows: rows | {"first": rows["first"].flip(0)})


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (renamed, r"changed GRPOTrainer._calculate_rewards, .* now \(self, rows, prompts\): this poise is made for"),
        (gone, "changed GRPOTrainer._generate, which takes .* is now gone"),
        (without_option, "no longer has the option scale_rewards"),
        (scattered, "RepeatSampler, which lays the rollouts of a prompt side by side"),
        (unaligned, "keep a column that was added in the order of the rows"),
    ],
)
def test_a_difference_is_one_sentence(monkeypatch, broken, sentence):
    broken(monkeypatch)
    with pytest.raises(contract.ContractError, match=sentence) as raised:
        contract.check()
    assert "\n" not in str(raised.value)
    assert str(raised.value) in contract.report()


@pytest.mark.parametrize(
    "generated",
    [([[1]], [[2]]), ([[1]], [[2], [3]], None), ([[1]], [[2]], [[1, 0]]), [[[1]], [[2]], None]],
)
def test_other_completions_are_one_sentence(generated):
    with pytest.raises(contract.ContractError, match=r"changed GRPOTrainer\._generate, which gives"):
        contract.check_generated(generated, rows=1)


def test_a_batch_without_advantages_is_one_sentence(build, monkeypatch):
    scoring = GRPOTrainer._generate_and_score_completions

    def other(self: Any, inputs: Any) -> dict[str, Any]:
        return {name: part for name, part in scoring(self, inputs).items() if name != "advantages"}

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", other)
    with pytest.raises(contract.ContractError, match="_generate_and_score_completions, which gave advantages"):
        build().train()


def test_checkpoint_hooks_are_called_by_the_host(build):
    calls = []

    class Watched(CheckpointedTrainer):
        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            calls.append("save")

        def _get_train_sampler(self, *positional: Any, **named: Any) -> Any:
            calls.append("sampler")
            return super()._get_train_sampler(*positional, **named)

    trainer = build(save_strategy="steps", save_steps=2)
    trainer.__class__ = type("Both", (Watched, type(trainer)), {})
    trainer.train()
    assert {"save", "sampler"} <= set(calls)
    assert inspect.signature(Trainer._load_optimizer_and_scheduler).parameters.keys() == {"self", "checkpoint"}


def test_entropies_cost_nothing_and_stand_beside_log_probs(build):
    trainer = build()
    ids = torch.randint(3, 12, (2, 6))
    outputs = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, torch.ones_like(ids), 3, batch_size=1, compute_entropy=True
    )
    assert [tuple(each.shape) for each in outputs[:2]] == [(2, 3), (2, 3)]


def test_public_names_are_exact():
    assert engine.__all__ == ["PoiseConfig", "PoiseTrainer"]
