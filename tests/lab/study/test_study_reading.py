"""One pass over rollouts of any length gives what separate passes with all hidden states give."""

import pytest
import torch

from poise.features.rollout_features import score_norm_weights, token_entropies
from poise.features.scalars import SCALARS
from poise.lab.study import reading as module
from poise.lab.study.reading import reading

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
COMPLETIONS = [[20, 21], [22, 23, 24, 25, 1], [26], [27, 28, 60, 29, 1]]
END_OF_THINKING = 60


@pytest.fixture
def read(tiny_model):
    return reading(tiny_model, PROMPTS, COMPLETIONS, layers=[0, 2], pools=[1, 3], end_of_thinking_ids=[END_OF_THINKING])


def alone(model, row):
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[row] + COMPLETIONS[row]])
        return model(ids, output_hidden_states=True)


@pytest.mark.parametrize("pool", [1, 3])
def test_states_are_those_of_each_rollout_alone(tiny_model, read, pool):
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        states = alone(tiny_model, row).hidden_states[1][0]  # what block 0 gives
        reasoning = completion.index(END_OF_THINKING) + 1 if END_OF_THINKING in completion else len(completion)
        of_prompt = states[: len(prompt)][-pool:].mean(dim=0)
        of_completion = states[len(prompt) : len(prompt) + reasoning][-pool:].mean(dim=0)
        assert torch.allclose(read.prompt[pool][row, 0], of_prompt, atol=1e-5)
        assert torch.allclose(read.completion[pool][row, 0], of_completion, atol=1e-5)


def test_scalars_and_weights_are_those_of_each_rollout_alone(tiny_model, read):
    names = list(SCALARS)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        logits = alone(tiny_model, row).logits[0, len(prompt) - 1 : -1]
        entropies = token_entropies(logits)
        assert read.scalars[row, names.index("completion_mean_entropy")] == pytest.approx(
            float(entropies.mean()), abs=1e-5
        )
        assert read.scalars[row, names.index("completion_log_length")] == pytest.approx(
            float(torch.tensor(len(completion) + 1.0).log()), abs=1e-6
        )
        logprobs = logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]
        weight = score_norm_weights(logprobs[None], entropies[None], torch.ones(1, len(completion)).bool())
        assert float(read.weights[row]) == pytest.approx(float(weight), rel=1e-4)


def test_the_temperature_of_sampling_enters_the_entropies(tiny_model, read):
    hotter = reading(tiny_model, PROMPTS, COMPLETIONS, layers=[0, 2], pools=[1], temperature=2.0)
    logits = alone(tiny_model, 0).logits[0, len(PROMPTS[0]) - 1 : -1]
    expected = token_entropies(logits, temperature=2.0).mean()
    column = list(SCALARS).index("completion_mean_entropy")
    assert float(hotter.scalars[0, column]) == pytest.approx(float(expected), abs=1e-5)
    assert float(read.scalars[0, column]) != pytest.approx(float(expected), abs=1e-3)


def test_rows_keep_their_order_however_they_are_batched(tiny_model, read, monkeypatch):
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 8)
    small = reading(
        tiny_model,
        PROMPTS,
        COMPLETIONS,
        layers=[0, 2],
        pools=[1, 3],
        end_of_thinking_ids=[END_OF_THINKING],
    )
    assert len(list(module._batches(PROMPTS, COMPLETIONS))) > 1
    for pool in (1, 3):
        assert torch.allclose(small.completion[pool], read.completion[pool], atol=1e-5)
    assert torch.allclose(small.scalars, read.scalars, atol=1e-5)
