"""What a run cannot be made of is one sentence before its first batch."""

import pytest
import torch
from conformance import random_policy
from recording import HOST_CHATTER

pytestmark = HOST_CHATTER


def mixing_rows() -> torch.nn.Module:
    """A policy whose rows see their neighbours in the batch."""
    policy = random_policy()
    policy.model.layers[0].register_forward_hook(lambda module, args, output: output + 0.1 * output.roll(1, dims=0))
    return policy


def test_rows_that_see_each_other_are_no_evidence_and_other_presets_go_on(build):
    with pytest.raises(ValueError, match=r"lets a padded row see its neighbour .* a preset that reads no siblings"):
        build(model=mixing_rows())
    for preset in ("poise-single", "rloo"):
        build(model=mixing_rows(), preset=preset)
