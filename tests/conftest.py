"""What every test shares: fixed seeds, and a policy small enough to build from its configuration."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

# The same examples on every machine and no clock: a suite that draws anew fails on changes that are not at fault.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")
hypothesis.settings.register_profile("fresh", derandomize=False, deadline=None)  # of `make test-soak`


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch before every test."""
    torch.manual_seed(0)
    return 0


@pytest.fixture
def tiny_model(seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of 3 blocks and width 32 with random weights and 64 tokens, in evaluation mode; token 0 pads."""
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.2,  # large enough that tokens and layers differ well beyond rounding
    )
    return Qwen3ForCausalLM(config).eval()
