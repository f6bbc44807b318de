"""Features read in verl's own training worker are those of all hidden states and full logits, whatever the layout."""

import pytest
import torch
from conformance import (
    END_OF_THINKING,
    LAYERS,
    POOL_TOKENS,
    TEMPERATURE,
    character_tokenizer,
    recorded_policy,
    recorded_steps,
)
from torch.testing import assert_close
from verl.workers.engine_workers import TrainingWorker
from workers import read, rollout_batch, training_worker

from poise.engines.verl.engine import PoiseFSDPEngine
from poise.engines.verl.reading import FIELDS, columns_of, last_tokens, shares_of_rows

END_IDS = character_tokenizer().encode(END_OF_THINKING, add_special_tokens=False)
REQUEST = {
    "layers": LAYERS,
    "pool_tokens": POOL_TOKENS,
    "end_of_thinking_ids": END_IDS,
    "loss_normalization": "constant",
}


def assert_as_recorded(found, step):
    for name in ("prompt", "completion", "entropies"):
        assert_close(found[f"poise_{name}"], getattr(step.features, name), rtol=1e-5, atol=1e-5)
    assert torch.equal(found["poise_missing"].bool(), step.features.missing)
    assert_close(found["poise_weights"][:, 0], step.weights, rtol=1e-5, atol=1e-6)


def batch_of(step, request=REQUEST, **options):
    return rollout_batch(step.prompt_ids, step.completion_ids, request, temperature=TEMPERATURE, **options)


MICRO_BATCHES = [
    {},
    {"micro_batch_size_per_gpu": 4},
    {"use_dynamic_bsz": True, "max_token_len_per_gpu": 40},  # sorted by length, and put back in order
]


@pytest.fixture(scope="module")
def padded_worker(policy_folder):
    return training_worker(policy_folder)


@pytest.fixture(scope="module")
def packed_worker(policy_folder):
    return training_worker(policy_folder, model_options={"use_remove_padding": True})


@pytest.mark.parametrize("options", MICRO_BATCHES)
@pytest.mark.parametrize("layout", ["padded_worker", "packed_worker"])
def test_features_are_those_of_all_hidden_states(layout, options, request):
    step = recorded_steps()[0]
    assert_as_recorded(read(request.getfixturevalue(layout), batch_of(step, **options)), step)


def test_a_packed_batch_may_be_filled_up_to_a_bucket(policy_folder):
    step = recorded_steps()[0]
    worker = training_worker(
        policy_folder, model_options={"use_remove_padding": True}, pad_to_length=True, pad_to_length_bucket=64
    )
    assert_as_recorded(read(worker, batch_of(step, micro_batch_size_per_gpu=4)), step)


def test_lora_and_its_frozen_base_are_read_alike_while_the_adapter_is_zero(policy_folder):
    step = recorded_steps()[0]
    assert_as_recorded(read(training_worker(policy_folder, model_options={"lora_rank": 4}), batch_of(step)), step)


def test_what_tools_said_is_no_part_of_a_segment(packed_worker):
    step = recorded_steps()[0]
    mask = [[0 if 1 <= column < len(row) // 2 else 1 for column in range(len(row))] for row in step.completion_ids]
    found = read(packed_worker, batch_of(step, response_mask=mask))
    policy = recorded_policy()
    for row, sampled in enumerate(mask):
        prompt, completion = step.prompt_ids[row], step.completion_ids[row]
        with torch.no_grad():
            output = policy(torch.tensor([prompt + completion]), output_hidden_states=True)
        logits = output.logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        entropies = torch.distributions.Categorical(logits=logits).entropy()[torch.tensor(sampled).bool()]
        assert_close(found["poise_entropies"][row, 0], entropies.mean(), rtol=1e-4, atol=1e-5)
        if not any(completion[at : at + 2] == END_IDS for at in range(len(completion))):  # reasoning to the end
            states = torch.cat([output.hidden_states[layer + 1][0, len(prompt) :] for layer in LAYERS], dim=1)
            chosen = states[torch.tensor(sampled).bool()][-POOL_TOKENS:]
            assert_close(found["poise_completion"][row], chosen.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_weights_are_divided_by_squared_length_where_the_loss_divides_by_length(padded_worker):
    step = recorded_steps()[0]
    found = read(padded_worker, batch_of(step, request=REQUEST | {"loss_normalization": "sequence"}))
    lengths = torch.tensor([len(row) for row in step.completion_ids])
    assert_close(found["poise_weights"][:, 0], step.weights / lengths**2, rtol=1e-5, atol=1e-6)


def test_a_row_without_sampled_tokens_weighs_nothing_and_is_said_to_be_empty(padded_worker):
    found = read(padded_worker, rollout_batch([[3, 4]] * 2, [[1], [5, 6]], REQUEST, response_mask=[[0], [1, 1]]))
    assert found["poise_weights"][0] == 0
    assert found["poise_missing"][0].tolist() == [0, 1, 1, 1]
    assert found["poise_missing"][1].tolist() == [0, 0, 0, 1]


def test_a_pass_that_asks_for_no_reading_is_verls_own(padded_worker):
    step = recorded_steps()[0]
    asked, unasked = (padded_worker.infer_batch(batch_of(step, request=given)) for given in (REQUEST, None))
    assert set(FIELDS).isdisjoint(unasked.keys())
    assert torch.equal(asked["log_probs"].values(), unasked["log_probs"].values())
    hooks = [h for module in padded_worker.engine.module.modules() for h in module._forward_hooks.values()]
    assert [hook for hook in hooks if "poise" in getattr(hook, "__module__", "")] == []


def test_only_poises_worker_gets_poises_engine(policy_folder, padded_worker, monkeypatch):
    assert isinstance(padded_worker.engine, PoiseFSDPEngine)
    monkeypatch.setattr("poise.engines.verl.worker.VENDOR", "somebody")
    with pytest.raises(ValueError, match="somebody"):  # verl has no engine of its own for a CPU
        training_worker(policy_folder)
    with pytest.raises(ValueError, match="vendor='none'"):  # the choice does not outlive a worker
        training_worker(policy_folder, worker=TrainingWorker)


def test_a_worker_refuses_another_engine(policy_folder, monkeypatch):
    monkeypatch.setattr("poise.engines.verl.worker.PoiseFSDPEngine", type("Another", (), {}))
    with pytest.raises(RuntimeError, match="needs an engine with poise's plug-in, verl made a PoiseFSDPEngine"):
        training_worker(policy_folder)


@pytest.mark.parametrize("size", [1, 3, 5, 16])
def test_shares_of_all_processes_make_up_every_row(size):
    lengths, generator = torch.tensor([4, 1, 7, 2]), torch.Generator().manual_seed(0)
    mask = (torch.rand(4, 7, generator=generator) < 0.5) & (torch.arange(7) < lengths[:, None])
    packed = torch.cat([row[:length] for row, length in zip(mask, lengths, strict=True)])
    pieces, padding = [[] for _ in lengths], 0
    for first in range(0, len(packed), size):
        starts, counts = shares_of_rows(lengths, first=first, size=size)
        assert int(counts.sum()) == size
        cut = columns_of(mask, starts, counts)
        seen = torch.cat([row[:count] for row, count in zip(cut, counts, strict=True)])
        expected = torch.cat([packed, torch.zeros(size, dtype=torch.bool)])[first : first + size]
        assert torch.equal(seen, expected)
        padding += int(counts[-1])
        for piece, row, count in zip(pieces, cut, counts[:-1], strict=False):
            piece.append(row[:count])
    assert padding == -len(packed) % size
    for piece, row, length in zip(pieces, mask, lengths, strict=True):
        assert torch.equal(torch.cat(piece), row[:length])


def test_last_tokens_keeps_the_last_of_every_row():
    mask = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    kept = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    assert torch.equal(last_tokens(mask, count=2), kept)
