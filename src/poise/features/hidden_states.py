"""Hidden states of the policy, read in a forward pass that training makes anyway.

Hooks on a few decoder blocks pool inside the hook: the few tokens that count are gathered by index and averaged in
float32, so only (rows, width) is ever kept. One hook on the decoder itself counts the micro-batches; what a block does
outside a decoder pass (the recomputation of gradient checkpointing) is not looked at. Padded and packed layouts differ
only in where a row's tokens start among the flattened ones.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from poise.features.rollout_features import Features, mean_entropies, require_bool
from poise.features.scalars import Completions, named_scalars


@contextmanager
def capture_hidden_states(
    model: nn.Module,
    prompt_mask: Bool[Tensor, "rows columns"],
    completion_mask: Bool[Tensor, "rows columns"],
    *,
    layers: Sequence[int] = (19,),
    pool_tokens: int = 10,
    reasoning_mask: Bool[Tensor, "rows columns"] | None = None,
    row_lengths: Int[Tensor, "rows"] | Sequence[int] | None = None,
) -> "Iterator[HiddenStateCapture]":
    """Pool hidden states in every forward pass made inside the `with` block.

        with capture_hidden_states(model, prompt_mask, completion_mask, layers=[19]) as capture:
            logits = model(**inputs).logits
        features = capture.features(entropies)

    The batch may pass in any number of micro-batches, in row order. Layer i is the output of decoder block i, counted
    from 0: `output_hidden_states[i + 1]`, except that the last block is read before the final norm. The hooks are gone
    when the block is left, by an exception too.

    Args:
        model: A causal language model of `transformers`, bare or wrapped (DDP, FSDP, PEFT).
        prompt_mask: True on the prompt's tokens, over the columns of `input_ids` of all rows of the batch.
        completion_mask: True on the completion's tokens, over the same columns.
        layers: The decoder blocks to read; their states stand side by side in this order.
        pool_tokens: How many last tokens of prompt and reasoning are averaged; fewer where there are fewer.
        reasoning_mask: True on the completion's reasoning (see `poise.reasoning_mask`), over the same columns.
            By default the whole completion.
        row_lengths: Number of tokens of every row, for the packed layout: the model sees (1, total tokens), whole rows
            laid end to end without padding, and the masks are right-padded. By default the layout is padded.

    Raises:
        ValueError: If a layer is out of range, an argument does not fit the masks, or (in a forward pass) the states do
            not fit the batch.
        TypeError: If no decoder blocks are found in the model.
    """
    decoder, blocks = decoder_blocks(model)
    if not layers:
        raise ValueError("capture_hidden_states needs at least one layer, got none")
    for layer in layers:
        if not 0 <= layer < len(blocks):
            raise ValueError(f"layers need to lie in 0..{len(blocks) - 1}, the model has {len(blocks)}; got {layer}")
    capture = HiddenStateCapture(
        prompt_mask,
        completion_mask,
        completion_mask if reasoning_mask is None else reasoning_mask,
        num_layers=len(layers),
        pool_tokens=pool_tokens,
        row_lengths=row_lengths,
        virtual_tokens=virtual_tokens(model),
    )
    hooks = [
        decoder.register_forward_pre_hook(lambda module, args: capture.open_pass()),
        decoder.register_forward_hook(lambda module, args, output: capture.close_pass()),
    ]
    for slot, layer in enumerate(layers):
        hooks.append(
            blocks[layer].register_forward_hook(lambda module, args, output, slot=slot: capture.pool(slot, output))
        )
    try:
        yield capture
    finally:
        for hook in hooks:
            hook.remove()


class HiddenStateCapture:
    """The pooled states of one batch, filled in by the hooks of `capture_hidden_states`."""

    def __init__(
        self,
        prompt_mask: Bool[Tensor, "rows columns"],
        completion_mask: Bool[Tensor, "rows columns"],
        reasoning_mask: Bool[Tensor, "rows columns"],
        *,
        num_layers: int,
        pool_tokens: int,
        row_lengths: Int[Tensor, "rows"] | Sequence[int] | None = None,
        virtual_tokens: int = 0,
    ) -> None:
        masks = {"prompt_mask": prompt_mask, "completion_mask": completion_mask, "reasoning_mask": reasoning_mask}
        for name, mask in masks.items():
            require_bool(mask, name=name)
            if mask.shape != prompt_mask.shape or mask.ndim != 2:
                raise ValueError(
                    f"masks need one shape (rows, columns), got {[tuple(m.shape) for m in masks.values()]}"
                )
        if bool((reasoning_mask & ~completion_mask).any()):
            raise ValueError("reasoning_mask needs to lie inside completion_mask, got tokens outside it")
        if pool_tokens < 1:
            raise ValueError(f"pool_tokens needs to be at least 1, got {pool_tokens}")
        self._completion_mask = completion_mask
        self._reasoning_mask = reasoning_mask
        self._prompt_missing = ~prompt_mask.any(dim=1)
        # Prompt and reasoning together, (rows, 2, tokens): one transfer and one gather in each hook.
        self._columns = torch.stack(
            [last_true_columns(mask, count=pool_tokens) for mask in (prompt_mask, reasoning_mask)], dim=1
        )
        self._num_rows, self._num_columns = prompt_mask.shape
        self._num_layers = num_layers
        self._packed = row_lengths is not None
        self._virtual_tokens = 0 if self._packed else virtual_tokens
        if row_lengths is None:
            lengths = [self._num_columns] * self._num_rows
        else:
            lengths = [int(length) for length in row_lengths]
            _check_row_lengths(lengths, prompt_mask | completion_mask)
        self._row_starts = [0]
        for length in lengths:
            self._row_starts.append(self._row_starts[-1] + length)
        self._rows_seen = 0
        self._open_pass: dict[int, Float[Tensor, "rows 2 width"]] | None = None
        self._passes: list[Float[Tensor, "rows 2 widths"]] = []

    def features(
        self,
        entropies: Float[Tensor, "rows completion_columns"],
        *,
        scalars: Sequence[str] = (),
        ids: Int[Tensor, "rows columns"] | None = None,
    ) -> Features:
        """Return the features of the whole batch.

        Args:
            entropies: Token entropies in nats for the last columns of the masks (TRL gives those of the completions
                only), each at the token that was predicted.
            scalars: Names of further numbers to read, of `poise.features.scalars.SCALARS`.
            ids: Token ids over the columns of the masks, for scalars that count tokens.

        Raises:
            ValueError: If the forward passes did not cover the batch, the entropies do not cover the completions, or
                a scalar is unknown or lacks the ids that it needs.
        """
        if self._rows_seen != self._num_rows or not self._passes:
            raise ValueError(
                f"features need a forward pass over every row of the masks, {self._num_rows} in all; "
                f"got {self._rows_seen} in {len(self._passes)} passes"
            )
        first = self._num_columns - entropies.shape[1]
        if len(entropies) != self._num_rows or first < 0:
            raise ValueError(
                f"entropies need {self._num_rows} rows and at most {self._num_columns} columns, "
                f"got {tuple(entropies.shape)}"
            )
        if bool(self._completion_mask[:, :first].any()):
            raise ValueError(
                f"entropies need to cover every completion token, got the last {entropies.shape[1]} of "
                f"{self._num_columns} columns while a completion starts earlier"
            )
        if ids is not None and ids.shape != self._completion_mask.shape:
            raise ValueError(f"ids need the masks' shape {tuple(self._completion_mask.shape)}, got {tuple(ids.shape)}")
        completion = self._completion_mask[:, first:].to(entropies.device)
        reasoning = self._reasoning_mask[:, first:].to(entropies.device)
        answer = completion & ~reasoning
        pooled = torch.cat(self._passes)
        missing = torch.stack(
            [self._prompt_missing.to(entropies.device)]
            + [~mask.any(dim=1) for mask in (completion, reasoning, answer)],
            dim=1,
        )
        entropies = entropies.detach()
        tokens = None if ids is None else ids[:, first:].to(entropies.device)
        return Features(
            prompt=pooled[:, 0],
            completion=pooled[:, 1],
            entropies=mean_entropies(entropies, completion, reasoning, answer),
            missing=missing.to(pooled.device),
            scalars=named_scalars(Completions(entropies, completion, reasoning, answer, tokens), scalars),
        )

    def open_pass(self) -> None:
        """Start a micro-batch; one that an exception cut short is forgotten and may be tried again."""
        self._open_pass = {}

    def close_pass(self) -> None:
        """Keep the micro-batch that was pooled."""
        pooled, self._open_pass = self._open_pass, None
        if pooled is None or len(pooled) != self._num_layers:
            raise ValueError(
                f"a forward pass needs to run every captured layer, {self._num_layers} in all; got {len(pooled or {})}"
            )
        device = pooled[0].device  # a model spread over devices has its blocks on several
        self._passes.append(torch.cat([pooled[slot].to(device) for slot in range(self._num_layers)], dim=2))
        self._rows_seen += len(self._passes[-1])

    def pool(self, slot: int, output: Any) -> None:
        """Pool one block's output for the rows of the open micro-batch."""
        if self._open_pass is None:
            return  # a block that runs outside its decoder is recomputed for a backward pass
        hidden: Tensor = output[0] if isinstance(output, (tuple, list)) else output
        hidden = hidden.detach()
        if hasattr(hidden, "full_tensor"):  # a DTensor of tensor parallelism
            hidden = hidden.full_tensor()
        if hidden.ndim == 3:
            hidden = hidden[:, self._virtual_tokens :]
        first, last = self._rows_seen, self._last_row(hidden)
        starts = torch.tensor(self._row_starts[first:last]) - self._row_starts[first]
        columns = self._columns[first:last].to(hidden.device)
        self._open_pass[slot] = mean_of_tokens(hidden.flatten(0, 1), columns, starts.to(hidden.device))

    def _last_row(self, hidden: Tensor) -> int:
        """Return the row behind the last one that these states belong to."""
        if hidden.ndim != 3:
            raise ValueError(f"hidden states need the shape (rows, columns, width), got {tuple(hidden.shape)}")
        rows, columns = hidden.shape[:2]
        left = self._num_rows - self._rows_seen
        if not self._packed:
            if columns != self._num_columns or rows > left:
                raise ValueError(
                    f"a forward pass needs at most {left} rows (those of the masks not seen yet) and the masks' "
                    f"{self._num_columns} columns, got {rows} rows and {columns} columns"
                )
            return self._rows_seen + rows
        end = self._row_starts[self._rows_seen] + columns
        last = bisect_right(self._row_starts, end) - 1
        if rows != 1 or self._row_starts[last] != end:
            raise ValueError(
                f"a packed forward pass needs one row of whole sequences whose row_lengths add up, the next "
                f"sequence being row {self._rows_seen} of {self._num_rows}; got {rows} rows of {columns} tokens"
            )
        return last


def mean_of_tokens(
    hidden: Float[Tensor, "tokens width"],
    columns: Int[Tensor, "rows segments pool_tokens"],
    row_starts: Int[Tensor, "rows"],
) -> Float[Tensor, "rows segments width"]:
    """Average the chosen tokens of every row in float32.

    Args:
        hidden: The states of all tokens of a micro-batch, row after row.
        columns: The chosen columns of every row, counted from the row's start; -1 chooses nothing.
        row_starts: Where each row starts among the tokens.

    Returns:
        The mean over the chosen tokens, cast to float32 before it is taken; zero where none is chosen.
    """
    chosen = columns >= 0
    if len(hidden) == 0:
        return hidden.new_zeros(*columns.shape[:2], hidden.shape[1], dtype=torch.float32)
    # The index is only kept inside the tensor; padding may hold NaN, so it is overwritten, not multiplied by zero.
    positions = (row_starts[:, None, None] + columns.clamp(min=0)).clamp(max=len(hidden) - 1)
    states = hidden[positions].float().masked_fill(~chosen[..., None], 0.0)
    return states.sum(dim=2) / chosen.sum(dim=2, keepdim=True).clamp(min=1)


def last_true_columns(mask: Bool[Tensor, "rows columns"], *, count: int) -> Int[Tensor, "rows count"]:
    """Return the last `count` True columns of every row, in falling order, then -1 where there are fewer."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    found = torch.where(mask, columns, -1).topk(min(count, mask.shape[1]), dim=1).values
    return nn.functional.pad(found, (0, count - found.shape[1]), value=-1)


def default_layer(depth: int) -> int:
    """The decoder block that is read where none is named: at 0.6 of the depth."""
    return int(0.6 * depth)


def checked_layers(layers: Sequence[int] | None, *, depth: int) -> list[int]:
    """The decoder blocks to read; by default the one of `default_layer`.

    Raises:
        ValueError: If the model has no such block.
    """
    chosen = [default_layer(depth)] if layers is None else list(layers)
    for layer in chosen:
        if not 0 <= layer < depth:
            raise ValueError(f"layer {layer} is out of range: this model has layers 0 to {depth - 1}")
    return chosen


def decoder_blocks(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """Find the decoder of a causal language model and the list of its blocks.

    Wrappers are looked through: `.module` (DDP), PEFT's `get_base_model`. The decoder is `get_decoder()` or the usual
    attributes `model`, `transformer` and `gpt_neox`; its blocks are `layers`, `h` or `blocks`.

    Raises:
        TypeError: If there is no such list.
    """
    bare = _unwrapped(model)
    if callable(base := getattr(bare, "get_base_model", None)):
        bare = base()
    candidates = [get_decoder()] if callable(get_decoder := getattr(bare, "get_decoder", None)) else []
    candidates += [getattr(bare, name, None) for name in ("model", "transformer", "gpt_neox")] + [bare]
    for decoder in candidates:
        for name in ("layers", "h", "blocks"):
            blocks = getattr(decoder, name, None)
            if isinstance(decoder, nn.Module) and isinstance(blocks, nn.ModuleList) and len(blocks) > 0:
                return decoder, blocks
    raise TypeError(
        f"capture_hidden_states needs a model whose decoder blocks are found by get_decoder().layers, model.layers, "
        f"transformer.h, transformer.blocks or gpt_neox.layers; got {type(model).__name__}"
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model behind wrappers that keep it in `.module`."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def virtual_tokens(model: nn.Module) -> int:
    """How many columns prompt tuning and its like put before every row's own."""
    bare = _unwrapped(model)
    if not getattr(bare, "peft_config", None):
        return 0
    adapter: Any = bare.active_peft_config
    before = adapter.is_prompt_learning and str(adapter.peft_type.value) != "PREFIX_TUNING"
    return int(adapter.num_virtual_tokens) if before else 0


def _check_row_lengths(lengths: list[int], counted: Bool[Tensor, "rows columns"]) -> None:
    if len(lengths) != len(counted) or any(not 0 <= length <= counted.shape[1] for length in lengths):
        raise ValueError(
            f"row_lengths need {len(counted)} numbers from 0 to {counted.shape[1]} (the masks' rows and columns), "
            f"got {lengths}"
        )
    columns = torch.arange(counted.shape[1], device=counted.device)
    if bool((counted & (columns >= torch.tensor(lengths, device=counted.device)[:, None])).any()):
        raise ValueError("masks of a packed batch need to be right-padded, got True at or behind a row's length")
