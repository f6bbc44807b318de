"""Whatever numbers come, what the core gives back is finite, or it refuses with one sentence: never a silent NaN."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import poise
from oracles import drawn_rollouts, evidence_of
from poise.baselines import group_mean_baselines, rloo_baselines, sibling_means
from poise.diagnostics.pairs import PairScoreboard
from poise.features.rollout_features import mean_entropies, score_norm_weights
from poise.probe.evidence import evidence_matrix, settled_frame
from poise.probe.learned import LeaveOnePromptOutRecipe
from poise.probe.leave_one_out import LeaveOnePromptOut
from poise.probe.mixture import RiskRecord
from poise.probe.principal_axes import principal_axes, projected_states

HOSTILE = [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e38, -1e38, 1e-300, -1.0, 0.0, 1e15]
FEW = settings(max_examples=25)
FEW_CANDIDATES = {"penalties": (3.0,), "components": (4,), "window_rows": 64}
SLOTS = ("prompt", "completion", "entropies", "rewards", "weights")

slots = st.lists(
    st.tuples(st.sampled_from(SLOTS), st.integers(0, 10**6), st.sampled_from(HOSTILE)), min_size=1, max_size=4
)
group_sizes = st.lists(st.integers(2, 5), min_size=1, max_size=12)


def spoiled(rollouts, changes):
    """The rollouts with single numbers replaced."""
    parts = {name: getattr(rollouts, name).clone() for name in SLOTS}
    for name, place, number in changes:
        flat = parts[name].view(-1)
        largest = torch.finfo(flat.dtype).max
        flat[place % len(flat)] = number if not math.isfinite(number) else max(-largest, min(largest, number))
    return replace(rollouts, **parts)


def finite_or_refused(baseline, rollouts):
    """The step, all of whose numbers are finite; None where it was refused with one sentence."""
    try:
        step = rollouts.given_to(baseline)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
    if refusal:
        return None
    assert step.baselines.isfinite().all()
    assert step.advantages.isfinite().all()
    assert (step.advantages[rollouts.rewards.isnan()] == 0).all()
    return step


@pytest.mark.parametrize("name", sorted(poise.PRESETS))
@settings(max_examples=8)
@given(sizes=group_sizes, changes=slots, when=st.sampled_from(["first", "later"]))
def test_a_step_is_finite_or_refused_and_the_next_one_is_as_if_nothing_had_been(name, sizes, changes, when):
    own = isinstance(poise.preset(name).recipe, LeaveOnePromptOutRecipe)
    baseline = poise.OnlineBaseline(poise.preset(name, **(FEW_CANDIDATES if own else {})))
    if when == "later":
        drawn_rollouts([2] * 6, seed=1).given_to(baseline)
    before = baseline.state_dict()
    before = {key: value.clone() if torch.is_tensor(value) else value for key, value in before.items()}
    step = finite_or_refused(baseline, spoiled(drawn_rollouts(sizes, seed=2), changes))
    if step is None:
        after = baseline.state_dict()
        assert all(torch.equal(after[k], v) if torch.is_tensor(v) else after[k] == v for k, v in before.items())
    # What went in does not make a later, ordinary step silently wrong.
    assert finite_or_refused(baseline, drawn_rollouts([2] * 8, seed=3)) is not None


@FEW
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=10),
    seed=st.integers(0, 99),
    ungradable=st.sets(st.integers(0, 39)),
)
def test_sibling_baselines_are_those_of_loops_and_permute_with_the_rows(sizes, seed, ungradable):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.tensor([g for g, size in enumerate(sizes) for _ in range(size)])
    rewards = torch.randn(len(groups), generator=generator, dtype=torch.float64)
    gradable = torch.tensor([k not in ungradable for k in range(len(groups))])
    means, counts = sibling_means(rewards[:, None], groups, gradable)
    for i in range(len(groups)):
        others = [float(rewards[j]) for j in range(len(groups)) if j != i and groups[j] == groups[i] and gradable[j]]
        assert counts[i] == len(others)
        assert float(means[i, 0]) == pytest.approx(sum(others) / len(others) if others else 0.0)
    order = torch.randperm(len(groups), generator=generator)
    permuted, _ = sibling_means(rewards[order][:, None], groups[order], gradable[order])
    assert torch.allclose(permuted, means[order])
    assert group_mean_baselines(rewards, groups, gradable).isfinite().all()
    if min(sizes) >= 2:
        assert rloo_baselines(rewards, groups, gradable).isfinite().all()


def test_no_rows_are_no_baselines():
    nothing, none, no_groups = (
        torch.zeros(0, dtype=torch.float64),
        torch.zeros(0, dtype=torch.bool),
        torch.zeros(0).long(),
    )
    for function in (rloo_baselines, group_mean_baselines):
        assert function(nothing, no_groups, none).shape == (0,)
    scoreboard = PairScoreboard().observe(nothing, nothing, no_groups, none)
    assert all(math.isnan(value) for value in scoreboard.metrics().values())


@FEW
@given(
    scale=st.sampled_from([1e-150, 1e-8, 1.0, 1e8, 1e100]),
    columns=st.integers(1, 9),
    prompts=st.integers(1, 8),
    penalty=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_leave_one_prompt_out_is_finite_for_evidence_of_any_size_and_rank(scale, columns, prompts, penalty, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * prompts + seed % 5
    evidence = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale
    evidence[:, -1] = evidence[:, 0]  # columns that say the same
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) * (seed % 3)  # at times all 0
    fit = LeaveOnePromptOut(
        evidence,
        torch.randn(rows, generator=generator, dtype=torch.float64),
        weights,
        torch.arange(prompts).repeat_interleave(2),
    )
    assert fit.baselines([penalty]).isfinite().all()


@FEW
@given(scale=st.sampled_from([0.0, 1e-30, 1.0, 1e18]), rows=st.integers(0, 6), width=st.integers(1, 300))
def test_scores_on_axes_are_finite_and_bounded(scale, rows, width):
    states = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)) * scale
    projected = projected_states(states, size=8, seed=0)
    scores = principal_axes(projected, components=4).scores(projected)
    assert scores.isfinite().all()
    assert (scores.abs() <= 6.0 + 1e-6).all()


@FEW
@given(sizes=group_sizes, gone=st.sets(st.integers(0, 59)))
def test_evidence_is_finite_whoever_is_ungradable(sizes, gone):
    rollouts = drawn_rollouts(sizes, seed=0)
    gradable = torch.tensor([k not in gone for k in range(len(rollouts.rewards))])
    made = evidence_of(replace(rollouts, rewards=torch.where(gradable, rollouts.rewards, torch.nan)))
    blocks = ("constant", "domain", "sibling_reward", "history", "sibling_entropies", "sibling_states", "prompt_states")
    assert evidence_matrix(made, blocks, settled_frame(made, components=3), num_domains=1).columns.isfinite().all()


@FEW
@given(
    logprobs=st.lists(
        st.sampled_from([0.0, -1e-30, -0.5, -50.0, -1e30, math.nan, -math.inf, 0.5]), min_size=1, max_size=6
    ),
    entropy=st.sampled_from([0.0, 1e-30, 1.0, 12.0, 1e30, math.nan, math.inf]),
    kind=st.sampled_from(["constant", "token", "sequence"]),
)
def test_weights_are_finite_and_not_negative_or_refused(logprobs, entropy, kind):
    row = torch.tensor([logprobs])
    mask = torch.ones_like(row, dtype=torch.bool)
    entropies = torch.full_like(row, entropy)
    try:
        weights = score_norm_weights(row, entropies, mask, loss_normalization=kind)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
    assert bool(refusal) != bool(row.isfinite().all() and entropies.isfinite().all() and (row <= 0).all())
    if refusal:
        return
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    # Nothing under an empty mask counts, whatever stands there.
    assert score_norm_weights(row * math.nan, entropies, ~mask, loss_normalization=kind).tolist() == [0.0]
    assert mean_entropies(entropies * math.nan, ~mask, ~mask, ~mask).isfinite().all()


@FEW
@given(rewards=st.lists(st.sampled_from([0.0, 1.0, 1e-200, 1e100, -1e100]), min_size=2, max_size=12))
def test_the_scoreboard_never_gives_an_infinite_ratio(rewards):
    column = torch.tensor(rewards, dtype=torch.float64)
    groups = torch.arange(len(column)) // 2
    metrics = (
        PairScoreboard().observe(column, torch.zeros_like(column), groups, torch.ones_like(groups).bool()).metrics()
    )
    assert not any(math.isinf(value) for value in metrics.values())


def test_a_record_in_which_nothing_weighs_chooses_the_second_candidate():
    record = RiskRecord(3, decay=0.9)
    domains = torch.tensor([0, 0, 1])
    record.observe(torch.ones(3, 3).double(), torch.ones(3).double(), torch.zeros(3).double(), domains, num_domains=2)
    assert record.shares(domains).T.tolist() == [[0, 1, 0]] * 3


@pytest.mark.parametrize("reward", [1e100, 1e160, 1e300])
def test_rewards_whose_squares_overflow_get_finite_baselines(reward):
    baseline = poise.OnlineBaseline(poise.preset("poise-value", evidence=("constant", "sibling_reward")))
    for _ in range(3):
        step = baseline.step(None, [reward, 0.0, 1.0, reward, 0.5, 1.0], prompts=[0, 0, 1, 1, 2, 2])
        assert step.baselines.isfinite().all()
