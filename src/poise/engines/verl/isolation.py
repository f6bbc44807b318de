"""Isolation of rows in verl's own pass: its engine, layout, kernels and sequence parallelism, with two made-up rows."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from poise.diagnostics.row_isolation import HALF_ROUNDING, LENGTH, isolation, two_neighbours


def leak_sentence(worker: Any, model: Any) -> str | None:
    """What to say where a row of verl's batches sees its neighbour; None where rows are kept apart.

    Two passes over 24 tokens. All processes must call it together.

    Args:
        worker: verl's training worker, its engine initialized.
        model: verl's configuration of the model.
    """
    config = model.hf_config.get_text_config()
    first, other, second = two_neighbours(config.vocab_size)
    outputs = [worker.infer_batch(two_rows(row, second)) for row in (first, other)]
    if None in outputs:  # another process of its group has them
        return None
    # The last token predicts nothing.
    behind, behind_other = (output["log_probs"].unbind()[1][: LENGTH - 1].float() for output in outputs)
    found = isolation(
        behind,
        behind_other,
        model_type=config.model_type,
        packed=bool(model.use_remove_padding),
        rounding=HALF_ROUNDING,
    )
    return found.sentence if found.leaks else None


def two_rows(first: Tensor, second: Tensor) -> TensorDict:
    """A micro-batch of two rows as verl's driver makes them, half prompt and half response."""

    def nested(*rows: Tensor) -> Tensor:
        return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)

    positions, sampled = torch.arange(LENGTH), torch.ones(LENGTH // 2, dtype=torch.int64)
    fields = {
        "input_ids": nested(first, second),
        "position_ids": nested(positions, positions),
        "prompts": nested(first[: LENGTH // 2], second[: LENGTH // 2]),
        "responses": nested(first[LENGTH // 2 :], second[LENGTH // 2 :]),
        "response_mask": nested(sampled, sampled),
        "loss_mask": nested(sampled, sampled),
    }
    batch = TensorDict(fields, batch_size=2)
    tu.assign_non_tensor(
        batch,
        calculate_entropy=False,
        compute_loss=False,
        temperature=1.0,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=2,
    )
    return batch
