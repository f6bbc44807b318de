"""Scalars against loops over lists of tokens; what they may not depend on; names that are refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.features.scalars import SCALARS, Completions, check_scalar_names, named_scalars

ROLLOUT = st.tuples(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5, width=32)), max_size=8),
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5, width=32)), max_size=5),
)
"""The reasoning and the answer of one rollout, each token with its entropy; few ids, so that trigrams repeat."""


def laid_out(rollouts, *, before=0, behind=0):
    """Rollouts as padded tensors; padding has ids and entropies that would show."""
    columns = before + max(len(reasoning) + len(answer) for reasoning, answer in rollouts) + behind
    ids = torch.full((len(rollouts), columns), 3)
    entropies = torch.full((len(rollouts), columns), torch.nan)
    reasoning, answer = (torch.zeros(len(rollouts), columns, dtype=torch.bool) for _ in range(2))
    for row, parts in enumerate(rollouts):
        tokens = [token for part in parts for token in part]
        cut, end = before + len(parts[0]), before + len(tokens)
        for column, (token, entropy) in enumerate(tokens, start=before):
            ids[row, column], entropies[row, column] = token, entropy
        reasoning[row, before:cut], answer[row, cut:end] = True, True
    return Completions(entropies, reasoning | answer, reasoning, answer, ids)


def counted(reasoning, answer):
    """Every scalar of one rollout, from lists."""
    segments = {"completion": reasoning + answer, "reasoning": reasoning, "answer": answer}
    out = {}
    for name, tokens in segments.items():
        ids, entropies = [token for token, _ in tokens], [entropy for _, entropy in tokens] or [0.0]
        trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
        seen_before = sum(trigram in trigrams[:place] for place, trigram in enumerate(trigrams))
        out |= {
            f"{name}_mean_entropy": sum(entropies) / len(entropies),
            f"{name}_max_entropy": max(entropies),
            f"{name}_min_entropy": min(entropies),
            f"{name}_last_entropy": entropies[-1],
            f"{name}_length": len(ids) / 1000,
            f"{name}_log_length": math.log(1 + len(ids)),
            f"{name}_present": float(bool(ids)),
            f"{name}_share": len(ids) / max(1, len(reasoning + answer)),
            f"{name}_unique_ratio": len(set(ids)) / max(1, len(ids)),
            f"{name}_repetition_ratio": seen_before / max(1, len(trigrams)),
        }
    for first, second, kind in (
        ("reasoning", "answer", "mean_entropy"),
        ("answer", "completion", "mean_entropy"),
        ("reasoning", "completion", "unique_ratio"),
        ("reasoning", "completion", "repetition_ratio"),
    ):
        both = segments[first] and segments[second]
        out[f"{first}_{second}_gap_{kind}"] = out[f"{first}_{kind}"] - out[f"{second}_{kind}"] if both else 0.0
    product = out["reasoning_mean_entropy"] * out["completion_log_length"]
    del out["completion_present"], out["completion_share"]  # both always 1, but for a completion without a token
    return out | {"reasoning_mean_entropy_times_log_length": product}


@settings(max_examples=50)
@given(rollouts=st.lists(ROLLOUT, min_size=1, max_size=4))
def test_every_scalar_equals_what_a_loop_over_the_tokens_counts(rollouts):
    found = named_scalars(laid_out(rollouts), list(SCALARS))
    for row, rollout in enumerate(rollouts):
        assert {name: found[name][row].item() for name in SCALARS} == pytest.approx(
            counted(*rollout), rel=1e-5, abs=1e-6
        )


@settings(max_examples=50)
@given(rollouts=st.lists(ROLLOUT, min_size=2, max_size=4), before=st.integers(0, 3), behind=st.integers(0, 3))
def test_a_scalar_depends_on_neither_padding_nor_the_rest_of_the_batch(rollouts, before, behind):
    together = named_scalars(laid_out(rollouts, before=before, behind=behind), list(SCALARS))
    for row, rollout in enumerate(rollouts):
        alone = named_scalars(laid_out([rollout]), list(SCALARS))
        assert [together[name][row].item() for name in SCALARS] == pytest.approx(
            [alone[name][0].item() for name in SCALARS], rel=0, abs=1e-6
        )


def test_trigrams_of_the_largest_ids_are_told_apart():
    last = 2**21 - 1
    ids = [last, 0, 1, 0, last, 0, 2, last, 0, 1]
    trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
    assert len(trigrams) - len(set(trigrams)) == 1
    found = named_scalars(laid_out([([(id, 0.0) for id in ids], [])]), ["reasoning_repetition_ratio"])
    assert found["reasoning_repetition_ratio"].item() == pytest.approx(1 / 8)


@pytest.mark.parametrize("name", ["completion_unique_ratio", "answer_repetition_ratio"])
def test_scalars_that_count_tokens_need_ids(name):
    whole = laid_out([([(1, 0.5)], [])])
    without = Completions(whole.entropies, whole.completion, whole.reasoning, whole.answer)
    with pytest.raises(ValueError, match="ids are needed, got None"):
        named_scalars(without, [name])
    assert named_scalars(without, ["completion_length"])["completion_length"].item() == pytest.approx(1 / 1000)


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_closest():
    with pytest.raises(
        ValueError, match=r"scalars are completion_mean_entropy, .*; got 'answr_length', .* 'answer_length'"
    ):
        named_scalars(laid_out([([], [])]), ["completion_length", "answr_length"])


def test_a_name_of_the_user_s_own_is_allowed_where_the_user_fills_it_in():
    check_scalar_names(["own:margin", "answer_share"], own=True)
    with pytest.raises(ValueError, match="got 'own:margin'"):
        check_scalar_names(["own:margin"])
    with pytest.raises(ValueError, match="and what begins with 'own:'; got 'margin'"):
        check_scalar_names(["margin"], own=True)


def test_masks_that_are_not_bool_are_refused():
    whole = laid_out([([(1, 1.0)] * 2, [])])
    object.__setattr__(whole, "reasoning", whole.reasoning.long())  # past the type checks that only tests have
    with pytest.raises(ValueError, match=r"reasoning_mask needs dtype torch.bool, got torch.int64"):
        whole.__post_init__()
