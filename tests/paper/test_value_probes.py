"""Each kind of probe against its definition, and what an ensemble may not reward."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch.testing import assert_close

from oracles import logistic_by_newton, one_probe
from poise.paper.value_probes import PROBES, SEED, fitted_ensemble


def world(rows, *, width=6, seed=0, columns=None):
    """Pairs of rollouts: standard normal columns, of which the first tells the target, and prompts' numbers."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, columns or width, generator=generator, dtype=torch.float64)
    rate = (0.5 + 1.2 * z[:, 0]).sigmoid()
    targets = (torch.rand(rows, 3, generator=generator, dtype=torch.float64) < rate[:, None]).double().mean(dim=1)
    return z, targets, torch.arange(rows) // 2


def test_the_network_is_scikit_learn_s_to_the_bit():
    z, targets, _ = world(80)
    later = world(20, seed=1)[0]
    direct = one_probe("mlp", z.numpy(), targets.numpy(), 0.3, 7)
    probe = PROBES["mlp"](z, targets, penalty=0.3, seed=7)
    assert np.array_equal(probe(later).numpy(), direct(later.numpy()))
    # The control: another seed is another network.
    assert (PROBES["mlp"](z, targets, penalty=0.3, seed=8)(later) - probe(later)).abs().max() > 1e-3


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_the_logistic_probe_minimizes_its_objective(penalty):
    z, targets, _ = world(80)
    coefficients = torch.from_numpy(logistic_by_newton(z.numpy(), targets.clip(1e-6, 1 - 1e-6).numpy(), penalty))
    later = world(20, seed=1)[0]
    expected = (later @ coefficients[:-1] + coefficients[-1]).sigmoid()
    assert_close(PROBES["logistic"](z, targets, penalty=penalty, seed=0)(later), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_targets_that_are_all_alike_are_every_row_s_value(kind, target):
    z, _, _ = world(200)
    values = PROBES[kind](z, torch.full((200,), target, dtype=torch.float64), penalty=1.0, seed=0)(z)
    assert (values - target).abs().max() < 1e-5


def test_ridge_has_a_free_intercept_whatever_the_columns_mean():
    z, targets, _ = world(60)
    later = world(20, seed=1)[0]
    expected = Ridge(alpha=5.0).fit((z + 3).numpy(), targets.numpy()).predict((later + 3).numpy()).clip(0, 1)
    values = PROBES["ridge"](z + 3, targets, penalty=5.0, seed=0)(later + 3)
    assert_close(values, torch.from_numpy(expected), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", PROBES)
def test_values_lie_between_zero_and_one_wherever_the_rows_lie(kind):
    z, targets, _ = world(60)
    values = PROBES[kind](z, targets, penalty=1.0, seed=0)(100 * z)
    assert values.min() >= 0
    assert values.max() <= 1
    assert values.max() - values.min() > 0.9


def ensemble(z, targets, prompts, members, combination):
    return fitted_ensemble(z, targets, prompts, members, combination=combination, stacking_penalty=0.01)


def test_stacking_does_not_reward_the_member_that_remembers_its_rows():
    # As many columns as rows: the first member recalls every target it was fitted to, and knows nothing of new rows.
    members = [("ridge", 1e-8), ("ridge", 300.0)]
    z, targets, prompts = world(120, columns=120)
    later, later_targets, _ = world(2000, columns=120, seed=1)

    def error(values):
        return float((values - later_targets).square().mean())

    recalling, sober = (PROBES[kind](z, targets, penalty=penalty, seed=SEED) for kind, penalty in members)
    stacked = error(ensemble(z, targets, prompts, members, "stacked")(later))
    assert stacked < 1.1 * error(sober(later)) < 0.7 * error(recalling(later))
    # The control, on the members' own fit: the one that recalls gets all the weight.
    in_sample = LinearRegression().fit(torch.stack([recalling(z), sober(z)], dim=1).numpy(), targets.numpy())
    of_both = torch.stack([recalling(later), sober(later)], dim=1).numpy()
    assert error(torch.from_numpy(in_sample.predict(of_both)).clamp(0, 1)) > 1.5 * stacked


def test_siblings_are_on_one_side_of_every_fold():
    # Siblings share their columns and target: told apart by a fold, a member would recall the one from the other.
    rows, _, _ = world(60, columns=60)
    z, prompts = rows.repeat_interleave(2, dim=0), torch.arange(120) // 2
    targets = torch.rand(60, generator=torch.Generator().manual_seed(3), dtype=torch.float64).repeat_interleave(2)
    members = [("ridge", 1e-8), ("ridge", 1e6)]
    whole = ensemble(z, targets, prompts, members, "stacked")
    split = ensemble(z, targets, torch.arange(120), members, "stacked")
    noise = world(500, columns=60, seed=5)[0]
    assert whole(noise).std() < 0.5 * split(noise).std()


def test_rows_of_a_single_prompt_are_not_stacked_but_averaged():
    z, targets, _ = world(12)
    members, prompts = [("ridge", 1.0), ("logistic", 1.0)], torch.zeros(12, dtype=torch.int64)
    stacked, mean = (ensemble(z, targets, prompts, members, how)(z) for how in ("stacked", "mean"))
    assert torch.equal(stacked, mean)
    singles = [PROBES[kind](z, targets, penalty=penalty, seed=SEED)(z) for kind, penalty in members]
    assert_close(mean, torch.stack(singles).mean(dim=0))
