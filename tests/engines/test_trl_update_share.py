"""Updates on a share of the rollouts: the gradient's mean over every draw is that of the whole minibatch."""

import pytest
import torch
from recording import HOST_CHATTER, metric
from torch.testing import assert_close

import poise.engines.subsampling
from oracles import different_starts
from poise.engines.subsampling import inclusion_probabilities

pytestmark = HOST_CHATTER
ROWS = 16


def gradient(trainer, minibatch):
    """Of the trainer's loss, all parameters in a row."""
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, dict(minibatch)).backward()
    return torch.cat([p.grad.flatten().double() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("options", [{}, {"loss_type": "luspo"}, {"preset": "rloo"}], ids=["poise", "luspo", "rloo"])
def test_the_mean_gradient_over_every_draw_is_that_of_the_whole_minibatch(build, monkeypatch, options):
    trainer = build(update_share=0.25, max_steps=4, **options)
    trainer.train()
    trainer.model.train()
    minibatch = trainer._buffered_inputs[1]
    sizes = minibatch["gradient_sizes"].double()
    assert len(sizes) == ROWS
    whole = gradient(trainer, {name: part for name, part in minibatch.items() if name != "gradient_sizes"})
    probabilities = inclusion_probabilities(sizes, ROWS // 4)
    mean, furthest, seen = torch.zeros_like(whole), 0.0, set()
    for start, probability in different_starts(probabilities):
        monkeypatch.setattr(poise.engines.subsampling.torch, "rand", lambda *shape, at=start, **named: at)
        found = gradient(trainer, minibatch)
        monkeypatch.undo()
        mean += probability * found
        furthest = max(furthest, float((found - whole).norm()))
        seen.add(len(trainer.finite_steps._minibatch["advantages"]))
    assert_close(mean, whole, atol=2e-6 * float(whole.norm()), rtol=1e-4)
    assert furthest > 0.1 * float(whole.norm())  # the control: single draws are told apart from the whole
    assert seen == {ROWS // 4}


def test_sizes_are_advantages_times_norms_of_scores_and_the_noise_is_logged(build):
    trainer = build(update_share=0.5, max_steps=4)
    trainer.train()
    weights = trainer.baseline.given[0]["weights"]
    scored = trainer.scored[0]
    assert_close(
        scored["gradient_sizes"].double(), scored["advantages"].abs().double() * weights.sqrt(), rtol=1e-5, atol=0
    )
    noise = metric(trainer, "poise/update_noise")
    assert len(noise) == 4
    assert min(noise) >= 1


def test_all_rollouts_are_updated_on_by_default(build):
    trainer = build(max_steps=2)
    trainer.train()
    assert "gradient_sizes" not in trainer.scored[0]
    assert metric(trainer, "poise/update_noise") == []
