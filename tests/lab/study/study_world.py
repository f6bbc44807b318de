"""Rollouts of a study made up in memory: every prompt has a known value, and its states tell it with some noise."""

import math

import torch

from poise.features.scalars import SCALARS
from poise.lab.study.rollouts import StudyRollouts
from poise.storage.run_directory import RunDirectory

LAYERS, POOLS, WIDTH = [0, 2], [1, 10], 6


def made_up_rollouts(num_prompts, *, draws, featured, seed, name="", domains=("a", "b")):
    """Rollouts, and the true value of each prompt.

    Layer 2 tells the value, layer 0 is noise; the first scalar tells a little. Every token is made up.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    values = torch.rand(num_prompts, generator=generator, dtype=torch.float64)
    rewards = (torch.rand(num_prompts, draws, generator=generator, dtype=torch.float64) < values[:, None]).double()
    told = values[:, None, None].float() * torch.arange(1, WIDTH + 1)
    prompt_states, completion_states = {}, {}
    for pool in POOLS:
        prompt_states[pool] = torch.stack([noise(num_prompts, WIDTH), told[:, 0] + noise(num_prompts, WIDTH)], dim=1)
        completion_states[pool] = torch.stack(
            [noise(num_prompts, featured, WIDTH), told + 0.3 * noise(num_prompts, featured, WIDTH)], dim=2
        )
    scalars = noise(num_prompts, featured, len(SCALARS))
    scalars[:, :, 0] += values[:, None].float()
    rollouts = StudyRollouts(
        [f"{name}prompt {k}" for k in range(num_prompts)],
        [domains[k % len(domains)] for k in range(num_prompts)],
        rewards,
        prompt_states,
        completion_states,
        scalars,
        torch.rand(num_prompts, featured, generator=generator, dtype=torch.float64) + 0.5,
        [[2, 3] for _ in range(num_prompts)],
        [[[4 + draw] for draw in range(featured)] for _ in range(num_prompts)],
        LAYERS,
    )
    return rollouts, values


def saved_file(path, *, num_prompts=20, group_size=2, rewards=None, prompt="{}+1:", step=4):
    """A rollout file of a run in `path`."""
    directory = RunDirectory.create(path)
    rows = num_prompts * group_size
    generator = torch.Generator().manual_seed(step)
    drawn = (torch.rand(rows, generator=generator) < 0.5).double().tolist() if rewards is None else rewards
    return directory.write_rollouts(
        step,
        prompts=[prompt.format(k // group_size) for k in range(rows)],
        completions=[f"{k}" for k in range(rows)],
        domains=["sum"] * rows,
        rewards=drawn,
        values=[math.nan] * rows,
        baselines=[0.5] * rows,
        advantages=[0.0] * rows,
    )
