"""Features read in verl's own training worker are those of all hidden states and full logits, whatever the layout."""

import pytest
import torch
from conformance import END_OF_THINKING, LAYERS, POOL_TOKENS, TEMPERATURE, character_tokenizer, recorded_policy, recorded_steps, rollout_features, stacked
from torch.testing import assert_close
from workers import read, rollout_batch, training_worker

END_IDS = character_tokenizer().encode(END_OF_THINKING, add_special_tokens=False)
REQUEST = {"layers": LAYERS, "pool_tokens": POOL_TOKENS, "end_of_thinking_ids": END_IDS, "loss_normalization": "constant"}


@pytest.fixture(scope="module")
def worker(policy_folder):
    return training_worker(policy_folder)


def test_a(worker):
    step = recorded_steps()[0]
    got = read(worker, rollout_batch(step.prompt_ids, step.completion_ids, REQUEST, temperature=TEMPERATURE))
    assert_close(got["poise_prompt"], step.features.prompt)
    assert_close(got["poise_completion"], step.features.completion)
    assert_close(got["poise_entropies"], step.features.entropies)
    assert_close(got["poise_weights"][:, 0], step.weights, rtol=1e-5, atol=1e-6)
