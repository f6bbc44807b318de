"""Held-out accuracy counts what it should, and leaves the training as it would have been."""

from collections.abc import Sequence

import pytest
import torch

from poise.evaluate import HeldOutAccuracy, Sampling, held_out_accuracy, sampled_completions
from poise.models.embedded import load_embedded_model
from poise.tasks.embedded import Problem, is_correct, problems

PROBLEMS = [Problem(f"q{i}", f"{i}", domain) for i, domain in enumerate(["odd", "sum", "odd", "sum", "odd"])]


@pytest.fixture(scope="module")
def policy():
    return load_embedded_model()


def equals(completion: str, answer: str) -> bool:
    return completion == answer


def test_right_answers_are_counted_for_all_and_for_each_domain():
    def complete(prompts: list[str]) -> list[str]:
        assert prompts == ["q0", "q1", "q2", "q3", "q4"]
        return ["0", "1", "9", "9", "4"]

    found = held_out_accuracy(PROBLEMS, complete, is_correct=equals)
    assert found == HeldOutAccuracy(3 / 5, {"odd": 2 / 3, "sum": 1 / 2}, 5)
    assert found.standard_error == pytest.approx((0.6 * 0.4 / 5) ** 0.5)


@pytest.mark.parametrize(
    ("held_out", "completions", "sentence"),
    [
        ([], [], "accuracy needs at least 1 problem, got none"),
        (PROBLEMS, ["0"], "5 problems need one completion each, got 1"),
    ],
)
def test_nothing_to_count_is_one_sentence(held_out: list[Problem], completions: Sequence[str], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        held_out_accuracy(held_out, lambda prompts: completions, is_correct=equals)


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
    found = held_out_accuracy(
        problems(96, seed=1, split="heldout"),
        lambda prompts: sampled_completions(model, tokenizer, prompts, sampling=Sampling(64), seed=1),
        is_correct=is_correct,
    )
    assert 0.15 < found.accuracy < 0.6
