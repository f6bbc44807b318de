"""avg@k and pass@k count what they say, and their intervals cover the truth."""

import math
import re
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.evaluate.pass_at_k import pass_at_k, sizes_of_subsets
from poise.evaluate.scores import GradedCompletion, markdown_table, scores, scores_by_domain
from poise.evaluate.statistics import score_interval, wilson_interval


@pytest.mark.parametrize(
    ("right", "drawn", "k", "expected"),
    [
        (0, 4, 2, 0.0),
        (1, 4, 1, 1 / 4),
        (1, 4, 2, 1 / 2),
        (2, 4, 2, 1 - 1 / 6),  # of six pairs, one holds the two wrong ones
        (3, 5, 2, 1 - 1 / 10),
        (3, 5, 3, 1.0),
        (5, 5, 1, 1.0),
    ],
)
def test_pass_at_k_equals_the_number_worked_out_by_hand(right, drawn, k, expected):
    assert pass_at_k(right, drawn, k=k) == pytest.approx(expected, abs=1e-15)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_one(numbers):
    right, drawn, k = numbers
    rewards = [1] * right + [0] * (drawn - right)
    subsets = list(combinations(rewards, k))
    assert pass_at_k(right, drawn, k=k) == pytest.approx(sum(map(max, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_is_unbiased_and_the_plug_in_estimate_is_not():
    p, n, k = 0.2, 6, 3
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(chance * pass_at_k(c, n, k=k) for c, chance in enumerate(chances)) == pytest.approx(truth, abs=1e-14)
    # The control: 1 - (1 - c/n)^k misses it.
    plug_in = sum(chance * (1 - (1 - c / n) ** k) for c, chance in enumerate(chances))
    assert abs(plug_in - truth) > 0.02


def test_pass_at_k_loses_no_digits_with_many_completions():
    assert pass_at_k(1, 4096, k=1) == 1 / 4096
    assert pass_at_k(1, 4096, k=2048) == 0.5
    # 1 - (1 - x) with x of 1e-12 would keep four digits.
    assert pass_at_k(1, 10**12, k=1) == 1e-12


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((1, 4, 5), r"pass@k needs k from 1 to the 4 completions, got 5"),
        ((1, 4, 0), r"pass@k needs k from 1 to the 4 completions, got 0"),
        ((5, 4, 2), r"pass@k needs from 0 to 4 right completions, got 5"),
    ],
)
def test_impossible_numbers_are_one_sentence(numbers, sentence):
    with pytest.raises(ValueError, match=sentence):
        pass_at_k(numbers[0], numbers[1], k=numbers[2])


def test_sizes_of_subsets_are_powers_of_two_and_all():
    assert [sizes_of_subsets(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


# Intervals.


def test_wilson_interval_solves_its_equation():
    # Both ends lie z standard errors, at the end itself, from the share.
    for share, tosses in ((0.3, 20), (0.5, 7.5), (0.9, 100)):
        for end in wilson_interval(share, tosses):
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / tosses))
    assert wilson_interval(0.0, 10)[0] == 0.0
    assert wilson_interval(0.0, 10)[1] == pytest.approx(1.959964**2 / (10 + 1.959964**2))


def test_interval_of_zeros_and_ones_is_that_of_as_many_tosses():
    assert score_interval([0.0, 1.0, 1.0, 0.0, 1.0]) == pytest.approx(wilson_interval(0.6, 5))
    assert score_interval([1.0] * 7, completions=32) == wilson_interval(1.0, 7)
    assert score_interval([0.5] * 4, completions=8) == wilson_interval(0.5, 32)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    covered, draws, truth = 0, 2000, 0.3
    for _ in range(draws):
        rates = random.beta(0.3, 0.7, size=40)
        low, high = score_interval((random.binomial(4, rates) / 4).tolist(), completions=4)
        covered += low <= truth <= high
    assert 0.93 < covered / draws < 0.975
    # The control: counting completions as independent tosses covers too rarely.
    naive = 0
    for _ in range(draws):
        share = random.binomial(4, random.beta(0.3, 0.7, size=40)).sum() / 160
        low, high = wilson_interval(share, 160)
        naive += low <= truth <= high
    assert naive / draws < 0.85


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: score_interval([]), "an interval needs at least 1 prompt, got none"),
        (lambda: wilson_interval(0.5, 0), "an interval needs more than 0 tosses, got 0"),
        (lambda: wilson_interval(1.5, 3), "an interval needs a share from 0 to 1, got 1.5"),
        (lambda: scores([], k=2), "scores need at least 1 completion, got none"),
    ],
)
def test_nothing_to_measure_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# Scores.


def completions(rewards_by_problem, domains):
    return [
        GradedCompletion(problem, draw, domains[problem], f"q{problem}", "text", 10 * (draw + 1), draw == 0, reward)
        for problem, rewards in enumerate(rewards_by_problem)
        for draw, reward in enumerate(rewards)
    ]


def test_prompts_weigh_the_same_and_what_could_not_be_graded_is_left_out():
    drawn = completions([[1.0, 0.0, 0.0, 1.0], [1.0, None, None, 1.0], [0.0, 0.25, None, 0.0]], ["a", "b", "a"])
    found = scores(drawn, k=4)
    assert found.pass_at[1].mean == pytest.approx((2 / 4 + 2 / 2 + 0 / 3) / 3)
    assert found.pass_at[2].mean == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert (found.pass_at[4].mean, found.pass_at[4].num_prompts) == (1.0, 1)
    assert found.mean_reward == pytest.approx((0.5 + 1 + 0.25 / 3) / 3)
    assert (found.num_prompts, found.num_completions) == (3, 12)
    assert found.ungradable_share == pytest.approx(3 / 12)
    assert found.truncated_share == pytest.approx(1 / 4)
    assert found.mean_length == pytest.approx(25)
    by_domain = scores_by_domain(drawn, k=4)
    assert list(by_domain) == ["a", "b"]
    assert by_domain["a"].pass_at[1].mean == pytest.approx((2 / 4 + 0) / 2)
    assert found.as_json(k=4)["avg@4"] == found.as_json(k=4)["pass@1"]


def test_table_has_a_row_for_each_domain_and_one_for_all():
    drawn = completions([[1.0, 0.0], [None, None]], ["a|b", "c"])
    table = markdown_table(scores(drawn, k=2), scores_by_domain(drawn, k=2), k=2)
    lines = [re.sub(" +", " ", line) for line in table.splitlines()]
    assert lines[0] == "| domain | prompts | avg@2 | pass@2 | truncated | mean length |"
    assert lines[2].startswith("| a\\|b | 1 | 0.500 [")
    assert lines[3].startswith("| c (100.0% of completions ungradable) | 1 | – | – |")
    assert lines[4].startswith("| all (50.0% of completions ungradable) | 2 | 0.500 [")
