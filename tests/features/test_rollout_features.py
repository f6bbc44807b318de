"""Segments, entropies and weights against their definitions; bounds and properties on drawn batches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from poise.features.rollout_features import (
    Features,
    entropy_statistic,
    mean_entropies,
    reasoning_mask,
    score_norm_weights,
    token_entropies,
)

END = [7, 8]  # the end of thinking, as two tokens


def segments(rows, end=END, lengths=None):
    """Reasoning and answer as strings of 0/1 per row, for rows of equal number of columns."""
    ids = torch.tensor(rows)
    lengths = torch.tensor(lengths or [ids.shape[1]] * len(rows))
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    reasoning, answer = reasoning_mask(ids, mask, end_of_thinking_ids=end)
    return [
        ("".join(str(int(x)) for x in r), "".join(str(int(x)) for x in a))
        for r, a in zip(reasoning, answer, strict=True)
    ]


def test_reasoning_ends_with_the_end_of_thinking():
    assert segments([[3, 7, 8, 5, 1]]) == [("11100", "00011")]
    assert segments([[3, 7, 4, 5, 1]], end=[7]) == [("11000", "00111")]


def test_last_of_several_ends_counts():
    assert segments([[7, 8, 5, 7, 8, 6]]) == [("111110", "000001")]
    assert segments([[7, 7, 7, 5]], end=[7, 7]) == [("1110", "0001")]


def test_no_end_means_reasoning_altogether():
    assert segments([[3, 8, 7, 5, 7]]) == [("11111", "00000")]
    assert segments([[3, 7, 8, 5]], end=[]) == [("1111", "0000")]
    assert segments([[7]]) == [("1", "0")]


def test_end_in_padding_or_cut_by_it_does_not_count():
    assert segments([[3, 4, 7, 8, 5], [3, 4, 5, 7, 8]], lengths=[3, 4]) == [("11100", "00000"), ("11110", "00000")]
    assert segments([[7, 8, 5, 7, 8]], lengths=[4]) == [("11000", "00110")]


def test_end_as_the_last_token_leaves_no_answer():
    assert segments([[3, 4, 7, 8]]) == [("1111", "0000")]


@pytest.mark.parametrize("prompt_length", [1, 2])
def test_end_in_the_prompt_or_begun_there_does_not_count(prompt_length):
    ids, mask = torch.tensor([[7, 8, 3, 4]]), torch.arange(4)[None] >= prompt_length
    reasoning, answer = reasoning_mask(ids, mask, end_of_thinking_ids=END)
    assert torch.equal(reasoning, mask)
    assert not answer.any()


def reasoning_length_by_loop(ids, end):
    """The oracle: scan backwards for the last place where the ids stand."""
    for start in range(len(ids) - len(end), -1, -1):
        if ids[start : start + len(end)] == end:
            return start + len(end)
    return len(ids)


@given(
    rows=st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=4),
    end=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    spare=st.integers(0, 2),
)
def test_segments_equal_a_backward_scan(rows, end, spare):
    columns = max(map(len, rows)) + spare
    ids = torch.full((len(rows), columns), end[0])  # padding that looks like an end
    mask = torch.zeros(len(rows), columns, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = True
    reasoning, answer = reasoning_mask(ids, mask, end_of_thinking_ids=end)
    assert reasoning.sum(dim=1).tolist() == [reasoning_length_by_loop(tokens, end) for tokens in rows]
    assert torch.equal(reasoning | answer, mask)
    assert not (reasoning & answer).any()
    assert not (answer[:, :-1] & reasoning[:, 1:]).any()  # no reasoning behind an answer


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_entropies_are_exact(temperature, dtype, monkeypatch):
    monkeypatch.setattr("poise.features.rollout_features._CHUNK_ELEMENTS", 50)  # several chunks, the last one not full
    logits = (5 * torch.randn(3, 4, 11)).to(dtype)
    exact = torch.distributions.Categorical(logits=logits.double() / temperature).entropy()
    assert token_entropies(logits, temperature=temperature).dtype == torch.float32
    assert_close(token_entropies(logits, temperature=temperature), exact.float(), rtol=1e-5, atol=1e-6)


def test_token_entropies_of_barred_and_certain_tokens():
    barred = torch.tensor([0.0, 0.0, -torch.inf])
    assert token_entropies(barred).item() == pytest.approx(math.log(2))
    assert token_entropies(torch.tensor([0.0, -1e4])).item() == 0.0
    nearly = torch.tensor([0.0, -20.0])  # softmax rounds the large probability to 1; the entropy is not 0
    assert token_entropies(nearly).item() == pytest.approx(21 * math.exp(-20), rel=0.1)


def test_token_entropies_of_no_tokens_are_none():
    assert token_entropies(torch.zeros(2, 0, 5)).shape == (2, 0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_needs_to_be_positive(temperature):
    with pytest.raises(ValueError, match="positive temperature"):
        token_entropies(torch.zeros(1, 2), temperature=temperature)


ENTROPIES = torch.tensor([[1.0, 4.0, 2.0, 9.0], [3.0, 5.0, torch.nan, torch.inf]])
COMPLETION = torch.tensor([[True, True, True, False], [True, True, False, False]])
REASONING = torch.tensor([[True, True, False, False], [True, True, False, False]])


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        ("mean", [[7 / 3, 5 / 2, 2.0], [4.0, 4.0, 0.0]]),
        ("max", [[4.0, 4.0, 2.0], [5.0, 5.0, 0.0]]),
        ("min", [[1.0, 1.0, 2.0], [3.0, 3.0, 0.0]]),
        ("last", [[2.0, 4.0, 2.0], [5.0, 5.0, 0.0]]),
    ],
)
def test_entropy_statistics_over_the_segments(statistic, expected):
    masks = (COMPLETION, REASONING, COMPLETION & ~REASONING)
    found = torch.stack([entropy_statistic(ENTROPIES, mask, statistic) for mask in masks], dim=1)
    assert_close(found, torch.tensor(expected))
    if statistic == "mean":
        assert_close(mean_entropies(ENTROPIES, *masks), found)


@pytest.mark.parametrize("statistic", ["mean", "max", "min", "last"])
def test_entropy_statistics_of_no_columns_are_zero(statistic):
    none = torch.zeros(2, 0, dtype=torch.bool)
    assert entropy_statistic(torch.zeros(2, 0), none, statistic).tolist() == [0.0, 0.0]


def test_scalars_are_found_by_name_the_mean_entropies_among_them():
    features = held()
    assert_close(features.columns(["own:luck", "reasoning_mean_entropy"]), torch.tensor([[7.0, 1.0], [8.0, 4.0]]))
    assert features.columns([]).shape == (2, 0)
    with pytest.raises(ValueError, match=r"need the scalar 'answer_length', got completion_mean_entropy, .*, own:luck"):
        features.columns(["own:luck", "answer_length"])


def test_mapped_features_are_mapped_in_every_part():
    features = held().mapped(lambda part: part[[1]])
    assert features.columns(["own:luck", "completion_mean_entropy"]).tolist() == [[8.0, 3.0]]
    assert [features.prompt.tolist(), features.completion.tolist(), features.missing.tolist()] == [
        [[3.0, 4.0]],
        [[3.0, 4.0]],
        [[False] * 4],
    ]


def held():
    """Two rollouts with a scalar of the user's own."""
    states, entropies = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.arange(6.0).reshape(2, 3)
    missing = torch.tensor([[True] * 4, [False] * 4])
    return Features(states, states, entropies, missing, scalars={"own:luck": torch.tensor([7.0, 8.0])})


def test_features_of_unequal_rows_are_refused():
    features = held()
    object.__setattr__(features, "missing", features.missing[:1])  # past the shape checks that only tests have
    with pytest.raises(ValueError, match=r"got \[2, 2, 2, 1, 2\] rows"):
        features.__post_init__()


def test_entropies_of_another_width_are_refused():
    features = held()
    object.__setattr__(features, "entropies", features.entropies[:, :2])
    with pytest.raises(
        ValueError, match=r"entropies need the 3 columns completion_mean_entropy, .*, got 2; other numbers"
    ):
        features.__post_init__()


def sampled(logits):
    """Tokens drawn from the logits, their logprobs and entropies, in float64."""
    logprobs = logits.double().log_softmax(dim=-1)
    tokens = torch.distributions.Categorical(logits=logprobs).sample()
    return tokens, logprobs.gather(-1, tokens[..., None])[..., 0], -(logprobs.exp() * logprobs).sum(dim=-1)


def exact_norms(logits, tokens):
    """The oracle: the squared norm of e_y - p at every token."""
    scores = torch.nn.functional.one_hot(tokens, logits.shape[-1]) - logits.double().softmax(dim=-1)
    return scores.square().sum(dim=-1)


def test_weights_of_two_token_vocabularies_by_hand():
    pi = torch.tensor([[0.25, 0.5]], dtype=torch.float64)
    entropies = -(pi * pi.log() + (1 - pi) * (1 - pi).log())
    # exp(-H) is .5699 and .5; the clamp's ranges are [.0625, .625] and [.25, .5].
    by_hand = (1 - 0.5 + math.exp(-entropies[0, 0])) + (1 - 1.0 + 0.5)
    assert_close(
        score_norm_weights(pi.log(), entropies, torch.ones(1, 2, dtype=torch.bool)),
        torch.tensor([by_hand], dtype=torch.float64),
    )


def test_weights_equal_the_exact_norm_where_the_distribution_is_uniform():
    # Where p is uniform exp(-H) is sum_v p_v^2 itself, and nothing is approximated.
    logits = torch.zeros(3, 5, 13)
    tokens, logprobs, entropies = sampled(logits)
    weights = score_norm_weights(logprobs, entropies, torch.ones(3, 5, dtype=torch.bool))
    assert_close(weights, exact_norms(logits, tokens).sum(dim=1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 10.0])
def test_token_weights_lie_in_the_exact_range(scale):
    logits = scale * torch.randn(500, 1, 20)
    tokens, logprobs, entropies = sampled(logits)
    weights = score_norm_weights(logprobs, entropies, torch.ones(500, 1, dtype=torch.bool))
    lower = torch.expm1(logprobs[:, 0]).square()
    for norms in (weights, exact_norms(logits, tokens)[:, 0]):
        assert (norms >= lower * (1 - 1e-9) - 1e-15).all()
        assert (norms <= 2 * lower * (1 + 1e-9) + 1e-15).all()


def test_clamp_matters_on_peaky_distributions():
    # The control: without the clamp some of these tokens would weigh less than nothing.
    logprobs = torch.tensor([[math.log(0.9)]], dtype=torch.float64)
    entropies = torch.tensor([[-0.9 * math.log(0.9) - 0.1 * math.log(1e-3)]], dtype=torch.float64)
    assert 1 - 2 * 0.9 + math.exp(-entropies.item()) < 0
    assert_close(score_norm_weights(logprobs, entropies, torch.ones(1, 1, dtype=torch.bool)).item(), 0.01)


def rollouts_of_a_fitted_model(model, rows=64, columns=48):
    """Briefly fit the model to walks with rare jumps, so that it is sure of some tokens and not of others; sample."""
    generator = torch.Generator().manual_seed(3)
    jumps = torch.rand(rows, columns, generator=generator) < torch.linspace(0.02, 0.8, rows)[:, None]
    strides = torch.where(jumps, torch.randint(2, 30, (rows, columns), generator=generator), 1)
    walks = (strides.cumsum(dim=1)) % 60 + 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        logits = model(input_ids=walks, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), walks[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return model(input_ids=walks, use_cache=False).logits[:, :-1]


def correlation(first, second):
    return torch.corrcoef(torch.stack([first, second]))[0, 1].item()


def test_weights_follow_the_exact_logit_space_norm(tiny_model):
    logits = rollouts_of_a_fitted_model(tiny_model)
    tokens, logprobs, entropies = sampled(logits)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    exact = exact_norms(logits, tokens).sum(dim=1)
    assert correlation(score_norm_weights(logprobs, entropies, mask), exact) > 0.995
    # The controls: neither the formula without its clamp nor the surprise of the tokens follows it as closely.
    unclamped = 1 - 2 * logprobs.exp() + (-entropies).exp()
    assert correlation(unclamped.sum(dim=1), exact) < 0.99
    assert correlation(-logprobs.sum(dim=1), exact) < 0.98


def test_weights_of_unequal_lengths_follow_the_exact_norm_too(tiny_model):
    logits = rollouts_of_a_fitted_model(tiny_model)
    tokens, logprobs, entropies = sampled(logits)
    lengths = torch.arange(len(tokens)) % 40 + 4
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    exact = (exact_norms(logits, tokens) * mask).sum(dim=1)
    assert correlation(score_norm_weights(logprobs, entropies, mask), exact) > 0.995
    assert correlation(lengths.double(), exact) < 0.9  # the control: the lengths alone do not


def test_sequence_normalization_divides_by_the_squared_length():
    _, logprobs, entropies = sampled(torch.randn(3, 6, 9))
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    constant, token, sequence = (
        score_norm_weights(logprobs, entropies, mask, loss_normalization=name)
        for name in ("constant", "token", "sequence")
    )
    assert_close(constant, token, rtol=0, atol=0)
    assert_close(sequence, constant / torch.tensor([36.0, 4.0, 1.0], dtype=torch.float64))
    assert constant[2] == sequence[2] == 0


def test_unknown_normalization_is_named():
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="one of constant, token, sequence, got 'batch'"):
        score_norm_weights(zeros, zeros, zeros.bool(), loss_normalization="batch")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_matter_only_under_the_mask(bad):
    logprobs, entropies = torch.tensor([[-1.0, bad]]), torch.tensor([[0.5, bad]])
    mask = torch.tensor([[True, False]])
    assert_close(
        score_norm_weights(logprobs, entropies, mask),
        score_norm_weights(logprobs[:, :1], entropies[:, :1], mask[:, :1]),
    )
    with pytest.raises(ValueError, match="finite logprobs under completion_mask, got 1"):
        score_norm_weights(logprobs, torch.zeros(1, 2), ~mask)
    with pytest.raises(ValueError, match="finite entropies under completion_mask, got 1"):
        score_norm_weights(torch.zeros(1, 2), entropies, ~mask)


def test_probabilities_in_place_of_logprobs_are_refused():
    with pytest.raises(ValueError, match=r"at most 0, got 0\.5"):
        score_norm_weights(torch.tensor([[0.5]]), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))


def test_logprob_that_rounding_lifted_above_zero_counts_as_zero():
    weights = score_norm_weights(torch.tensor([[0.005]]), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert weights.tolist() == [0.0]


rollouts = st.lists(
    st.lists(
        st.tuples(st.floats(-1e4, 0.0), st.floats(0.0, 20.0), st.booleans()),
        min_size=3,
        max_size=3,
    ),
    min_size=0,
    max_size=5,
)


@given(rollouts=rollouts)
def test_weights_are_finite_and_bounded_for_any_batch(rollouts):
    values = torch.tensor(rollouts, dtype=torch.float64).reshape(len(rollouts), 3, 3)
    logprobs, entropies, mask = values[..., 0], values[..., 1], values[..., 2].bool()
    weights = score_norm_weights(logprobs, entropies, mask)
    lower = ((1 - logprobs.exp()).square() * mask).sum(dim=1)
    assert weights.dtype == torch.float64
    # Compared as norms: near p = 1 the rounding of 1 - p, some 1e-16, is all that is left of either.
    assert (weights.sqrt() >= lower.sqrt() * (1 - 1e-9) - 1e-14).all()
    assert (weights.sqrt() <= (2 * lower).sqrt() * (1 + 1e-9) + 1e-14).all()


@given(logprob=st.floats(-50.0, 0.0), entropy=st.floats(0.0, 12.0))
def test_token_weight_equals_the_published_formula(logprob, entropy):
    pi = math.exp(logprob)
    published = 1 - 2 * pi + min(max(math.exp(-entropy), pi**2), pi**2 + (1 - pi) ** 2)
    one = torch.ones(1, 1, dtype=torch.float64)
    weight = score_norm_weights(one * logprob, one * entropy, one.bool())
    assert weight.item() == pytest.approx(published, rel=1e-9, abs=1e-14)


def test_weights_of_a_huge_batch_add_up():
    logprobs = torch.full((4, 200_000), -2.0)
    entropies = torch.full((4, 200_000), 1.0)
    one = score_norm_weights(logprobs[:, :1], entropies[:, :1], torch.ones(4, 1, dtype=torch.bool))
    weights = score_norm_weights(logprobs, entropies, torch.ones(4, 200_000, dtype=torch.bool))
    assert_close(weights, 200_000 * one, rtol=1e-12, atol=0)
