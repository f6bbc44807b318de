"""How much does each candidate count, and what does it predict?"""

import math

import pytest
import torch
from torch.testing import assert_close

from oracles import refitted_baselines
from poise.probe import mixture
from poise.probe.evidence import BLOCKS, EvidenceMatrix, EvidenceRows
from poise.probe.mixture import Candidate, RiskRecord, candidate_baselines, candidates


def test_candidates_are_nested_sets_with_every_penalty_and_scope():
    listed = candidates(BLOCKS, (1.0, 10.0), (4,))
    assert listed[0] == Candidate("zero")
    plain = [c.evidence for c in listed if c.components == 0]
    assert plain == ["zero", "constant", "sibling_reward", "scalars"]
    wide = {(c.evidence, c.penalty, c.own_domain) for c in listed if c.components == 4}
    assert wide == {(s, p, own) for s in ("prompt", "sibling", "all") for p in (1.0, 10.0) for own in (False, True)}
    assert len(set(listed)) == len(listed)


def test_sets_that_differ_only_in_blocks_that_are_off_are_one():
    assert [c.evidence for c in candidates(("constant", "sibling_reward"), (1.0, 2.0), (4,))] == [
        "zero",
        "constant",
        "sibling_reward",
    ]
    assert [c.evidence for c in candidates((), (1.0,), (4,))] == ["zero"]
    assert [c.evidence for c in candidates(("prompt_states",), (1.0,), (4,))] == ["zero", "prompt", "prompt"]


def small_problem(rows=60, num_prompts=20, num_domains=2):
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    groups = torch.arange(num_prompts).repeat_interleave(2)
    start = rows - len(groups)
    domain = torch.cat([torch.arange(start) % num_domains, groups % num_domains])
    nothing = torch.zeros(rows, 0)
    zeros = torch.zeros(rows, dtype=torch.float64)
    reward = normal(rows)
    weights = normal(rows).abs()
    known = EvidenceRows(
        nothing, nothing, nothing, zeros, zeros, zeros, zeros, domain, reward, weights, torch.ones(rows).bool()
    )
    matrix = EvidenceMatrix(normal(rows, 7), {"constant": range(1), "sibling_states": range(1, 7)})
    return matrix, known, weights, groups


LISTED = (
    Candidate("zero"),
    Candidate("constant", 2.0),
    Candidate("sibling", 2.0, 3),
    Candidate("sibling", 9.0, 3),
    Candidate("sibling", 2.0, 5),
    Candidate("sibling", 2.0, 3, own_domain=True),
)
COLUMNS = [[], [0], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3]]


@pytest.mark.parametrize("fewest", [10, 1000], ids=["large domains", "small domains"])
def test_every_candidate_predicts_as_its_own_refits_do(monkeypatch, fewest):
    monkeypatch.setattr(mixture, "_FEWEST_DOMAIN_ROWS", fewest)
    matrix, rows, weights, groups = small_problem()
    start = len(rows) - len(groups)
    answers = candidate_baselines(LISTED, matrix, rows, weights, groups)
    for candidate, used, answer in zip(LISTED, COLUMNS, answers, strict=True):
        if not used:
            assert not answer.any()
            continue
        evidence = matrix.columns[:, used]
        if not candidate.own_domain or fewest == 1000:
            expected = refitted_baselines(evidence, rows.reward, weights, groups, candidate.penalty)
            assert_close(answer, expected, atol=1e-8, rtol=0)
            continue
        for domain in (0, 1):
            inside = rows.domain == domain
            alone = refitted_baselines(
                evidence[inside], rows.reward[inside], weights[inside], groups[inside[start:]], candidate.penalty
            )
            assert_close(answer[inside[start:]], alone, atol=1e-8, rtol=0)


def observed(*steps, decay=0.5, num_domains=1):
    """A record after steps of (predictions of each candidate, rewards, weights, domains)."""
    record = RiskRecord(len(steps[0][0]), decay=decay)
    for predictions, rewards, weights, domains in steps:
        parts = [torch.tensor(part, dtype=torch.float64) for part in (predictions, rewards, weights)]
        record.observe(*parts, torch.tensor(domains), num_domains=num_domains)
    return record


def test_risks_are_decayed_sums_by_hand():
    step = ([[0.0, 0.0], [1.0, 0.5]], [1.0, 0.0], [2.0, 4.0], [0, 0])
    record = observed(step, step, decay=0.5)
    assert record.losses.tolist() == [[1.5 * 2.0, 1.5 * 1.0]]
    assert record.weights.tolist() == [1.5 * 6.0]
    assert record.rows.tolist() == [1.5 * 2]


def counting_most(record, domains):
    return record.shares(domains).argmax(dim=0).tolist()


def test_shares_are_exponential_in_what_candidates_cost_beyond_the_best():
    rewards = [1.0, 0.0, 1.0, 0.0]
    record = observed(([[0.5] * 4, [1.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.0, 1.0]], rewards, [1.0] * 4, [0] * 4))
    risks = [0.25, 0.125, 1.0]
    expected = torch.tensor([math.exp(-4 * (risk - 0.125) / (8 * 0.125)) for risk in risks], dtype=torch.float64)
    shares = record.shares(torch.tensor([0, 0]))
    assert_close(shares[:, 0], expected / expected.sum())
    assert torch.equal(shares[:, 0], shares[:, 1])


def test_candidates_that_are_right_share_alike_and_the_others_count_for_nothing():
    record = observed(([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]], [1.0, 0.0], [1.0, 1.0], [0, 0]))
    assert record.shares(torch.tensor([0])).T.tolist() == [[0.5, 0.0, 0.5]]


def test_a_longer_record_tells_candidates_apart_that_a_short_one_averages():
    for rows, least, most in ((4, 0.5, 0.6), (4000, 1 - 1e-6, 1.0)):
        record = observed(([[0.4] * rows, [0.5] * rows], [0.0] * rows, [1.0] * rows, [0] * rows))
        share = float(record.shares(torch.tensor([0]))[0, 0])
        assert least < share <= most


def test_the_mean_of_two_candidates_that_err_apart_costs_less_than_either():
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(400, generator=generator, dtype=torch.float64)
    predictions = value + torch.randn(2, 400, generator=generator, dtype=torch.float64)
    domains = torch.zeros(400, dtype=torch.int64)
    record = RiskRecord(2, decay=1.0).observe(
        predictions[:, :50], value[:50], torch.ones(50).double(), domains[:50], num_domains=1
    )
    later = slice(50, None)
    mean = (record.shares(domains[later]) * predictions[:, later]).sum(dim=0)
    assert (mean - value[later]).square().mean() < 0.8 * (predictions[:, later] - value[later]).square().mean(
        dim=1
    ).min()


def test_the_cheapest_counts_most_and_the_simpler_of_equals():
    rewards = [1.0, 0.0]
    record = observed(([[0.5, 0.5], [0.5, 0.5], [1.0, 1.0]], rewards, [1.0, 1.0], [0, 0]))
    assert counting_most(record, torch.tensor([0, 0])) == [0, 0]
    record = observed(([[0.0, 1.0], [0.5, 0.5], [0.9, 0.1]], rewards, [1.0, 1.0], [0, 0]))
    assert counting_most(record, torch.tensor([0])) == [2]


def test_what_weighs_more_decides():
    predictions = [[1.0, 1.0], [0.0, 0.0]]
    for weights, winner in (([3.0, 1.0], 0), ([1.0, 3.0], 1)):
        record = observed((predictions, [1.0, 0.0], weights, [0, 0]))
        assert counting_most(record, torch.tensor([0])) == [winner]


def test_without_a_record_the_leave_out_mean_counts_alone():
    assert counting_most(RiskRecord(5, decay=0.9), torch.tensor([0, 3])) == [1, 1]
    assert counting_most(RiskRecord(1, decay=0.9), torch.tensor([0])) == [0]


def two_domains(rows_each):
    """Candidate 0 is right in domain 0 and candidate 1 in domain 1, where it is right by far."""
    domains = [0] * rows_each[0] + [1] * rows_each[1]
    predictions = [[0.0 if d == 0 else 2.0 for d in domains], [1.0 if d == 0 else 0.0 for d in domains]]
    rows = len(domains)
    return observed((predictions, [0.0] * rows, [1.0] * rows, domains), num_domains=2)


def test_each_domain_has_its_own_and_a_short_record_leans_on_all():
    assert counting_most(two_domains((2000, 2000)), torch.tensor([0, 1])) == [0, 1]
    assert counting_most(two_domains((4, 2000)), torch.tensor([0, 1])) == [1, 1]


def test_a_domain_never_seen_gets_what_is_best_for_all():
    assert counting_most(two_domains((2000, 2000)), torch.tensor([2])) == [1]


def test_an_absent_domain_keeps_its_record_up_to_fading_and_a_new_one_is_added():
    record = two_domains((2000, 2000))
    before = record.losses.clone()
    record.observe(
        torch.zeros(2, 1).double(), torch.ones(1).double(), torch.ones(1).double(), torch.tensor([2]), num_domains=3
    )
    assert_close(record.losses, torch.cat([before * 0.5, torch.ones(1, 2).double()]))
    assert counting_most(record, torch.tensor([0, 1])) == [0, 1]
