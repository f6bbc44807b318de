"""Isolation of rows: whether what a model says of one sequence depends on another one in the same batch.

Training engines lay sequences end to end in one row without padding and tell them apart by position ids that begin
again. A model that does not keep them apart (a recurrent state or a convolution that runs on, an attention mask made
without position ids) lets the features of one rollout depend on another: a baseline that is read from a sibling then
depends on the rollout that it is subtracted from, and log-probabilities are wrong for any method. Padded rows are
looked at in the same way.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LENGTH = 12
"""Tokens of each of the two sequences."""
PADDING = 3
"""Tokens by which the second is padded, to its left, where rows are padded."""
ROUNDING = 1e-3
"""Largest difference, in standard deviations of what is compared, that counts as rounding in float32."""
HALF_ROUNDING = 3e-2
"""The same in half precision; leaks are from 0.3 on."""


@dataclass(frozen=True)
class RowIsolation:
    """What the first of two sequences did to the second.

    Attributes:
        difference: Largest change of what is said of the second when the first is another one, in standard deviations;
            0 where rows are kept apart.
        model_type: Of the model's configuration.
        packed: Whether rows were laid end to end, and not padded.
        rounding: Largest difference that counts as rounding.
    """

    difference: float
    model_type: str
    packed: bool = True
    rounding: float = ROUNDING

    @property
    def leaks(self) -> bool:
        """Whether a sequence sees its neighbour."""
        return not self.difference <= self.rounding

    @property
    def sentence(self) -> str:
        """What was found, with the remedy where rows leak."""
        layout = "packed" if self.packed else "padded"
        if not self.leaks:
            return f"{self.model_type} keeps {layout} rows apart (difference {self.difference:.0e})"
        remedy = "use another model, or a preset that reads no siblings"
        if self.packed:
            remedy = "switch packing off (padded rows), or use kernels that are told where rows begin"
        return (
            f"{self.model_type} lets a {layout} row see its neighbour (a change of one moves the other by "
            f"{self.difference:.2g} standard deviations), so a sibling's features depend on the rollout and the "
            f"baseline is biased: {remedy}"
        )


def two_neighbours(
    vocabulary_size: int,
) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """Token ids of a first sequence, of another first one, and of the second that may follow either."""
    places = torch.arange(LENGTH)
    first, other, second = ((places * step + start) % vocabulary_size for step, start in ((5, 3), (11, 1), (7, 3)))
    return first, other, second


def isolation(behind: Tensor, behind_other: Tensor, **told: Any) -> RowIsolation:
    """The finding, from what was said of the second sequence beside the first and beside another first one.

    Args:
        behind: Hidden states or log-probabilities.
        behind_other: The same numbers beside the other one.
        told: Further fields of the finding.
    """
    spread = behind.std().clamp(min=torch.finfo(torch.float32).tiny)
    return RowIsolation(float((behind - behind_other).abs().max() / spread), **told)


def row_isolation(model: nn.Module, *, packed: bool = True, **inputs: Any) -> RowIsolation:
    """Lay two rows side by side, change the first, and compare the last hidden states of the second.

    Two forward passes over 24 tokens, in evaluation mode and without gradients; nothing is changed.

    Args:
        model: A causal language model of `transformers`.
        packed: Whether rows are laid end to end, told apart by position ids alone, without attention mask; else they
            are padded to the left.
        inputs: Further inputs that the engine gives with rows, such as `cu_seq_lens_q`.
    """
    settings: Any = model.config
    config = settings.get_text_config()
    device = next(model.parameters()).device
    first, other, second = (ids.to(device) for ids in two_neighbours(config.vocab_size))
    lay = packed_states if packed else padded_states
    was_training = model.training
    model.eval()
    try:
        behind, behind_other = (lay(model, each, second, inputs) for each in (first, other))
    finally:
        model.train(was_training)
    half = torch.finfo(behind.dtype).bits < 32
    return isolation(
        behind.float(),
        behind_other.float(),
        model_type=config.model_type,
        packed=packed,
        rounding=HALF_ROUNDING if half else ROUNDING,
    )


def check_row_isolation(model: nn.Module, *, packed: bool = True, **inputs: Any) -> None:
    """Refuse a model that lets rows see each other.

    Raises:
        ValueError: If it does; the sentence names the remedy.
    """
    found = row_isolation(model, packed=packed, **inputs)
    if found.leaks:
        raise ValueError(found.sentence)


@torch.no_grad()
def packed_states(
    model: nn.Module, first: Tensor, second: Tensor, inputs: dict[str, Any]
) -> Float[Tensor, "tokens width"]:
    """Last hidden states of the second of two packed sequences."""
    positions = torch.arange(LENGTH, device=first.device).repeat(2)[None]
    inputs = {"input_ids": torch.cat([first, second])[None], "position_ids": positions} | inputs
    states: Tensor = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
    return states[0, LENGTH:]


@torch.no_grad()
def padded_states(
    model: nn.Module, first: Tensor, second: Tensor, inputs: dict[str, Any]
) -> Float[Tensor, "tokens width"]:
    """Last hidden states of the second of two rows, which is shorter and padded to the left."""
    ids = torch.stack([first, second.roll(PADDING)])
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    inputs = {"input_ids": ids, "attention_mask": mask} | inputs
    states: Tensor = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
    return states[1, PADDING:]
