"""A rollout's own baseline stays where it is when the rollout is replaced, whatever the size of rewards and scalars."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import poise
from oracles import drawn_rollouts

SCALARS = ("own:scalar",)
CHANGES = {"scalars": SCALARS, "projection_size": 8, "components": (4,), "window_rows": 64}


def rollouts_of(case, seed):
    """Rollouts whose rewards and scalars have the sizes that the case draws, some prompts equal to earlier ones."""
    sizes = [case["group_size"]] * case["prompts"]
    made = drawn_rollouts(sizes, seed=seed, width=12)
    noise = torch.randn(len(made.rewards), generator=torch.Generator().manual_seed(seed))
    prompts = [name if k % 7 or not case["duplicates"] else made.prompts[0] for k, name in enumerate(made.prompts)]
    own = case["scalar"] * (1 + noise)
    rewards = case["reward"] * made.rewards + case["offset"] * case["reward"]
    return replace(made, rewards=rewards, prompts=prompts), own


def baselines_of(baseline, rollouts, own):
    missing = torch.zeros(len(own), 4, dtype=torch.bool)
    parts = (rollouts.prompt, rollouts.completion, rollouts.entropies, missing)
    features = poise.Features(*parts, scalars={"own:scalar": own})
    return baseline.step(features, rollouts.rewards, prompts=rollouts.prompts, weights=rollouts.weights)


def move_of(case):
    """How far the replaced rollout's own baseline moves, of the range of rewards; and whether it was counted."""
    preset = poise.preset("poise", **CHANGES, penalties=(case["penalty"], 30.0))
    baseline = poise.OnlineBaseline(preset)
    for seed in range(case["earlier"]):
        baselines_of(baseline, *rollouts_of(case, seed))
    state = baseline.state_dict()
    batch, own = rollouts_of(case, 50)
    row = case["row"] % len(own)
    other, other_own = replace(batch, **{n: getattr(batch, n).clone() for n in ("rewards", "weights")}), own.clone()
    completion = batch.completion.clone()
    completion[row] *= -3
    other.rewards[row] = case["reward"] * case["replaced"]
    other.weights[row] *= 10
    other_own[row] = -case["scalar"] * case["replaced"]
    made = []
    for each, scalars in ((batch, own), (replace(other, completion=completion), other_own)):
        fresh = poise.OnlineBaseline(preset)
        fresh.load_state_dict(state)
        made.append(baselines_of(fresh, each, scalars))
    spread = torch.cat([batch.rewards, other.rewards])
    counted = any(step.metrics["poise/inexact_share"] > 0 for step in made)
    return float((made[0].baselines - made[1].baselines)[row].abs() / (spread.max() - spread.min())), counted


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {
            "reward": st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6, 1e9]),
            "offset": st.sampled_from([0.0, 0.0, -1.0, 5.0]),
            "scalar": st.sampled_from([0.0, 1e-6, 1.0, 1e4, 1.7e9, 1e12]),
            "penalty": st.sampled_from([1e-8, 1e-6, 1e-3, 3.0]),
            "group_size": st.integers(1, 16),
            "prompts": st.integers(2, 12),
            "duplicates": st.booleans(),
            "earlier": st.integers(0, 2),
            "row": st.integers(0, 191),
            "replaced": st.sampled_from([0.0, 1.0, 3.0, -1.0]),
        }
    )
)
def test_the_own_baseline_moves_by_less_than_a_billionth_of_the_rewards_range(case):
    move, counted = move_of(case)
    assert move < 1e-9 or counted


@pytest.mark.parametrize(("reward", "weight"), [(1e300, 1e20), (1e160, 1.0), (-1e300, 1e-300)])
def test_numbers_beyond_leave_a_state_that_gives_finite_baselines(reward, weight):
    baseline = poise.OnlineBaseline(poise.preset("poise", **CHANGES | {"scalars": ()}, penalties=(3.0,)))
    for seed, scale in enumerate([1.0, reward, 1.0, 1.0]):
        each = drawn_rollouts([2] * 8, seed=seed)
        loud = replace(each, rewards=each.rewards * scale, weights=each.weights * (weight if scale != 1 else 1))
        step = loud.given_to(baseline)
        assert step.baselines.isfinite().all()
    state = [each for each in baseline.state_dict().values() if torch.is_tensor(each) and each.is_floating_point()]
    assert all(bool(each.isfinite().all()) for each in state)
