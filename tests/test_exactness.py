"""A baseline must not know its own rollout: replace everything of a rollout, and its baseline stays where it is."""

from dataclasses import replace

import pytest
import torch

import poise
from poise.features import Features
from poise.presets import PRESETS

GROUP_SIZES = {
    "two": [2] * 12,
    "three": [3] * 8,
    "four": [4] * 6,
    "unequal": [2, 3, 4, 2, 5, 2, 3, 2],
}
WIDTH = 24


class Rollouts:
    """A batch whose parts can be replaced; wide hidden states, so that the projection takes part."""

    def __init__(self, group_sizes, seed, *, duplicates=False):
        generator = torch.Generator().manual_seed(seed)
        rows = sum(group_sizes)
        prompts = [p for p, size in enumerate(group_sizes) for _ in range(size)]
        if duplicates:  # the last prompt is the first one again, further down in the batch
            prompts = [0 if p == len(group_sizes) - 1 else p for p in prompts]
        self.prompts = prompts
        self.domains = ["odd" if p % 2 else "even" for p in prompts]
        skill = torch.rand(len(group_sizes), generator=generator, dtype=torch.float64)
        self.rewards = (torch.rand(rows, generator=generator, dtype=torch.float64) < skill[prompts]).to(torch.float64)
        signal = 4 * skill[prompts][:, None].to(torch.float32)
        self.prompt = torch.randn(len(group_sizes), WIDTH, generator=generator)[prompts] + signal
        self.completion = torch.randn(rows, WIDTH, generator=generator) + signal
        self.entropies = torch.rand(rows, 3, generator=generator) * 3
        self.weights = torch.rand(rows, generator=generator, dtype=torch.float64) * 20 + 1

    def step(self, baseline):
        features = Features(self.prompt, self.completion, self.entropies, torch.zeros(len(self.rewards), 4).bool())
        return baseline.step(
            features, self.rewards, prompts=self.prompts, domains=self.domains, weights=self.weights
        ).baselines

    def with_rollout_replaced(self, row, variant):
        other = object.__new__(Rollouts)
        other.__dict__ = {k: v.clone() if isinstance(v, torch.Tensor) else list(v) for k, v in self.__dict__.items()}
        reward, weight, scale = [(1.0, 10.0, 1.0), (0.0, 0.1, 100.0), (0.37, 10.0, 0.01), (torch.nan, 0.1, 5.0)][
            variant
        ]
        generator = torch.Generator().manual_seed(row)
        other.rewards[row] = reward
        other.weights[row] *= weight
        other.completion[row] = scale * torch.randn(WIDTH, generator=generator)
        other.prompt[row] = scale * torch.randn(WIDTH, generator=generator)
        other.entropies[row] = torch.tensor([0.0, 11.0, 5.0])
        return other


def small(name, **changes):
    recipe = PRESETS[name].recipe
    if hasattr(recipe, "projection_size"):
        changes = {"projection_size": 8, "components": (2, 6)} | changes
    if hasattr(recipe, "rloo_steps") and recipe.prompt_components:
        changes = {"prompt_components": 4, "completion_components": 6, "rloo_steps": 2} | changes
    return poise.preset(name, **changes)


def largest_move(preset, group_sizes, *, earlier_steps, duplicates=False):
    """How far the baseline of a rollout moves at most when that rollout is replaced."""
    batch = Rollouts(group_sizes, seed=100, duplicates=duplicates)
    baseline = poise.OnlineBaseline(preset)
    for seed in range(earlier_steps):
        Rollouts(group_sizes, seed=seed, duplicates=duplicates).step(baseline)
    state = baseline.state_dict()

    def baselines(rollouts):
        fresh = poise.OnlineBaseline(preset)
        fresh.load_state_dict(state)
        return rollouts.step(fresh)

    before = baselines(batch)
    rows = range(0, len(batch.rewards), 5)
    moves = [
        (baselines(batch.with_rollout_replaced(row, variant))[row] - before[row]).abs()
        for row in rows
        for variant in range(4)
    ]
    return float(torch.stack(moves).max())


@pytest.mark.parametrize("earlier_steps", [0, 3], ids=["first step", "with a window"])
@pytest.mark.parametrize("sizes", GROUP_SIZES)
@pytest.mark.parametrize("name", ["poise", "poise-value"])
def test_the_baseline_of_a_replaced_rollout_stays(name, sizes, earlier_steps):
    assert largest_move(small(name), GROUP_SIZES[sizes], earlier_steps=earlier_steps) < 1e-9


@pytest.mark.parametrize("name", ["poise", "poise-value"])
@pytest.mark.parametrize("size", [8, 200], ids=["primal", "dual"])
def test_it_stays_in_primal_and_dual_form_and_with_duplicate_prompts(name, size):
    changes = {"projection_size": size, "components": (6, 100)}
    assert largest_move(small(name, **changes), GROUP_SIZES["unequal"], earlier_steps=2, duplicates=True) < 1e-9


@pytest.mark.parametrize("earlier_steps", [0, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_keeps_its_promise(name, earlier_steps):
    move = largest_move(small(name), GROUP_SIZES["two"], earlier_steps=earlier_steps)
    assert (move < 1e-9) == PRESETS[name].exact, move


def test_control_a_rollouts_own_features_are_noticed(monkeypatch):
    # The rollout's own features in the place of its siblings': the move must be plain to see.
    import poise.evidence
    from poise import learned

    def own_features(prompt, completion, entropies, *args, **kwargs):
        rows = poise.evidence.evidence_rows(prompt, completion, entropies, *args, **kwargs)
        return replace(rows, sibling_states=completion)

    monkeypatch.setattr(learned, "evidence_rows", own_features)
    preset = small("poise-value", evidence=("sibling_states",), penalties=(3.0,), components=(6,))
    assert largest_move(preset, GROUP_SIZES["two"], earlier_steps=3) > 1e-3


def test_control_mean_normalised_weights_are_noticed(monkeypatch):
    # Dividing weights by a batch mean that contains the own weight is a leak, a small one, and it is noticed.
    original = Rollouts.step

    def normalised(self, baseline):
        weights, self.weights = self.weights, self.weights / self.weights.mean()
        try:
            return original(self, baseline)
        finally:
            self.weights = weights

    monkeypatch.setattr(Rollouts, "step", normalised)
    assert largest_move(small("poise"), GROUP_SIZES["two"], earlier_steps=3) > 1e-6


def test_a_lone_rollout_leans_on_its_prompt_alone():
    # Group size one: what may not be used is all that was sampled; the prompt's own states may.
    preset = small("poise")
    batch = Rollouts([1] * 16, seed=3)
    earlier = [Rollouts([1] * 16, seed=s) for s in range(2)]

    def baselines(rollouts):
        baseline = poise.OnlineBaseline(preset)
        for step in earlier:
            step.step(baseline)
        return rollouts.step(baseline)

    before = baselines(batch)
    for row in range(16):
        other = batch.with_rollout_replaced(row, 1)
        other.prompt = batch.prompt
        assert abs(baselines(other)[row] - before[row]) < 1e-9
