"""A model that lets packed rows see each other is found by verl's own pass, and refused where siblings are read."""

from types import SimpleNamespace

import pytest
import torch
from conformance import character_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from workers import training_worker

import poise
from poise.engines.verl.isolation import leak_sentence
from poise.engines.verl.trainer import PoiseTrainerSync

LEAKING = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


@pytest.fixture(scope="module")
def leaking_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaking")
    tokenizer = character_tokenizer()
    config = AutoConfig.for_model(
        "qwen3_next",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **LEAKING,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("folder", "packed", "leaks"),
    [("leaking_folder", True, True), ("leaking_folder", False, False), ("policy_folder", True, False)],
)
def test_rows_of_a_worker(folder, packed, leaks, request):
    worker = training_worker(request.getfixturevalue(folder), model_options={"use_remove_padding": packed})
    sentence = leak_sentence(worker, worker.model_config)
    assert (sentence is not None) is leaks
    if leaks:
        assert "qwen3_next lets a packed row see its neighbour" in sentence


@pytest.mark.parametrize(("preset", "refused"), [("poise", True), ("poise-single", False), ("rloo", False)])
def test_only_presets_that_read_siblings_states_are_refused(preset, refused, monkeypatch):
    monkeypatch.setattr(PPOTrainer, "_setup", lambda self: None)
    trainer = object.__new__(PoiseTrainerSync)
    trainer.baseline = poise.OnlineBaseline(poise.preset(preset))
    trainer.actor_rollout_wg = SimpleNamespace(leak_sentence=lambda: [None, "rows leak: switch it off (padded rows)"])
    if refused:
        with pytest.raises(ValueError, match=r"rows leak: .*\(actor_rollout_ref.model.use_remove_padding=false\)"):
            trainer._setup()
    else:
        trainer._setup()
