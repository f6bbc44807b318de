"""`poise.advantages`: what `OnlineBaseline` gives, from rewards and sampled log-probabilities alone."""

import numpy as np
import pytest
import torch

import poise
from poise.features.rollout_features import SEGMENTS, Features, score_norm_weights

PROMPTS = ["a", "a", "b", "b", "c", "c", "d", "d"]


def light(**changes):
    return poise.OnlineBaseline(poise.preset("poise-light", **changes))


def rollouts(seed, prompts=PROMPTS):
    """Rewards, and log-probabilities and entropies of completions of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    rewards = (torch.rand(len(prompts), generator=generator) < 0.5).double()
    lengths = torch.randint(1, 60, (len(prompts),), generator=generator).tolist()
    logprobs = [-2 * torch.rand(length, generator=generator) for length in lengths]
    entropies = [2 * torch.rand(length, generator=generator) for length in lengths]
    return rewards, logprobs, entropies


def baselines(baseline, rewards, logprobs, entropies, prompts=PROMPTS, **named):
    """r - A, and NaN where the reward is."""
    return rewards - poise.advantages(
        rewards, prompts, logprobs=logprobs, entropies=entropies, baseline=baseline, **named
    )


@pytest.mark.parametrize("with_entropies", [True, False])
def test_it_is_the_online_baseline_with_features_of_its_own(with_entropies):
    ours, theirs = light(), light()
    for seed in range(3):
        rewards, logprobs, entropies = rollouts(seed)
        rewards[3] = torch.nan
        given = entropies if with_entropies else None
        found = poise.advantages(rewards, PROMPTS, logprobs=logprobs, entropies=given, baseline=ours)
        sure = entropies if with_entropies else [-each for each in logprobs]
        means = torch.stack([each.mean() for each in sure])
        spreads = entropies if with_entropies else [torch.full_like(each, 1e3) for each in logprobs]
        features = Features(
            torch.zeros(8, 0),
            torch.zeros(8, 0),
            torch.stack([means, 0 * means, 0 * means], dim=1),
            torch.zeros(8, len(SEGMENTS)).bool(),
        )
        weights = [
            score_norm_weights(p[None], h[None], torch.ones(1, len(p)).bool())
            for p, h in zip(logprobs, spreads, strict=True)
        ]
        step = theirs.step(features, rewards, prompts=PROMPTS, weights=torch.cat(weights))
        assert torch.allclose(found, step.advantages, rtol=0, atol=1e-6)
        assert found[3] == 0
    assert found.dtype == torch.float64
    assert float(found.abs().max()) > 0.01


def test_presets_of_rewards_alone_need_nothing_else():
    rewards = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0])
    found = poise.advantages(rewards.tolist(), PROMPTS, baseline=poise.OnlineBaseline(poise.preset("rloo")))
    assert found.tolist() == [1, -1, 0, 0, 0, 0, 1, -1]


@pytest.mark.parametrize("prompts", [PROMPTS, list("abcdefgh")], ids=["two rollouts", "one rollout"])
@pytest.mark.parametrize("earlier_steps", [0, 2])
def test_replacing_a_rollout_never_moves_its_own_baseline(prompts, earlier_steps):
    def after(replace=None):
        baseline = light()
        for seed in range(earlier_steps):
            baselines(baseline, *rollouts(seed, prompts), prompts)
        rewards, logprobs, entropies = rollouts(9, prompts)
        if replace is not None:
            rewards[replace] = 1 - rewards[replace]
            long = torch.linspace(0, 9, 999)  # the batch is padded to another width, which nobody else may notice
            logprobs[replace], entropies[replace] = -long, long
        found = baselines(baseline, rewards, logprobs, entropies, prompts)
        return found, baselines(baseline, *rollouts(10, prompts), prompts)

    before, later_before = after()
    for row in (0, 3, 7):
        moved, later = after(replace=row)
        assert abs(moved[row] - before[row]) < 1e-9
        assert (later - later_before).abs().max() > 1e-6  # and it is learned from
        others = torch.arange(8) != row
        assert (moved - before)[others].abs().max() > 1e-6 or not earlier_steps


class Outcomes:
    """Two prompts with two completions each, two rollouts a prompt: every joint outcome is enumerated."""

    rewards = torch.tensor([[1.0, 0.0], [0.2, 1.0]]).double()
    lengths = ((2, 5), (3, 1))
    rows = torch.arange(2)[:, None]

    def __init__(self):
        self.probs = torch.tensor([[0.4, -0.7], [-1.0, 0.3]]).double().softmax(dim=1)
        self.scores = torch.eye(2).double() - self.probs[:, None, :]
        self.baseline = light(penalties=(1.0,))
        self.advantages(torch.tensor([[0, 1], [1, 1]]))  # a step before, so that there is a window and a history
        self.state = self.baseline.state_dict()

    def advantages(self, joint):
        """Of completions (prompts, rollouts); their tokens' log-probabilities sum to the completions'."""
        places = [(k, y) for k, row in enumerate(joint.tolist()) for y in row]
        tokens = [torch.full((n := self.lengths[k][y],), float(self.probs[k, y].log()) / n) for k, y in places]
        rewards = self.rewards[self.rows, joint].flatten()
        return poise.advantages(rewards, [k for k, _ in places], logprobs=tokens, baseline=self.baseline).reshape(2, 2)

    def expected_gradients(self, leak):
        """E[sum_i A_i score_i], and the same where a share of the own reward leaks into a baseline."""
        gradients = torch.zeros(2, 2, 2).double()
        for joint in torch.cartesian_prod(*[torch.arange(2)] * 4).reshape(-1, 2, 2):
            self.baseline.load_state_dict(self.state)
            found, chance = self.advantages(joint), self.probs[self.rows, joint].prod()
            for k, factors in enumerate((found, found - leak * self.rewards[self.rows, joint])):
                gradients[k] += chance * (factors[:, :, None] * self.scores[self.rows, joint]).sum(dim=1)
        return gradients


def test_the_expected_gradient_is_the_true_one_and_a_leak_shows():
    world = Outcomes()
    truth = 2 * torch.einsum("ky,ky,kyz->kz", world.probs, world.rewards, world.scores)
    exact, leaking = world.expected_gradients(0.1)
    assert (exact - truth).abs().max() < 1e-9
    assert (leaking - truth).abs().max() > 0.01


TOKENS = [[-1.0, -2.0]] * 8
BAD = [
    ({"logprobs": TOKENS[:5]}, "logprobs must have one row for each of the 8 rewards, got 5"),
    ({"logprobs": [[float("nan")]] * 8}, "logprobs must be finite"),
    ({"logprobs": TOKENS, "entropies": [[1.0]] * 8}, "of the same tokens"),
    ({"logprobs": [[1.0]] * 8}, "logprobs of at most 0, got 1"),
    (
        {"baseline": poise.OnlineBaseline(poise.preset("poise"))},
        "preset 'poise' reads hidden states.*take 'poise-light'",
    ),
    ({"baseline": poise.OnlineBaseline(poise.preset("paper"))}, "preset 'paper' reads hidden states"),
    ({"domains": ["x"]}, "domains must have one row for each of the 8 rewards, got 1"),
]


@pytest.mark.parametrize(("named", "sentence"), BAD, ids=[sentence[:30] for _, sentence in BAD])
def test_bad_input_is_a_sentence(named, sentence):
    with pytest.raises(ValueError, match=sentence):
        poise.advantages(torch.ones(8), PROMPTS, **({"baseline": light()} | named))


def test_arrays_lists_and_empty_batches_are_taken():
    rewards, logprobs, _ = rollouts(0)
    wanted = poise.advantages(rewards, PROMPTS, logprobs=logprobs, baseline=light())
    found = poise.advantages(
        rewards.tolist(), np.array(PROMPTS), logprobs=[each.numpy() for each in logprobs], baseline=light()
    )
    assert torch.equal(found, wanted)
    assert len(poise.advantages([], [], logprobs=[], baseline=light())) == 0
