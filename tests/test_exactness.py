"""A baseline must not know its own rollout: replace everything of a rollout, and its baseline stays where it is.

Not only the baseline in charge is watched: every candidate's prediction is, weighted and unweighted, so that a leak
shows whatever the choice.
"""

from dataclasses import replace

import pytest
import torch

import poise
from poise.features.rollout_features import Features
from poise.presets import PRESETS
from poise.probe import mixture
from poise.probe.learned import LeaveOnePromptOutRecipe
from poise.probe.leave_one_out import LeaveOnePromptOut
from poise.probe.mixture import RiskRecord

GROUP_SIZES = {
    "two": [2] * 12,
    "three": [3] * 8,
    "four": [4] * 6,
    "unequal": [2, 3, 4, 2, 5, 2, 3, 2],
}
WIDTH = 24
VARIANTS = [(1.0, 10.0, 1.0), (0.0, 0.1, 100.0), (0.37, 10.0, 0.01), (torch.nan, 0.1, 5.0)]
"""What a rollout is replaced by: its reward, the factor on its weight, and the size of its states."""


@pytest.fixture(autouse=True)
def small_domains_are_fitted_alone(monkeypatch):
    monkeypatch.setattr(mixture, "_FEWEST_DOMAIN_ROWS", 8)


class Rollouts:
    """A batch whose parts can be replaced; wide hidden states, so that the projection takes part."""

    def __init__(self, group_sizes, seed, *, duplicates=False, domains=2):
        generator = torch.Generator().manual_seed(seed)
        rows = sum(group_sizes)
        prompts = [p for p, size in enumerate(group_sizes) for _ in range(size)]
        if duplicates:  # the last prompt is the first one again, further down in the batch
            prompts = [0 if p == len(group_sizes) - 1 else p for p in prompts]
        self.prompts = prompts
        self.domains = [f"domain {p % domains}" for p in prompts]
        skill = torch.rand(len(group_sizes), generator=generator, dtype=torch.float64)
        self.rewards = (torch.rand(rows, generator=generator, dtype=torch.float64) < skill[prompts]).to(torch.float64)
        signal = 4 * skill[prompts][:, None].to(torch.float32)
        self.prompt = torch.randn(len(group_sizes), WIDTH, generator=generator)[prompts] + signal
        self.completion = torch.randn(rows, WIDTH, generator=generator) + signal
        self.entropies = torch.rand(rows, 3, generator=generator) * 3
        self.weights = torch.rand(rows, generator=generator, dtype=torch.float64) * 20 + 1
        self.luck = torch.rand(rows, generator=generator)

    def step(self, baseline):
        missing = torch.zeros(len(self.rewards), 4).bool()
        features = Features(self.prompt, self.completion, self.entropies, missing, scalars={"own:luck": self.luck})
        return baseline.step(
            features, self.rewards, prompts=self.prompts, domains=self.domains, weights=self.weights
        ).baselines

    def with_rollout_replaced(self, row, variant):
        other = object.__new__(Rollouts)
        other.__dict__ = {k: v.clone() if isinstance(v, torch.Tensor) else list(v) for k, v in self.__dict__.items()}
        reward, weight, scale = VARIANTS[variant]
        generator = torch.Generator().manual_seed(row)
        other.rewards[row] = reward
        other.weights[row] *= weight
        other.completion[row] = scale * torch.randn(WIDTH, generator=generator)
        if self.prompts.count(self.prompts[row]) > 1:  # a lone rollout's prompt states are read before it was sampled
            other.prompt[row] = scale * torch.randn(WIDTH, generator=generator)
        other.entropies[row] = torch.tensor([0.0, 11.0, 5.0])
        other.luck[row] = 100 * scale
        return other


def small(name, **changes):
    recipe = PRESETS[name].recipe
    if isinstance(recipe, LeaveOnePromptOutRecipe):
        changes = {"projection_size": 8, "components": (6,), "penalties": (3.0,)} | changes
    if hasattr(recipe, "rloo_steps") and recipe.prompt_components:
        changes = {"prompt_components": 4, "completion_components": 6, "rloo_steps": 2} | changes
    return poise.preset(name, **changes)


def answers(baseline, rollouts):
    """The step's baselines, and below them what every candidate, of baselines and of values, predicts."""
    seen, observe = [], RiskRecord.observe

    def noting(record, predictions, *args, **kwargs):
        seen.append(predictions)
        return observe(record, predictions, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RiskRecord, "observe", noting)
        baselines = rollouts.step(baseline)
    return torch.cat([baselines[None], *(each for each in seen if each.shape[1] == len(baselines))])


def largest_move(preset, group_sizes, *, earlier_steps, **how):
    """How far the baseline of a rollout, or what any candidate says of it, moves at most when it is replaced."""
    batch = Rollouts(group_sizes, seed=100, **how)
    baseline = poise.OnlineBaseline(preset)
    for seed in range(earlier_steps):
        Rollouts(group_sizes, seed=seed, **how).step(baseline)
    state = baseline.state_dict()

    def restored():
        fresh = poise.OnlineBaseline(preset)
        fresh.load_state_dict(state)
        return fresh

    before = answers(restored(), batch)
    rows = len(batch.rewards)
    replacements = [(0, 0), (rows // 3, 1), (rows // 2, 2), (rows // 2, 3), (rows - 1, 1), (rows - 1, 0)]
    moves = [
        (answers(restored(), batch.with_rollout_replaced(row, variant)) - before)[:, row].abs().max()
        for row, variant in replacements
    ]
    return float(torch.stack(moves).max())


@pytest.mark.parametrize("earlier_steps", [0, 2], ids=["first step", "with a window"])
@pytest.mark.parametrize(
    ("sizes", "domains"), [("two", 2), ("three", 1), ("four", 1), ("unequal", 2)], ids=list(GROUP_SIZES)
)
def test_no_candidate_of_poise_knows_the_rollout_that_it_is_for(sizes, domains, earlier_steps):
    move = largest_move(small("poise"), GROUP_SIZES[sizes], earlier_steps=earlier_steps, domains=domains)
    assert move < 1e-9


@pytest.mark.parametrize("earlier_steps", [0, 2], ids=["first step", "with a window"])
@pytest.mark.parametrize("form", ["primal", "dual"])
def test_so_it_is_in_primal_and_dual_form_and_with_duplicate_prompts(monkeypatch, form, earlier_steps):
    shapes, original = [], LeaveOnePromptOut.baselines

    def noting(self, penalties, *, columns=None):
        shapes.append((len(self.rewards), len(columns)))
        return original(self, penalties, columns=columns)

    monkeypatch.setattr(LeaveOnePromptOut, "baselines", noting)
    wide = {"projection_size": 200, "components": (100,), "window_rows": 20}
    preset = small("poise", **(wide if form == "dual" else {"components": (2,)}))
    sizes = [2, 2, 3, 2, 2] if form == "dual" else GROUP_SIZES["unequal"]
    assert largest_move(preset, sizes, earlier_steps=earlier_steps, duplicates=True, domains=1) < 1e-9
    if form == "dual":
        assert any(rows == sum(sizes) + 20 * bool(earlier_steps) and rows < columns for rows, columns in shapes)


@pytest.mark.parametrize("earlier_steps", [0, 2])
@pytest.mark.parametrize("name", ["poise", "poise-single"])
def test_so_it_is_with_one_rollout_a_prompt(name, earlier_steps):
    assert largest_move(small(name), [1] * 24, earlier_steps=earlier_steps, domains=2) < 1e-9


@pytest.mark.parametrize("earlier_steps", [0, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_keeps_its_promise(name, earlier_steps):
    move = largest_move(small(name), GROUP_SIZES["two"], earlier_steps=earlier_steps, domains=1)
    # The first step of the control is RLOO's: there is no value yet to be biased by.
    assert (move < 1e-9) == (PRESETS[name].exact or (PRESETS[name].control and earlier_steps == 0)), move


CHANGES = {
    "group-mean targets": ("paper", {"target": "group"}),
    "logistic": ("released-qwen3-4b", {"probe": "logistic", "penalty": 1.0}),
    "network": ("paper", {"probe": "mlp", "penalty": 1.0}),
    "stacked": ("paper", {"members": (("ridge", 1.0), ("logistic", 1.0)), "combination": "stacked"}),
    "own value": ("paper", {"cross_rollout": False}),
    "own value, stacked": (
        "paper",
        {"members": (("ridge", 1.0),) * 2, "combination": "stacked", "cross_rollout": False},
    ),
    "own reward": ("rloo", {"kind": "group-mean"}),
    "scalars": ("poise", {"scalars": ("answer_mean_entropy", "own:luck")}),
    "published scalars": ("paper", {"scalars": ("own:luck", "completion_mean_entropy")}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_preset_with_changed_fields_keeps_the_promise_that_it_then_makes(what):
    name, changes = CHANGES[what]
    preset = small(name, **changes)
    move = largest_move(preset, GROUP_SIZES["two"], earlier_steps=2, domains=1)
    assert preset.exact == ("own" not in what)
    assert (move < 1e-9) == preset.exact, move


def test_poise_with_several_penalties_and_numbers_of_axes_keeps_its_promise():
    preset = small("poise", penalties=(3.0, 300.0), components=(2, 6))
    assert largest_move(preset, GROUP_SIZES["two"], earlier_steps=1) < 1e-9


def test_control_a_rollouts_own_features_are_noticed(monkeypatch):
    # The rollout's own features in the place of its siblings': the move must be plain to see.
    import poise.probe.evidence
    from poise.probe import learned

    def own_features(batch, **kwargs):
        return replace(poise.probe.evidence.evidence_rows(batch, **kwargs), sibling_states=batch.features.completion)

    monkeypatch.setattr(learned, "evidence_rows", own_features)
    preset = small("poise-value", evidence=("sibling_states",))
    assert largest_move(preset, GROUP_SIZES["two"], earlier_steps=2) > 1e-3


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
    assert largest_move(small("poise"), GROUP_SIZES["two"], earlier_steps=2) > 1e-6


def test_a_lone_rollout_leans_on_its_prompt_alone():
    # Group size one: what may not be used is all that was sampled; the prompt's own states may.
    batch = Rollouts([1] * 16, seed=3)
    baseline = poise.OnlineBaseline(small("poise"))
    for seed in range(2):
        Rollouts([1] * 16, seed=seed).step(baseline)
    state = baseline.state_dict()

    def restored():
        fresh = poise.OnlineBaseline(small("poise"))
        fresh.load_state_dict(state)
        return fresh

    before = answers(restored(), batch)
    for row in (0, 5, 15):
        other = batch.with_rollout_replaced(row, 1)
        other.prompt = batch.prompt
        assert (answers(restored(), other) - before)[:, row].abs().max() < 1e-9
