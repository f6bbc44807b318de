"""Held-out prompts are judged by fits that have not seen them, and what is studied is the library's own baseline."""

import copy
import dataclasses

import pytest
import torch
from study_world import LAYERS, made_up_rollouts

import poise
from oracles import ScikitLearnProbe
from poise.features.rollout_features import MEAN_ENTROPIES
from poise.features.scalars import SCALARS
from poise.lab.study.estimators import View, features, online_estimates, ready_after_one_step
from poise.lab.study.settings import PAIR

VIEW = View(layer=2, pool_tokens=10)
NAMES = ["poise-value", "poise", "prompt-only", "shrunk-rloo", "paper", "released-qwen3-4b", "rloo"]


@pytest.fixture(scope="module")
def world():
    training, _ = made_up_rollouts(80, draws=4, featured=2, seed=0)
    held_out, values = made_up_rollouts(20, draws=7, featured=3, seed=1, name="held-out ")
    return training, held_out, values


def changed(held_out, prompt, *, reward=None, states=None):
    """The same rollouts with something else at one prompt's first draw."""
    other = copy.deepcopy(held_out)
    if reward is not None:
        other.rewards[prompt, 0] = reward
    if states is not None:
        for completion_states in other.completion_states.values():
            completion_states[prompt, 0] = states
    return other


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_depends_on_its_own_evidence_alone(world, name):
    training, held_out, _ = world
    preset = poise.preset(name)
    before = online_estimates(preset, training, held_out, VIEW).values
    elsewhere = changed(held_out, 0, reward=1 - float(held_out.rewards[0, 0]), states=9.0)
    after = online_estimates(preset, training, elsewhere, VIEW).values
    assert (before - after).abs().flatten()[1:].max() < 1e-9
    if name != "prompt-only":  # the control: what was changed does matter there
        assert abs(float(before[0, 0] - after[0, 0])) > 1e-3


@pytest.mark.parametrize("name", ["poise-value", "prompt-only"])
def test_the_short_way_gives_what_one_step_for_each_prompt_would(world, name):
    training, held_out, _ = world
    fast = online_estimates(poise.preset(name), training, held_out, VIEW).values
    baseline = poise.OnlineBaseline(poise.preset(name))
    pairs = features(training, VIEW, range(PAIR))
    rewards = training.rewards[:, :PAIR].flatten()
    prompts = [prompt for prompt in training.prompts for _ in range(PAIR)]
    domains = [domain for domain in training.domains for _ in range(PAIR)]
    baseline.step(pairs, rewards, prompts=prompts, domains=domains)
    state = baseline.state_dict()
    for prompt in (0, 7):
        for draw in range(3):
            alone = poise.OnlineBaseline(poise.preset(name))
            alone.load_state_dict(copy.deepcopy(state))
            two = features(held_out[[prompt]], VIEW, [draw, draw])
            step = alone.step(
                two,
                [float(held_out.rewards[prompt, draw]), float("nan")],
                prompts=[0, 0],
                domains=[held_out.domains[prompt]] * 2,
            )
            assert float(step.baselines[1]) == pytest.approx(float(fast[prompt, draw]), abs=1e-9)


def test_rloo_says_the_reward_of_its_evidence(world):
    training, held_out, _ = world
    assert torch.equal(online_estimates(poise.preset("rloo"), training, held_out, VIEW).values, held_out.rewards[:, :3])


def test_the_published_probe_is_the_one_of_scikit_learn(world):
    training, held_out, _ = world
    estimates = online_estimates(poise.preset("paper"), training, held_out, VIEW).values
    probe = ScikitLearnProbe(penalty=0.01)
    pairs = features(training, VIEW, range(PAIR))
    prompts = [prompt for prompt in training.prompts for _ in range(PAIR)]
    parts = (pairs.prompt, pairs.completion, pairs.entropies)
    probe.step(*parts, training.rewards[:, :PAIR].flatten(), prompts, ["a"] * len(prompts))
    evidence = features(held_out, VIEW, [0, 1])
    # Between siblings values are swapped: the baseline of the second is the value of the first.
    swapped = probe.step(
        evidence.prompt,
        evidence.completion,
        evidence.entropies,
        held_out.rewards[:, :2].flatten(),
        [prompt for prompt in held_out.prompts for _ in range(2)],
        ["a"] * 40,
    )
    assert torch.allclose(estimates[:, 0], torch.as_tensor(swapped).reshape(20, 2)[:, 1], atol=1e-6)


def test_states_that_tell_the_value_make_the_estimate_better(world):
    training, held_out, values = world

    def error(layer):
        estimates = online_estimates(poise.preset("paper"), training, held_out, dataclasses.replace(VIEW, layer=layer))
        return float(((estimates.values - values[:, None]) ** 2).mean())

    assert error(2) < 0.5 * error(0)


def test_features_are_those_of_the_view(world):
    _, held_out, _ = world
    one = features(held_out, View(layer=0, pool_tokens=1), [2, 0])
    assert torch.equal(one.completion[4], held_out.completion_states[1][2, 2, LAYERS.index(0)])
    assert torch.equal(one.prompt[5], held_out.prompt_states[1][2, LAYERS.index(0)])
    places = [list(SCALARS).index(name) for name in MEAN_ENTROPIES]
    assert torch.equal(one.entropies[4], held_out.scalars[2, 2, places])
    assert features(held_out, dataclasses.replace(VIEW, prompt_states=False), [0]).prompt.shape == (20, 0)


def test_a_history_is_used_where_there_is_one():
    training, _ = made_up_rollouts(150, draws=22, featured=2, seed=0)
    held_out, values = made_up_rollouts(60, draws=24, featured=1, seed=1, name="held-out ")
    preset = poise.preset("poise-value", evidence=("constant", "history"))

    def error(**options):
        estimates = online_estimates(preset, training, held_out, VIEW, **options)
        return float(((estimates.values[:, 0] - values) ** 2).mean())

    # Twenty rewards of an earlier step tell nearly everything, and the evidence's own reward nothing.
    assert error(history=True) < 0.2 * error(history=False)


def test_fold_errors_are_of_fits_without_the_prompt(world):
    training, held_out, _ = world
    preset = poise.preset("poise-value", evidence=("constant", "domain", "sibling_reward"))
    before = online_estimates(preset, training, held_out, VIEW).fold_errors
    assert before.shape == (80,)
    other = copy.deepcopy(training)
    other.rewards[0, :PAIR] = torch.tensor([1.0, 1.0])
    third = copy.deepcopy(training)
    third.rewards[0, :PAIR] = torch.tensor([0.0, 1.0])
    # The prompt's first baseline rests on its sibling's reward, 1 in both, and not on its own.
    errors = [online_estimates(preset, each, held_out, VIEW).fold_errors[0] for each in (other, third)]
    baselines = online_baselines(preset, other), online_baselines(preset, third)
    assert float(baselines[0][0]) == pytest.approx(float(baselines[1][0]), abs=1e-9)
    expected = [
        ((rewards - b[:2]) ** 2).mean()
        for rewards, b in zip(([1.0, 1.0], [0.0, 1.0]), baselines, strict=True)
        for rewards in [torch.tensor(rewards)]
    ]
    assert torch.allclose(torch.stack(errors), torch.stack(expected), atol=1e-9)


def online_baselines(preset, training):
    """Baselines of the training pairs, by the library itself."""
    return (
        poise.OnlineBaseline(preset)
        .step(
            None,
            training.rewards[:, :PAIR].flatten(),
            prompts=[prompt for prompt in training.prompts for _ in range(PAIR)],
            domains=[domain for domain in training.domains for _ in range(PAIR)],
        )
        .baselines
    )


def test_a_preset_is_made_ready_without_changing_what_it_is():
    assert ready_after_one_step(poise.preset("rloo"), num_rows=9) == poise.preset("rloo")
    ready = ready_after_one_step(poise.preset("released-qwen3-4b"), num_rows=9000)
    assert ready == poise.preset("released-qwen3-4b", rloo_steps=1, window_rows=9000)
    assert ready_after_one_step(poise.preset("poise"), num_rows=9) == poise.preset("poise")
