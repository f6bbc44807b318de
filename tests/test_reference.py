"""The slow twin in numpy gives the numbers of the library."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import poise
from oracles import drawn_rollouts
from poise.batch import prompt_keys

REFERENCE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "reference.py"))


def step_of(rollouts, *, weighted):
    names = {prompt: number for number, prompt in enumerate(dict.fromkeys(rollouts.prompts))}
    half = torch.tensor(prompt_keys(rollouts.prompts)).unique(return_inverse=True)[1] % 2
    arrays = {
        name: getattr(rollouts, name).numpy() for name in ("prompt", "completion", "entropies", "rewards", "weights")
    }
    arrays["weights"] = arrays["weights"] if weighted else np.ones_like(arrays["weights"])
    return arrays | {"groups": np.array([names[prompt] for prompt in rollouts.prompts]), "half": half.numpy()}


@pytest.mark.parametrize(("preset", "weighted"), [("poise", True), ("poise-value", False)])
def test_the_slow_twin_agrees_with_the_library_at_every_step(preset, weighted):
    steps = [drawn_rollouts([2] * 12 + [1, 3, 4], seed=seed) for seed in range(3)]
    baseline = poise.OnlineBaseline(poise.preset(preset))
    expected = REFERENCE["baselines"]([step_of(each, weighted=weighted) for each in steps])
    for rollouts, twin in zip(steps, expected, strict=True):
        assert np.abs(rollouts.given_to(baseline).baselines.numpy() - twin).max() < 1e-8
    assert np.abs(expected[0] - expected[0].mean()).max() > 0.01  # the control: there is something to agree on
