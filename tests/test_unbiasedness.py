"""Is the policy gradient unbiased? By enumerating every outcome of small policies: nothing is sampled.

A gradient estimate is sum_i (r_i - b_i) * score_i / normaliser. A baseline must not change its expectation. That holds
exactly where the factor on a score does not depend on the completion (a constant normaliser), up to O(1/N) for the
token mean over a batch of N prompts, and not at all where each completion is divided by its own length.
"""

import itertools
from math import prod

import pytest
import torch

import poise
from poise.features.rollout_features import Features

LENGTHS = torch.tensor([1.0, 4.0, 2.0]).double()
LOGITS = torch.tensor([[0.2, -0.4, 0.9], [-1.0, 0.3, 0.1], [0.5, 0.5, -1.0]]).double()
REWARDS = torch.tensor([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [0.0, 1.0, 1.0]]).double()
WIDTH = 4


class Policies:
    """A softmax over a few completions for each prompt; two rollouts of each prompt are drawn.

    Features and weights depend on the completion: `draws[k, g]` is the completion of rollout g of prompt k. The last
    `settled` prompts always get their first completion: company for the others at no cost.
    """

    def __init__(self, num_prompts, num_completions, *, alike=False, settled=0):
        kinds = [0 if alike else k % 3 for k in range(num_prompts)]
        self.probs = LOGITS[kinds][:, :num_completions].softmax(dim=1)
        self.probs[num_prompts - settled :] = torch.eye(num_completions).double()[0]
        self.rewards = REWARDS[kinds][:, :num_completions]
        self.scores = torch.eye(num_completions).double() - self.probs[:, None, :]  # [k, y]: grad log pi(y | prompt k)
        generator = torch.Generator().manual_seed(4)
        self.prompt = torch.randn(num_prompts, WIDTH, generator=generator)
        own = torch.randn(num_prompts, num_completions, WIDTH, generator=generator)
        self.completion = own + 3 * self.rewards[:, :, None].float()
        self.entropies = torch.rand(num_prompts, num_completions, 3, generator=generator)
        self.weights = 1 + 20 * torch.rand(num_prompts, num_completions, generator=generator).double()

    def outcomes(self):
        """Every joint outcome as (chance, draws); the two rollouts are alike, so unordered pairs suffice."""
        num_prompts, num_completions = self.probs.shape
        pairs = list(itertools.combinations_with_replacement(range(num_completions), 2))
        for joint in itertools.product(pairs, repeat=num_prompts):
            chances = [
                float(self.probs[k, a] * self.probs[k, b]) * (1 if a == b else 2) for k, (a, b) in enumerate(joint)
            ]
            if prod(chances) > 0:
                yield prod(chances), torch.tensor(joint)

    def expected_gradient(self, baselines_of, normalised):
        """E[sum_i (r_i - b_i) * normalised_i * score_i], by prompt and logit."""
        rows = torch.arange(len(self.probs))[:, None]
        gradient = torch.zeros_like(self.probs)
        for chance, draws in self.outcomes():
            rewards = self.rewards[rows, draws]
            factors = (rewards - baselines_of(self, draws, rewards)) * normalised(draws)
            gradient += chance * (factors[:, :, None] * self.scores[rows, draws]).sum(dim=1)
        return gradient

    def true_gradient(self):
        """The gradient of sum_k E[r | prompt k]."""
        return torch.einsum("ky,ky,kyz->kz", self.probs, self.rewards, self.scores)

    def features(self, draws):
        rows = torch.arange(len(draws))[:, None]
        prompt = self.prompt[rows.expand_as(draws)].flatten(0, 1)
        parts = [part[rows, draws].flatten(0, 1) for part in (self.completion, self.entropies)]
        return Features(prompt, *parts, torch.zeros(draws.numel(), 4, dtype=torch.bool))


def given_to(baseline, policies, draws, rewards, *, when=""):
    """The baselines of these rollouts."""
    rows = torch.arange(len(draws))[:, None].expand_as(draws)
    step = baseline.step(
        policies.features(draws),
        rewards.flatten(),
        prompts=[f"{when}{row}" for row in rows.flatten().tolist()],
        weights=policies.weights[rows, draws].flatten(),
    )
    return step.baselines.reshape(draws.shape)


def online(name, **changes):
    """Baselines of the first step of a preset."""
    preset = poise.preset(name, **changes)

    def baselines(policies, draws, rewards):
        return given_to(poise.OnlineBaseline(preset), policies, draws, rewards)

    return baselines


def after_a_step(name, **changes):
    """Baselines of the second step of a preset, the first being the same whatever is drawn in the second."""
    preset = poise.preset(name, **changes)
    earlier, first = Policies(12, 3), poise.OnlineBaseline(preset)
    draws = torch.randint(3, (12, 2), generator=torch.Generator().manual_seed(0))
    given_to(first, earlier, draws, earlier.rewards[torch.arange(12)[:, None], draws], when="earlier")
    state = first.state_dict()

    def baselines(policies, draws, rewards):
        second = poise.OnlineBaseline(preset)
        second.load_state_dict(state)
        return given_to(second, policies, draws, rewards)

    return baselines


def zero(policies, draws, rewards):
    return torch.zeros_like(rewards)


def own_value(policies, draws, rewards):
    """What a probe that reads the rollout itself would say: half way between 1/2 and its reward."""
    return 0.25 + 0.5 * rewards


def constant(draws):
    return torch.full(draws.shape, 1 / 2).double()


def token_mean(draws):
    return torch.full(draws.shape, len(draws) / float(LENGTHS[draws].sum())).double()


def sequence_mean(draws):
    return 1 / (2 * LENGTHS[draws])


SMALL = {"penalties": (3.0,), "components": (2,)}
FEW = SMALL | {"evidence": ("constant", "sibling_reward", "sibling_states")}


CASES = {
    "poise": ("poise", FEW),
    "poise, all evidence": ("poise", SMALL),
    "poise-value": ("poise-value", FEW),
    "shrunk-rloo": ("shrunk-rloo", {}),
    "prompt-only": ("prompt-only", SMALL),
    "rloo": ("rloo", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_steps_gradient_is_the_true_one(case):
    name, changes = CASES[case]
    policies = Policies(4, 2, settled=1)
    gradient = policies.expected_gradient(online(name, **changes), constant)
    assert (gradient - policies.true_gradient()).abs().max() < 1e-12


@pytest.mark.parametrize("case", [*CASES, "paper"])
def test_so_is_the_second_steps(case):
    name, changes = CASES.get(case, (case, {}))
    policies = Policies(2, 3)
    gradient = policies.expected_gradient(after_a_step(name, **changes), constant)
    assert (gradient - policies.true_gradient()).abs().max() < 1e-12


@pytest.mark.parametrize(("made", "policies"), [(online, Policies(4, 2, settled=1)), (after_a_step, Policies(2, 3))])
def test_the_baselines_enumerated_are_not_trivial(made, policies):
    # Else all of the above would hold for no reason: each rollout's baseline moves with what the others do.
    rows, baselines_of = torch.arange(len(policies.probs))[:, None], made("poise", **FEW)
    seen = [baselines_of(policies, draws, policies.rewards[rows, draws]) for _, draws in policies.outcomes()]
    assert torch.stack(seen).std(dim=0).min() > 0.01


@pytest.mark.parametrize(
    ("baselines", "least"), [(own_value, 0.05), (online("group-mean"), 0.05)], ids=["own value", "group mean"]
)
def test_control_a_baseline_that_sees_its_own_rollout_is_biased(baselines, least):
    policies = Policies(2, 3)
    gradient = policies.expected_gradient(baselines, constant)
    assert (gradient - policies.true_gradient()).abs().max() > least


def test_the_group_mean_shrinks_the_gradient_by_half():
    policies = Policies(2, 3)
    gradient = policies.expected_gradient(online("group-mean"), constant)
    assert (gradient - policies.true_gradient() / 2).abs().max() < 1e-12


def bias(normalised, *, num_prompts):
    """How far the baseline moves the expected gradient of a prompt, as a share of the gradient without a baseline."""
    policies = Policies(num_prompts, 2, alike=True)
    baselines_of = after_a_step("poise", penalties=(3.0,), evidence=("constant", "sibling_reward"))
    gradients = [policies.expected_gradient(b, normalised).mean(dim=0) for b in (baselines_of, zero)]
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def test_under_a_token_mean_over_the_batch_the_bias_shrinks_with_the_number_of_prompts():
    biases = [bias(token_mean, num_prompts=num) for num in (1, 2, 4)]
    assert biases[0] > 0.05
    assert biases[1] < 0.65 * biases[0]
    assert biases[2] < 0.65 * biases[1]


def test_control_under_a_mean_for_each_sequence_the_bias_stays():
    biases = [bias(sequence_mean, num_prompts=num) for num in (1, 2, 4)]
    assert min(biases) > 0.1
    assert biases[2] > 0.8 * biases[0]


def test_control_under_a_constant_the_same_measure_finds_none():
    assert bias(constant, num_prompts=3) < 1e-12
