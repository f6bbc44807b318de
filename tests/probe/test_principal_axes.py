"""Projection keeps lengths; principal axes are those of scikit-learn, and forget units."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch.testing import assert_close

from poise.probe.principal_axes import FARTHEST, principal_axes, projected_states


def states(rows=40, width=300):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, width, generator=generator) * torch.arange(1, width + 1) ** -0.5


def test_norms_are_kept_on_average():
    # The squared norm of a projected row differs from the row's own by about sqrt(2 / size) of it.
    norms = projected_states(torch.randn(2000, 300), size=64, seed=0).pow(2).sum(dim=1)
    assert abs(float(norms.mean()) / 300 - 1) < 0.02
    over_seeds = torch.stack([projected_states(states(), size=64, seed=k).pow(2).sum(dim=1) for k in range(40)])
    assert (over_seeds.mean(dim=0) / states().pow(2).sum(dim=1) - 1).abs().max() < 0.15


def test_the_directions_are_orthogonal_and_of_equal_length():
    width = 50
    matrix = projected_states(torch.eye(width), size=8, seed=5).double()
    assert_close(matrix.T @ matrix, width / 8 * torch.eye(8).double(), atol=1e-5, rtol=0)


def test_angles_of_states_with_few_directions_survive():
    few = torch.randn(30, 3) @ torch.randn(3, 400)
    scaled = few / few.pow(2).mean(dim=1, keepdim=True).sqrt()
    cosines = torch.nn.functional.normalize(scaled) @ torch.nn.functional.normalize(scaled).T
    projected = torch.nn.functional.normalize(projected_states(few, size=256, seed=0))
    assert (projected @ projected.T - cosines).abs().max() < 0.2


@pytest.mark.parametrize("unit", [1e-4, 1e3])
def test_the_unit_of_states_does_not_matter_to_scores(unit):
    def scores(rows):
        projected = projected_states(rows, size=16, seed=0)
        return principal_axes(projected[:30], components=8).scores(projected)

    assert_close(scores(unit * states()).abs(), scores(states()).abs(), rtol=1e-3, atol=1e-3)


def test_outliers_are_cut_off():
    rows = states(width=8)
    axes = principal_axes(rows, components=4)
    wild = torch.cat([rows, 1e6 * rows])
    assert axes.scores(wild).abs().max() == FARTHEST
    assert torch.equal(axes.scores(wild)[:40], axes.scores(rows))


def test_each_row_is_projected_for_itself():
    assert_close(projected_states(states()[7:9], size=16, seed=0), projected_states(states(), size=16, seed=0)[7:9])


def test_the_seed_alone_decides_the_directions():
    one, same, other = (projected_states(states(), size=16, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 0.1


def test_states_no_wider_than_asked_are_left_as_they_are():
    assert torch.equal(projected_states(states(width=16), size=16, seed=0), states(width=16))


@pytest.mark.parametrize("width", [300, 10, 0])
def test_rows_of_zeros_stay_zero(width):
    zeros = projected_states(torch.zeros(3, width), size=16, seed=0)
    assert zeros.shape == (3, min(width, 16))
    assert not zeros.any()


def test_low_precision_is_projected_in_float32():
    half = states().to(torch.bfloat16)
    assert torch.equal(projected_states(half, size=16, seed=0), projected_states(half.float(), size=16, seed=0))


def test_principal_axes_give_the_whitened_scores_of_scikit_learn_up_to_sign():
    settled, new = torch.randn(2, 60, 9, dtype=torch.float64) * torch.arange(1, 10) + 5
    axes = principal_axes(settled, components=4)
    pca = PCA(4, whiten=True, svd_solver="full").fit(settled.numpy())
    expected = torch.from_numpy(pca.transform(new.numpy())) * (60 / 59) ** 0.5  # theirs divides by rows - 1
    signs = (axes.scores(new) * expected).sum(dim=0).sign()
    assert_close(axes.scores(new) * signs, expected, atol=1e-9, rtol=1e-9)


def test_scores_have_variance_one_over_the_settled_rows():
    settled = states(width=12)
    scores = principal_axes(settled, components=5).scores(settled)
    assert_close(scores.T @ scores / len(settled), torch.eye(5).double(), atol=1e-9, rtol=0)


def test_directions_without_variance_are_left_out():
    flat = torch.randn(30, 2, dtype=torch.float64) @ torch.randn(2, 10, dtype=torch.float64)
    assert principal_axes(flat, components=6).scores(flat).shape == (30, 2)
    assert principal_axes(torch.ones(30, 10), components=6).scores(flat).shape == (30, 0)
    assert principal_axes(torch.zeros(0, 10), components=6).scores(flat).shape == (30, 0)
    assert principal_axes(torch.zeros(5, 0), components=6).scores(torch.zeros(5, 0)).shape == (5, 0)
