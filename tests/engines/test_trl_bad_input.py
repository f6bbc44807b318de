"""What a run cannot be made of is one sentence before its first batch."""

import pytest
import torch
from conformance import random_policy
from datasets import IterableDataset
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


@pytest.mark.parametrize("column", ["prompt", "question"])
def test_a_stream_tells_its_columns_in_its_first_batch(build, column):
    stream = IterableDataset.from_generator(lambda: ({column: f"{number}+1="} for number in range(32)))
    assert stream.column_names is None
    trainer = build(data=stream, max_steps=1)
    if column == "prompt":
        trainer.train()
        assert set(trainer.baseline.given[0]["prompts"]) <= {f"{number}+1=" for number in range(32)}
    else:
        with pytest.raises(ValueError, match="the data set needs a column 'prompt', got question"):
            trainer.train()
