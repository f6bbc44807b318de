"""Rollouts drawn by the size of their gradients: exact means over every draw there is, against every row of a sum."""

import math

import pytest
import torch
from torch.testing import assert_close

from oracles import different_starts
from poise.engines.subsampling import drawn_rollouts, inclusion_probabilities, systematic_draw

SIZES = {
    "even": torch.ones(8, dtype=torch.float64),
    "skewed": torch.tensor([9.0, 0.1, 0.0, 2.0, 0.3, 0.3, 5.0, 0.01], dtype=torch.float64),
    "one alone": torch.tensor([0.0, 0.0, 3.0, 0.0], dtype=torch.float64),
    "random": torch.rand(33, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(3),
}
SHARES = (0.125, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("share", SHARES)
def test_probabilities_are_the_sizes_times_one_number_where_they_are_below_one(name, share):
    sizes = SIZES[name]
    num = math.ceil(share * len(sizes))
    found = inclusion_probabilities(sizes, num)
    if int((sizes > 0).sum()) <= num:
        assert_close(found, (sizes > 0).double())
        return
    low, high = 0.0, 1e6
    for _ in range(200):  # the oracle: bisection for the number that gives the right sum
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle * sizes).clamp(max=1).sum()) < num else (low, middle)
    assert_close(found, (low * sizes).clamp(max=1), atol=1e-9, rtol=1e-9)
    assert float(found.sum()) == pytest.approx(num)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("share", SHARES)
def test_what_is_drawn_counts_for_the_rest_exactly(name, share):
    sizes = SIZES[name]
    values = torch.randn(len(sizes), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * (sizes > 0)
    probabilities = inclusion_probabilities(sizes, math.ceil(share * len(sizes)))
    mean = unscaled = 0.0
    numbers = set()
    for start, probability in different_starts(probabilities):
        rows = systematic_draw(probabilities, start)
        mean += probability * float((values[rows] / probabilities[rows]).sum())
        unscaled += probability * float(values[rows].sum())
        numbers.add(len(rows))
    assert mean == pytest.approx(float(values.sum()), abs=1e-9)
    assert numbers == {min(math.ceil(share * len(sizes)), int((sizes > 0).sum()))}
    if name == "skewed" and share == 0.5:  # the control: a draw by size that counts every row once
        assert abs(unscaled - float(values.sum())) > 0.1


def test_no_other_probabilities_give_less_noise():
    sizes = SIZES["random"]
    _, _, noise = drawn_rollouts(sizes, 0.5)
    num = math.ceil(0.5 * len(sizes))
    generator = torch.Generator().manual_seed(2)
    for power in (0.0, 0.5, 0.8, 1.2, 2.0):
        other = inclusion_probabilities(sizes**power, num)
        assert float((sizes**2 / other).sum() / (sizes**2).sum()) > noise
    for _ in range(20):
        other = inclusion_probabilities(sizes * torch.rand(len(sizes), generator=generator).add(0.5), num)
        assert float((sizes**2 / other).sum() / (sizes**2).sum()) > noise


def test_all_rows_for_a_share_of_one_and_one_row_for_nothing_to_learn():
    rows, counts_for, noise = drawn_rollouts(torch.tensor([1.0, 2.0, 0.5]), 1.0)
    assert rows.tolist() == [0, 1, 2]
    assert_close(counts_for, torch.ones(3, dtype=torch.float64))
    assert noise == pytest.approx(1.0)
    rows, counts_for, noise = drawn_rollouts(torch.zeros(4), 0.5)
    assert (rows.tolist(), counts_for.tolist(), noise) == ([0], [1.0], 1.0)


def test_a_draw_takes_one_number_whatever_the_batch():
    after = []
    for sizes in (torch.zeros(4), torch.ones(4), torch.ones(64)):
        torch.manual_seed(0)
        drawn_rollouts(sizes, 0.5)
        after.append(float(torch.rand(())))
    assert len(set(after)) == 1
