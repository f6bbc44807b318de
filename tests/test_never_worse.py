"""The never-worse choice is driven through what can go wrong in a run, against the better of the simple baselines.

Error is the mean squared distance to the true V(x) of the world, over some steps after the change. The simple baselines
are the batch's leave-out mean and the sibling's reward. Where the change makes one of those exact at once (a verifier
that calls everything right), the window needs some steps to forget what it knew.
"""

from dataclasses import replace

import pytest
import torch

import poise
from oracles import drawn_rollouts, sibling_mean, together

PROMPTS = 48
SLACK = 1.25
"""What a choice among many candidates may cost while it learns of a change."""


def steps_of_world(first, then, *, before=6, after=6):
    """Rollouts of `before` steps of one world and `after` of another; each world is a function of a seed."""
    return [first(seed) for seed in range(before)], [then(100 + seed) for seed in range(after)]


def known(seed, domain="all"):
    return drawn_rollouts([2] * PROMPTS, seed=seed, domain=domain)


def noise(seed, domain="all"):
    """The features have nothing to do with V any more."""
    return drawn_rollouts([2] * PROMPTS, seed=seed, knowable=False, domain=domain)


def turned(seed):
    """The policy has jumped: the same features now mean the opposite."""
    rollouts = known(seed)
    return replace(rollouts, rewards=1 - rollouts.rewards, values=1 - rollouts.values)


def errors(before, after, *, name="poise-value", judged=0):
    """Mean squared error to V after the change: of the preset, the leave-out mean and the sibling's reward.

    Steps from `judged` on after the change count.
    """
    baseline = poise.OnlineBaseline(poise.preset(name))
    for rollouts in before:
        rollouts.given_to(baseline)
    sums = torch.zeros(3, dtype=torch.float64)
    for number, rollouts in enumerate(after):
        step = rollouts.given_to(baseline)
        assert step.baselines.isfinite().all()
        if number < judged:
            continue
        gradable = ~rollouts.rewards.isnan()
        rewards = rollouts.rewards.nan_to_num(0)
        total, count = rewards[gradable].sum(), gradable.sum()
        simple = [
            torch.tensor([float((total - r) / (count - 1)) for r in rewards]),
            torch.tensor(sibling_mean(rewards.tolist(), rollouts.prompts, gradable.tolist())),
        ]
        for k, column in enumerate([step.baselines, *simple]):
            sums[k] += float(((column - rollouts.values)[gradable] ** 2).mean())
    return (sums / (len(after) - judged)).tolist()


@pytest.mark.parametrize(
    ("first", "then"),
    [(known, noise), (noise, noise), (known, turned), (noise, known)],
    ids=["noise", "flat", "jump", "gain"],
)
def test_after_a_change_the_choice_costs_little_more_than_the_better_simple_baseline(first, then):
    own, mean, sibling = errors(*steps_of_world(first, then))
    assert own < SLACK * min(mean, sibling)


def test_what_is_known_is_used_where_nothing_changes():
    # The control: the guard is not simply the simple baseline.
    own, mean, sibling = errors(*steps_of_world(known, known))
    assert own < 0.5 * min(mean, sibling)


def test_the_published_method_has_no_such_guard():
    # The control: the same jump, and a method that does not choose pays for it.
    own, mean, sibling = errors(*steps_of_world(known, turned, after=2), name="paper")
    assert own > SLACK * min(mean, sibling)


def test_a_domain_may_appear_and_vanish():
    def one(seed):
        return known(seed, domain="old")

    def both(seed):
        return together(one(seed), noise(seed + 1000, domain="new"))

    own, mean, sibling = errors(*steps_of_world(one, both))
    assert own < SLACK * min(mean, sibling)
    own, mean, sibling = errors(*steps_of_world(both, one))
    assert own < SLACK * min(mean, sibling)


@pytest.mark.parametrize("lie", ["always right", "always wrong", "a coin", "ungradable half"])
def test_a_verifier_that_starts_lying_is_followed_within_a_dozen_steps(lie):
    def lied(seed):
        rollouts = known(seed)
        coin = torch.rand(len(rollouts.rewards), generator=torch.Generator().manual_seed(seed)).double()
        rewards = {
            "always right": torch.ones_like(coin),
            "always wrong": torch.zeros_like(coin),
            "a coin": (coin < 0.5).double(),
            "ungradable half": torch.where(coin < 0.5, torch.nan, rollouts.rewards),
        }[lie]
        value = {"always right": 1.0, "always wrong": 0.0, "a coin": 0.5}.get(lie)
        values = rollouts.values if value is None else torch.full_like(rollouts.values, value)
        return replace(rollouts, rewards=rewards, values=values)

    before, after = steps_of_world(known, lied, after=12)
    own, mean, sibling = errors(before, after, judged=8)
    assert own < SLACK * min(mean, sibling) + 0.02
    # Nor is it ever as bad as no baseline at all, or the one that was right before.
    own, _, _ = errors(before, after)
    assert own < 0.1
