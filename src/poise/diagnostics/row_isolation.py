"""Isolation of packed rows: whether what a model says of one sequence depends on the one that is packed before it.

Training engines lay sequences end to end in one row without padding and tell them apart by position ids that begin
again. A model that does not keep them apart (a recurrent state or a convolution that runs on, an attention mask made
without position ids) lets the features of one rollout depend on another: a baseline that is read from a sibling then
depends on the rollout that it is subtracted from, and log-probabilities are wrong for any method.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LENGTH = 12
"""Tokens of each of the two sequences."""
ROUNDING = 1e-3
"""Largest difference, in standard deviations of the states, that counts as rounding; a leak is far above it."""


@dataclass(frozen=True)
class RowIsolation:
    """What packing did to the second of two sequences.

    Attributes:
        difference: Largest change of its last hidden states when the first sequence is another one, in standard
            deviations of the states; 0 where rows are kept apart.
        model_type: Of the model's configuration.
    """

    difference: float
    model_type: str

    @property
    def leaks(self) -> bool:
        """Whether a packed sequence sees its neighbour."""
        return not self.difference <= ROUNDING

    @property
    def sentence(self) -> str:
        """What was found, with the remedy where rows leak."""
        if not self.leaks:
            return f"{self.model_type} keeps packed rows apart (difference {self.difference:.0e})"
        return (
            f"{self.model_type} lets a packed row see its neighbour (its states move by {self.difference:.2g} standard "
            "deviations), so a sibling's features depend on the rollout and the baseline is biased: switch packing "
            "off (padded rows), or use kernels that are told where rows begin"
        )


def row_isolation(model: nn.Module, **inputs: Any) -> RowIsolation:
    """Pack two rows, change the first, and compare the states of the second.

    Two forward passes over 24 tokens, in evaluation mode and without gradients; nothing is changed.

    Args:
        model: A causal language model of `transformers`.
        inputs: Further inputs that the engine gives with packed rows, such as `cu_seq_lens_q`. By default packing is
            told by position ids alone, and there is no attention mask.
    """
    settings: Any = model.config
    config = settings.get_text_config()
    device = next(model.parameters()).device
    vocabulary = torch.arange(config.vocab_size, device=device)
    first, second = (vocabulary[(torch.arange(LENGTH, device=device) * step + 3) % len(vocabulary)] for step in (5, 7))
    other = vocabulary[(torch.arange(LENGTH, device=device) * 11 + 1) % len(vocabulary)]
    was_training = model.training
    model.eval()
    try:
        behind, behind_other = (_states(model, torch.cat([each, second]), inputs)[LENGTH:] for each in (first, other))
    finally:
        model.train(was_training)
    spread = behind.std().clamp(min=torch.finfo(torch.float32).tiny)
    return RowIsolation(float((behind - behind_other).abs().max() / spread), config.model_type)


def check_row_isolation(model: nn.Module, **inputs: Any) -> None:
    """Refuse a model that lets packed rows see each other.

    Raises:
        ValueError: If it does; the sentence names the remedy.
    """
    found = row_isolation(model, **inputs)
    if found.leaks:
        raise ValueError(found.sentence)


@torch.no_grad()
def _states(model: nn.Module, ids: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Last hidden states of two packed sequences, in float32."""
    positions = torch.arange(LENGTH, device=ids.device).repeat(2)[None]
    output = model(input_ids=ids[None], position_ids=positions, use_cache=False, output_hidden_states=True, **inputs)
    return output.hidden_states[-1][0].float()
