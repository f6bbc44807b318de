"""Leave-one-prompt-out ridge against one scikit-learn fit for each prompt."""

import pytest
import torch
from sklearn.linear_model import Ridge
from torch.testing import assert_close

from oracles import refitted_baselines
from poise.baselines import rows_by_group_size
from poise.probe import leave_one_out
from poise.probe.leave_one_out import LeaveOnePromptOut, ridge

GROUPS = {
    "pairs": [p for p in range(8) for _ in range(2)],
    "triples": [p for p in range(6) for _ in range(3)],
    "fours": [p for p in range(5) for _ in range(4)],
    "unequal": [0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 5, 5],
    "scattered": [0, 1, 2, 0, 3, 1, 0, 4, 3, 2, 4, 0],
}
PENALTIES = (0.1, 3.0, 300.0)


def problem(groups, *, window, columns, weighting, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = window + len(groups)
    evidence = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    evidence[:, 0] = 1
    rewards = (evidence[:, 1] + torch.randn(rows, generator=generator, dtype=torch.float64) > 0).double()
    weights = torch.ones(rows, dtype=torch.float64)
    if weighting != "unweighted":
        weights = 100 * torch.rand(rows, generator=generator, dtype=torch.float64) ** 3
    if weighting == "zeros":
        weights[torch.rand(rows, generator=generator) < 0.3] = 0
    return evidence, rewards, weights, torch.tensor(groups)


def assert_equals_refits(evidence, rewards, weights, groups, penalties=PENALTIES):
    answers = LeaveOnePromptOut(evidence, rewards, weights, groups).baselines(penalties)
    for penalty, answer in zip(penalties, answers, strict=True):
        expected = refitted_baselines(evidence, rewards, weights, groups, penalty)
        assert_close(answer, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("weighting", ["unweighted", "weighted", "zeros"])
@pytest.mark.parametrize("columns", [4, 60], ids=["primal", "dual"])
@pytest.mark.parametrize("window", [0, 20], ids=["first step", "with a window"])
@pytest.mark.parametrize("groups", GROUPS)
def test_each_prompt_gets_what_a_fit_without_its_rows_predicts(groups, window, columns, weighting):
    assert_equals_refits(*problem(GROUPS[groups], window=window, columns=columns, weighting=weighting))


def test_control_a_fit_that_has_seen_the_prompt_predicts_something_else():
    evidence, rewards, weights, groups = problem(GROUPS["pairs"], window=20, columns=4, weighting="weighted")
    answer = LeaveOnePromptOut(evidence, rewards, weights, groups).baselines([3.0])[0]
    seen = Ridge(alpha=3.0 * float(weights.mean()), fit_intercept=False)
    seen.fit(evidence.numpy(), rewards.numpy(), sample_weight=weights.numpy())
    assert (torch.from_numpy(seen.predict(evidence[20:].numpy())) - answer).abs().max() > 1e-2


def refits_counted(monkeypatch):
    calls = []
    original = LeaveOnePromptOut._refitted

    def counted(self, rows, *args):
        calls.append(rows.tolist())
        return original(self, rows, *args)

    monkeypatch.setattr(LeaveOnePromptOut, "_refitted", counted)
    return calls


@pytest.mark.parametrize("columns", [4, 60], ids=["primal", "dual"])
def test_a_prompt_that_all_but_determines_the_fit_is_refitted(monkeypatch, columns):
    calls = refits_counted(monkeypatch)
    evidence, rewards, weights, groups = problem(GROUPS["pairs"], window=10, columns=columns, weighting="unweighted")
    weights[10 + 4] = weights[10 + 5] = 1e9  # prompt 2
    assert_equals_refits(evidence, rewards, weights, groups, penalties=(3.0,))
    assert any([4, 5] in prompts for prompts in calls)


def test_no_prompt_is_refitted_where_none_dominates(monkeypatch):
    calls = refits_counted(monkeypatch)
    parts = problem(GROUPS["pairs"], window=10, columns=4, weighting="weighted")
    assert_equals_refits(*parts, penalties=(3.0,))
    assert calls == []


def test_refitting_every_prompt_gives_the_same_as_refitting_none(monkeypatch):
    parts = problem(GROUPS["unequal"], window=10, columns=6, weighting="weighted")
    closed = LeaveOnePromptOut(*parts).baselines(PENALTIES)
    monkeypatch.setattr(leave_one_out, "_SMALLEST_TRUSTED_EIGENVALUE", 2.0)
    assert_close(LeaveOnePromptOut(*parts).baselines(PENALTIES), closed, atol=1e-10, rtol=0)


@pytest.mark.parametrize("used", [[0, 3, 1], list(range(40))], ids=["primal", "dual"])
def test_a_choice_of_columns_is_a_fit_on_these_columns(used):
    evidence, rewards, weights, groups = problem(GROUPS["unequal"], window=10, columns=60, weighting="weighted")
    answer = LeaveOnePromptOut(evidence, rewards, weights, groups).baselines([3.0], columns=used)[0]
    expected = refitted_baselines(evidence[:, used], rewards, weights, groups, 3.0)
    assert_close(answer, expected, atol=1e-8, rtol=1e-8)


def test_the_unit_of_the_weights_does_not_matter():
    evidence, rewards, weights, groups = problem(GROUPS["unequal"], window=10, columns=6, weighting="weighted")
    answers = [LeaveOnePromptOut(evidence, rewards, unit * weights, groups).baselines(PENALTIES) for unit in (1, 1e3)]
    assert_close(*answers, atol=1e-10, rtol=0)


def test_a_lone_prompt_without_a_window_gets_zero():
    evidence, rewards, weights, groups = problem([0, 0, 0], window=0, columns=4, weighting="unweighted")
    assert_close(LeaveOnePromptOut(evidence, rewards, weights, groups).baselines([3.0])[0], torch.zeros(3).double())


def test_rows_that_all_weigh_nothing_predict_zero():
    evidence, rewards, weights, groups = problem(GROUPS["pairs"], window=4, columns=4, weighting="unweighted")
    answer = LeaveOnePromptOut(evidence, rewards, 0 * weights, groups).baselines([3.0])[0]
    assert_close(answer, torch.zeros(16).double())


@pytest.mark.parametrize("penalty", [0.0, -1.0])
def test_a_penalty_that_is_not_positive_is_refused(penalty):
    parts = problem(GROUPS["pairs"], window=0, columns=4, weighting="unweighted")
    with pytest.raises(ValueError, match=f"a ridge penalty must be positive, got {penalty}"):
        LeaveOnePromptOut(*parts).baselines([1.0, penalty])


@pytest.mark.parametrize("columns", [4, 60], ids=["primal", "dual"])
def test_ridge_equals_scikit_learn(columns):
    evidence, rewards, weights, _ = problem(GROUPS["pairs"], window=5, columns=columns, weighting="zeros")
    fit = Ridge(alpha=2.5, fit_intercept=False).fit(evidence.numpy(), rewards.numpy(), sample_weight=weights.numpy())
    assert_close(ridge(evidence, rewards, weights, 2.5), torch.from_numpy(fit.coef_), atol=1e-9, rtol=0)


def test_rows_are_listed_by_prompt_and_size():
    tables = rows_by_group_size(torch.tensor([0, 1, 0, 2, 1, 3, 3, 3]))
    assert [table.tolist() for table in tables] == [[[3]], [[0, 2], [1, 4]], [[5, 6, 7]]]
