"""A new method needs one module with its recipe and one row in the table of presets: it trains as it is."""

from dataclasses import dataclass

import torch
from recording import HOST_CHATTER

from poise import presets
from poise.baselines import Recipe, step_of

pytestmark = HOST_CHATTER


@dataclass(frozen=True)
class FixedRecipe(Recipe):
    number: float = 0.5

    def build(self):
        return Fixed(self)


@dataclass
class Fixed:
    recipe: FixedRecipe

    def step(self, batch):
        return step_of(batch, torch.full_like(batch.rewards, self.recipe.number))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_method_of_fifteen_lines_trains(build, monkeypatch):
    rows = presets.PRESETS | {"fixed": presets.Preset("fixed", FixedRecipe())}
    monkeypatch.setattr(presets, "PRESETS", rows)
    trainer = build(preset="fixed", max_steps=2, learning_rate=1e-2)
    before = {name: each.clone() for name, each in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], each) for name, each in trainer.model.named_parameters())
    assert trainer.state.log_history[0]["poise/baseline_mean"] == 0.5
