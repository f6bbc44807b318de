"""Gradient variance from inner products equals what explicit gradient vectors say."""

import pytest
import torch

from poise.diagnostics.gradient_variance import PromptGradients, head_score_products, prompt_gradients, score_products

GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])


def random_case(seed, *, width=7):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(GROUPS), width, generator=generator, dtype=torch.float64)
    advantages = torch.randn(len(GROUPS), generator=generator, dtype=torch.float64)
    return scores, advantages


def explicit_gradients(scores, advantages):
    return torch.stack([(advantages[p == GROUPS, None] * scores[p == GROUPS]).mean(0) for p in range(5)])


def test_trace_covariance_is_that_of_explicit_gradients():
    scores, advantages = random_case(0)
    gradients = explicit_gradients(scores, advantages)
    measured = prompt_gradients(scores @ scores.T, advantages, GROUPS).trace_covariance()
    assert measured.value == pytest.approx(float(gradients.var(dim=0).sum()) / 5, rel=1e-12)


def test_noise_to_signal_is_their_ratio_in_any_unit_of_advantages_with_an_interval_over_prompts():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(len(GROUPS), 5, dtype=torch.float64, generator=generator) + 1
    advantages = torch.rand(len(GROUPS), dtype=torch.float64, generator=generator)
    measured = prompt_gradients(scores @ scores.T, advantages, GROUPS)
    found = measured.noise_to_signal()
    assert found.value == pytest.approx(measured.trace_covariance().value / measured.squared_signal().value)
    in_another_unit = prompt_gradients(scores @ scores.T, 7 * advantages, GROUPS).noise_to_signal()
    assert in_another_unit.value == pytest.approx(found.value)
    assert in_another_unit.standard_error == pytest.approx(found.standard_error)
    assert found.standard_error > 0
    halved = found.times(-0.5)
    assert (halved.value, halved.standard_error) == (-found.value / 2, found.standard_error / 2)


def test_squared_signal_is_the_mean_product_of_different_prompts():
    scores, advantages = random_case(1)
    gradients = explicit_gradients(scores, advantages)
    products = [gradients[a] @ gradients[b] for a in range(5) for b in range(5) if a != b]
    measured = prompt_gradients(scores @ scores.T, advantages, GROUPS).squared_signal()
    assert measured.value == pytest.approx(float(torch.stack(products).mean()), rel=1e-12)


def test_jackknife_is_that_of_recomputed_statistics():
    scores, advantages = random_case(2)
    others = random_case(3)[1]
    a, b = (prompt_gradients(scores @ scores.T, x, GROUPS) for x in (advantages, others))

    def without(one, p):
        keep = [k for k in range(5) if k != p]
        return PromptGradients(one.products[keep][:, keep])

    left = torch.tensor([without(a, p).variance_ratio(without(b, p)).value for p in range(5)])
    expected = (4 / 5 * ((left - left.mean()) ** 2).sum()).sqrt()
    assert a.variance_ratio(b).standard_error == pytest.approx(float(expected), rel=1e-5)
    left = torch.tensor([without(a, p).trace_covariance().value for p in range(5)])
    expected = (4 / 5 * ((left - left.mean()) ** 2).sum()).sqrt()
    assert a.trace_covariance().standard_error == pytest.approx(float(expected), rel=1e-5)


def test_trace_covariance_is_unbiased_and_a_norm_is_not():
    # Prompts whose gradients are known in distribution: N(mu, I / 4) in 3 dimensions.
    generator = torch.Generator().manual_seed(4)
    mean = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    estimates, norms = [], []
    for _ in range(2000):
        gradients = mean + 0.5 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
        one = PromptGradients(gradients @ gradients.T)
        estimates.append([one.trace_covariance().value, one.squared_signal().value])
        norms.append(float(gradients.mean(0).pow(2).sum()))
    trace, signal = torch.tensor(estimates).mean(dim=0).tolist()
    assert trace == pytest.approx(3 * 0.25 / 4, rel=0.05)
    assert signal == pytest.approx(1.25, rel=0.03)
    assert sum(norms) / len(norms) > 1.35  # the control: signal and noise together


def test_score_products_equal_those_of_one_backward_pass_a_rollout(tiny_model):
    model = tiny_model.eval()
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, model.config.vocab_size, (5, 9), generator=generator)
    attention = torch.ones_like(ids)
    attention[0, :2] = 0
    completion = torch.zeros_like(ids).bool()
    completion[:, 4:] = True
    completion[1, 7:] = False
    attention[1, 7:] = 0
    rows = []
    for k in range(5):
        model.zero_grad()
        logprobs = model(ids[k : k + 1], attention_mask=attention[k : k + 1]).logits[0, :-1].log_softmax(-1)
        (logprobs.gather(1, ids[k, 1:, None])[:, 0] * completion[k, 1:]).sum().backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    scores = torch.stack(rows)
    measured = score_products(model, ids, attention, completion)
    torch.testing.assert_close(measured, (scores @ scores.T).double(), rtol=1e-4, atol=1e-4)


def test_two_prompts_are_too_few():
    with pytest.raises(ValueError, match="at least 3 prompts, got 2"):
        prompt_gradients(torch.eye(4), torch.ones(4), torch.tensor([0, 0, 1, 1]))


def test_products_of_the_head_are_those_of_its_gradients(tiny_model, monkeypatch):
    monkeypatch.setattr("poise.diagnostics.gradient_variance._TOKENS_AT_ONCE", 4)  # several blocks, cut inside rollouts
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 64, (5, 9), generator=generator)
    attention = torch.ones_like(ids).bool()
    attention[:2, :2] = False  # padded on the left
    completion = torch.zeros_like(attention)
    completion[:, 4:] = True
    completion[3, 7:] = attention[3, 7:] = False
    found = head_score_products(tiny_model, ids, attention, completion)
    expected = score_products(tiny_model, ids, attention, completion, parameters=["lm_head.weight"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # The control: all parameters together are something else.
    assert not torch.allclose(found, score_products(tiny_model, ids, attention, completion), rtol=1e-2)
