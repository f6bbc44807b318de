"""The published method against scikit-learn, step by step."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import poise
from oracles import ScikitLearnProbe, drawn_rollouts, sibling_mean, together
from poise.batch import prompt_groups
from poise.presets import PRESETS


def steps(num, *, sizes=(2,) * 24, width=20):
    """Steps of two domains of unequal size; the states have a few strong directions."""
    return [
        together(
            drawn_rollouts(sizes, seed=2 * k, width=width, domain="math"),
            drawn_rollouts(sizes[: len(sizes) // 2], seed=2 * k + 1, width=width, domain="code"),
        )
        for k in range(num)
    ]


def assert_follows(preset, oracle, rollouts, *, atol=1e-6):
    baseline = poise.OnlineBaseline(preset)
    for each in rollouts:
        expected = oracle.step(each.prompt, each.completion, each.entropies, each.rewards, each.prompts, each.domains)
        assert_close(each.given_to(baseline).baselines, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("sizes", [(2,) * 24, (2, 3, 4) * 8], ids=["pairs", "unequal"])
def test_paper_equals_scikit_learn_over_steps_with_a_window_that_overflows(sizes):
    rollouts = steps(5, sizes=sizes)
    assert len(rollouts[0].rewards) < 130 < 2 * len(rollouts[0].rewards)
    assert_follows(poise.preset("paper", window_rows=130), ScikitLearnProbe(penalty=0.01, rows=130), rollouts)


RELEASED = {
    "logistic": ({"probe": "logistic", "penalty": 3.0}, {"members": [("logistic", 3.0)]}),
    "network": ({"probe": "mlp", "penalty": 1.0}, {"members": [("mlp", 1.0)]}),
    "mean": (
        {"members": [["ridge", 30.0], ["logistic", 3.0], ["mlp", 1.0], ["mlp", 1.0]]},
        {"members": [("ridge", 30.0), ("logistic", 3.0), ("mlp", 1.0), ("mlp", 1.0)]},
    ),
    "stacked": (
        {"members": [["ridge", 0.1], ["ridge", 300.0], ["logistic", 30.0]], "combination": "stacked"},
        {"members": [("ridge", 0.1), ("ridge", 300.0), ("logistic", 30.0)], "stacking_penalty": 0.01},
    ),
    "group mean": ({"target": "group"}, {"penalty": 100.0, "target": "group"}),
    "own reward": ({"target": "own"}, {"penalty": 100.0, "target": "own"}),
}
"""Options of the release: fields of the preset, and the oracle's words for them."""


@pytest.mark.parametrize("option", RELEASED)
def test_every_option_of_the_release_equals_scikit_learn_over_steps_and_domains(option):
    changes, words = RELEASED[option]
    sizes = {"prompt_components": 5, "completion_components": 8, "window_rows": 110, "domain_window_rows": {"code": 60}}
    preset = poise.preset("released-qwen3-4b", rloo_steps=1, **sizes, **changes)
    oracle = ScikitLearnProbe(components=(5, 8), rows=110, domain_rows={"code": 60}, own_domain=True, **words)
    assert_follows(preset, oracle, steps(4))


def test_scalars_by_name_enter_the_published_probe_too():
    names = ["own:luck", "answer_mean_entropy"]
    oracle, baseline = ScikitLearnProbe(penalty=0.01), poise.OnlineBaseline(poise.preset("paper", scalars=names))
    for seed, each in enumerate(steps(3)):
        luck = torch.rand(len(each.rewards), generator=torch.Generator().manual_seed(seed))
        columns = torch.stack([luck, each.entropies[:, 2]], dim=1)
        expected = oracle.step(each.prompt, each.completion, columns, each.rewards, each.prompts, each.domains)
        features = replace(each.features, scalars={"own:luck": luck})
        step = baseline.step(features, each.rewards, prompts=each.prompts, domains=each.domains)
        assert_close(step.baselines, expected, atol=1e-6, rtol=0)


def test_targets_with_the_own_reward_in_them_make_poorer_values():
    # The states of a rollout tell its own outcome, which is of no use to its sibling.
    def error(target):
        baseline = poise.OnlineBaseline(poise.preset("paper", target=target, penalty=10.0))
        for seed in range(5):
            rollouts = drawn_rollouts((2,) * 200, seed=seed)
            baselines = rollouts.given_to(baseline).baselines
        return float((baselines - rollouts.values).square().mean())

    assert error("own") > error("group") > 1.2 * error("siblings")


def test_the_biased_control_is_the_rollouts_own_value():
    control = poise.OnlineBaseline(poise.preset("same-rollout"))
    paper = poise.OnlineBaseline(poise.preset("paper", target="own"))
    first, second = steps(2)
    assert torch.equal(first.given_to(control).baselines, first.given_to(paper).baselines)
    own, swapped = second.given_to(control), second.given_to(paper)
    assert torch.equal(own.baselines, own.values)
    assert torch.equal(own.values, swapped.values)
    assert (own.baselines - swapped.baselines).abs().max() > 0.1


def test_a_first_step_larger_than_the_window_is_cut():
    assert_follows(poise.preset("paper", window_rows=50), ScikitLearnProbe(penalty=0.01, rows=50), steps(3))


@pytest.mark.parametrize("name", ["released-qwen3-4b", "released-olmo3-7b"])
def test_released_presets_equal_scikit_learn_with_windows_for_each_domain(name):
    recipe = PRESETS[name].recipe
    changes = {"window_rows": 110, "domain_window_rows": {"code": 60}, "rloo_steps": 2}
    oracle = ScikitLearnProbe(
        penalty=recipe.penalty,
        components=(5, 8),
        rows=110,
        domain_rows={"code": 60},
        own_domain=True,
        rloo_steps=2,
    )
    preset = poise.preset(name, prompt_components=5, completion_components=8, **changes)
    assert_follows(preset, oracle, steps(5))


@pytest.mark.parametrize(
    ("name", "penalty", "components"),
    [("released-qwen3-4b", 100.0, (32, 64)), ("released-olmo3-7b", 1000.0, (16, 128))],
)
def test_released_presets_have_the_published_settings(name, penalty, components):
    recipe = PRESETS[name].recipe
    assert (recipe.penalty, recipe.prompt_components, recipe.completion_components) == (penalty, *components)
    assert (recipe.own_domain, recipe.rloo_steps, recipe.window_rows) == (True, 16, 4096)
    assert dict(recipe.domain_window_rows) == {"code": 3072, "other": 3072}


def test_the_paper_preset_has_the_published_settings():
    recipe = PRESETS["paper"].recipe
    assert (recipe.penalty, recipe.prompt_components, recipe.completion_components) == (0.01, None, None)
    assert (recipe.own_domain, recipe.rloo_steps) == (False, 1)


def test_the_first_steps_are_rloo():
    baseline = poise.OnlineBaseline(poise.preset("released-qwen3-4b", rloo_steps=3))
    for each in steps(4)[:3]:
        expected = torch.tensor(sibling_mean(each.rewards.tolist(), each.prompts), dtype=torch.float64)
        step = each.given_to(baseline)
        assert_close(step.baselines, expected)
        assert step.values.isnan().all()
    last = steps(4)[3]
    rloo = torch.tensor(sibling_mean(last.rewards.tolist(), last.prompts), dtype=torch.float64)
    assert (last.given_to(baseline).baselines - rloo).abs().max() > 0.1


def test_two_siblings_swap_their_values():
    baseline = poise.OnlineBaseline(poise.preset("paper"))
    first, second = steps(2)
    first.given_to(baseline)
    step = second.given_to(baseline)
    assert_close(step.baselines.reshape(-1, 2), step.values.reshape(-1, 2).flip(1))
    assert step.values.std() > 0.05


def test_values_are_clipped_to_the_range_of_rewards_zero_to_one():
    baseline = poise.OnlineBaseline(poise.preset("paper", penalty=1e-6))
    first, second = steps(2)
    first.given_to(baseline)
    values = second.given_to(baseline, completion=30 * second.completion).values
    assert values.min() == 0
    assert values.max() == 1


def test_a_step_does_not_learn_from_its_own_rewards():
    first, second = steps(2)
    answers = []
    for rewards in (second.rewards, 1 - second.rewards):
        baseline = poise.OnlineBaseline(poise.preset("paper"))
        first.given_to(baseline)
        answers.append(second.given_to(baseline, rewards=rewards).baselines)
    assert torch.equal(*answers)


def test_a_domain_without_a_probe_starts_with_rloo():
    baseline = poise.OnlineBaseline(poise.preset("released-qwen3-4b", rloo_steps=1))
    steps(1)[0].given_to(baseline)
    fresh = drawn_rollouts((2,) * 10, seed=50, width=20, domain="new")
    expected = torch.tensor(sibling_mean(fresh.rewards.tolist(), fresh.prompts), dtype=torch.float64)
    assert_close(fresh.given_to(baseline).baselines, expected)


def test_a_probe_that_cannot_be_solved_gives_way_to_rloo_till_one_can_be_and_is_counted(monkeypatch):
    first, second, third, fourth = steps(4)
    baseline = poise.OnlineBaseline(poise.preset("paper"))
    first.given_to(baseline)

    def unsolvable(*positional, **named):
        raise torch.linalg.LinAlgError("it does not converge")

    with monkeypatch.context() as patch:
        patch.setattr("poise.paper.published.fitted_ensemble", unsolvable)
        by_the_old_probe = second.given_to(baseline)
    without_a_probe = third.given_to(baseline)
    by_a_new_probe = fourth.given_to(baseline)
    inexact = [step.metrics["poise/inexact_share"] for step in (by_the_old_probe, without_a_probe, by_a_new_probe)]
    assert inexact == [0, 1, 0]
    expected = torch.tensor(sibling_mean(third.rewards.tolist(), third.prompts), dtype=torch.float64)
    assert_close(without_a_probe.baselines, expected)
    assert without_a_probe.values.isnan().all()
    assert by_a_new_probe.values.isfinite().all()


def test_ungradable_rows_enter_neither_window_nor_sibling_means():
    first, second = steps(2)
    rewards = first.rewards.clone()
    rewards[[0, 7, 8]] = torch.nan
    whole, without = (poise.OnlineBaseline(poise.preset("paper")) for _ in range(2))
    first.given_to(whole, rewards=rewards)
    kept = [k for k in range(len(rewards)) if k not in (0, 7, 8)]
    groups = prompt_groups([first.prompts[k] for k in kept])
    paired = [k for k, g in zip(kept, groups.tolist(), strict=True) if (groups == g).sum() > 1]
    replace(first[paired]).given_to(without)
    assert_close(second.given_to(whole).baselines, second.given_to(without).baselines, atol=1e-9, rtol=0)
