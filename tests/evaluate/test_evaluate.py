"""Held-out accuracy counts what it should, and leaves the training as it would have been."""

import math

import pytest
import torch

from poise.evaluate import (
    HeldOutAccuracy,
    Sampling,
    accuracy_of_rewards,
    measured_completions,
    sampled_completions,
)
from poise.evaluate.held_out import with_rewards
from poise.models.embedded import load_embedded_model
from poise.models.generation import completion_ends
from poise.tasks.embedded import is_correct, problems


@pytest.fixture(scope="module")
def policy():
    return load_embedded_model()


def test_rewards_are_averaged_over_all_and_over_each_domain_without_what_could_not_be_graded():
    found = accuracy_of_rewards([1.0, 1.0, 0.0, 0.0, 1.0, math.nan], domains=["odd", "sum", "odd", "sum", "odd", "odd"])
    assert found == HeldOutAccuracy(3 / 5, {"odd": 2 / 3, "sum": 1 / 2}, 5)
    assert found.standard_error == pytest.approx((0.6 * 0.4 / 5) ** 0.5)


def test_rewards_of_any_size_have_the_error_of_their_own_spread():
    found = with_rewards(accuracy_of_rewards([1.0, 0.0], domains=["a", "a"]), [-50.0, 150.0, math.nan])
    assert (found.reward, found.reward_error) == (50.0, pytest.approx(100.0))
    assert found.metrics()["held_out/reward"] == 50.0
    assert "held_out/accuracy" not in with_rewards(accuracy_of_rewards([math.nan], domains=["a"]), [2.0]).metrics()


def test_where_nothing_could_be_graded_there_is_no_accuracy():
    found = accuracy_of_rewards([math.nan, 1.0], domains=["odd", "sum"])
    assert math.isnan(found.by_domain["odd"])
    assert found.by_domain["sum"] == found.accuracy == 1.0
    assert math.isnan(accuracy_of_rewards([math.nan], domains=["odd"]).accuracy)


def test_sampling_leaves_random_state_and_mode_alone(policy):
    model, tokenizer = policy
    prompts = [each.prompt for each in problems(6, seed=0)]
    sampling = Sampling(max_completion_length=8)
    model.train()
    state = torch.get_rng_state()
    first = sampled_completions(model, tokenizer, prompts, sampling=sampling, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    # The control: generation itself draws from that state.
    model.eval()
    inputs = tokenizer(prompts[:1], return_tensors="pt", return_token_type_ids=False)
    model.generate(**inputs, do_sample=True, max_new_tokens=4)
    assert not torch.equal(torch.get_rng_state(), state)
    assert sampled_completions(model, tokenizer, prompts, sampling=sampling, seed=3) == first
    assert sampled_completions(model, tokenizer, prompts, sampling=sampling, seed=4) != first
    assert not model.training


def test_padding_and_batches_do_not_change_what_is_likeliest(policy):
    model, tokenizer = policy
    prompts = [each.prompt for each in problems(7, seed=1)]
    assert len({len(each) for each in prompts}) > 1
    nearly_greedy = Sampling(max_completion_length=12, temperature=1e-4)
    found = sampled_completions(model, tokenizer, prompts, sampling=nearly_greedy, seed=0, batch_size=3)
    for prompt, completion in zip(prompts, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        with torch.no_grad():
            for _ in range(12):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
                if ids[0, -1] == tokenizer.eos_token_id:
                    break
        assert completion == tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_temperature_reaches_the_sampler(policy):
    model, tokenizer = policy
    prompt = problems(1, seed=2)[0].prompt

    def variety(temperature: float) -> int:
        sampling = Sampling(max_completion_length=8, temperature=temperature)
        return len(set(sampled_completions(model, tokenizer, [prompt] * 32, sampling=sampling, seed=0)))

    assert variety(1e-4) == 1 < variety(5.0)


def test_embedded_policy_is_right_sometimes(policy):
    model, tokenizer = policy
    asked = problems(96, seed=1, split="heldout")
    completions = sampled_completions(model, tokenizer, [each.prompt for each in asked], sampling=Sampling(64), seed=1)
    right = [is_correct(completion, each.answer) for completion, each in zip(completions, asked, strict=True)]
    assert 0.15 < sum(right) / len(right) < 0.6


OWN_SETTINGS = {
    "num_beams": 2,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[13]],
    "suppress_tokens": [14, 10],
    "min_new_tokens": 10,
    "forced_eos_token_id": 1,
    "min_p": 0.9,
    "top_h": 0.1,
    "typical_p": 0.2,
    "eta_cutoff": 0.5,
    "repetition_penalty": 2.0,
}
"""Each of them changes what is sampled, where it is obeyed."""


def test_a_completion_ends_at_the_first_of_all_ends_and_nothing_else_of_the_model_is_obeyed():
    model, tokenizer = load_embedded_model()
    prompts = [each.prompt for each in problems(16, seed=0)]

    def measured(**options):
        sampling = Sampling(max_completion_length=10, options=options)
        return measured_completions(model, tokenizer, prompts, sampling=sampling, seed=0)

    plain = measured()
    for name, value in OWN_SETTINGS.items():
        setattr(model.generation_config, name, value)
    assert measured() == plain
    for name, value in OWN_SETTINGS.items():  # the control: as options of the run they are
        assert measured(**{name: value}) != plain, name
    model.generation_config.eos_token_id = [1, 4]  # 4 is </think>
    assert completion_ends(model, tokenizer) == [1, 4]
    of_model = measured()
    assert model.generation_config.num_beams == 2
    for whole, cut in zip(plain, of_model, strict=True):
        place = whole.token_ids.index(4) + 1 if 4 in whole.token_ids else None
        assert cut.token_ids == whole.token_ids[:place]
        assert cut.num_tokens == len(cut.token_ids)
        assert cut.truncated == (place is None and whole.truncated)
    assert any(4 in each.token_ids for each in plain)
    model.generation_config.eos_token_id = 1
    assert measured(eos_token_id=4) == of_model
    assert completion_ends(model, tokenizer, {"eos_token_id": [4, 1]}) == [1, 4]
