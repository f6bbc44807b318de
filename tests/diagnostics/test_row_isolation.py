"""Isolation of packed rows in tiny random models of many architectures; `docs/engines/trl.md` has the table."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from poise.diagnostics.row_isolation import LENGTH, check_row_isolation, row_isolation

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}

KEPT_APART: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "ministral3": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {},
    "olmo2": {},
    "olmo3": {},
    "smollm3": {},
    "cohere2": {},
    "seed_oss": {},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4},
    "gpt_neox": {},
    "glm4": {},
    "granite": {},
    "starcoder2": {},
    "stablelm": {},
    "exaone4": {},
}
LEAKING: dict[str, dict[str, Any]] = {
    "qwen3_next": LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_5_text": LINEAR,
    "olmo_hybrid": LINEAR,
    "granitemoehybrid": MAMBA
    | {"num_local_experts": 0, "shared_intermediate_size": 48, "layer_types": ["mamba", "attention"] * 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
}
QUICK = {"qwen3", "gemma3_text", "gpt2", "qwen3_next", "gpt_oss"}


def tiny(kind: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | changes))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def cases() -> list[Any]:
    found = []
    for leaks, kinds in ((False, KEPT_APART), (True, LEAKING)):
        for kind, changes in kinds.items():
            marks = [] if kind in QUICK else [pytest.mark.slow]
            found.append(pytest.param(kind, changes, leaks, id=kind, marks=marks))
    return found


@pytest.mark.parametrize(("kind", "changes", "leaks"), cases())
def test_architecture(kind, changes, leaks):
    model = tiny(kind, changes).train()
    found, padded = row_isolation(model), row_isolation(model, packed=False)
    assert found.leaks is leaks, found.sentence
    assert not padded.leaks, padded.sentence
    assert model.training


def test_a_leak_is_refused_with_its_remedy():
    check_row_isolation(tiny("qwen3", {}))
    with pytest.raises(ValueError, match=r"qwen3_next lets a packed row see its neighbour .* switch packing off"):
        check_row_isolation(tiny("qwen3_next", LEAKING["qwen3_next"]))


def test_half_precision_moves_rows_less_than_a_leak():
    kind = "qwen3_moe"
    assert not row_isolation(tiny(kind, KEPT_APART[kind]).bfloat16()).leaks
    assert row_isolation(tiny("qwen3_next", LEAKING["qwen3_next"]).bfloat16()).leaks


def test_a_mask_of_ones_beside_position_ids_leaks():
    mask = torch.ones(1, 2 * LENGTH, dtype=torch.long)
    assert row_isolation(tiny("qwen3", {}), attention_mask=mask).leaks


def test_numbers_that_are_none_are_a_leak():
    class Broken(torch.nn.Linear):
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=8, model_type="broken"))

        def forward(self, input_ids: Any, **inputs: Any) -> Any:
            return SimpleNamespace(hidden_states=[torch.full((1, input_ids.shape[1], 2), torch.nan)])

    assert row_isolation(Broken(1, 1)).leaks
