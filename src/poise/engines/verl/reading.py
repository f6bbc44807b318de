"""Features of rollouts, read in the forward pass over one micro-batch.

Hidden states are pooled where they are, and only (rows, width) is kept. In the packed layout a process may
see a part of the tokens (Ulysses sequence parallelism): the tokens to pool are chosen on whole rollouts, each process
sums those that it sees, and sums and counts are added up over the group.

Sequences are verl's nested rows: a prompt, then its response. `response_mask` is 1 on tokens that the policy sampled;
what tools or users said in between is no part of a segment.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce

from poise.features.hidden_states import HiddenStateCapture, capture_hidden_states
from poise.features.rollout_features import mean_entropies, reasoning_mask, score_norm_weights

READING = "poise_reading"
"""Name under which a batch carries its `ReadingRequest`, as a mapping."""

FIELDS = ("poise_prompt", "poise_completion", "poise_entropies", "poise_missing", "poise_weights")
"""Names of what was read, one row a rollout: the fields of `poise.Features`, and score-norm weights."""


@dataclass(frozen=True)
class ReadingRequest:
    """What to read."""

    layers: Sequence[int]
    pool_tokens: int
    end_of_thinking_ids: Sequence[int]
    loss_normalization: str


@dataclass(frozen=True)
class SequenceShard:
    """Which part of the packed tokens a process sees: that of `rank` in `group`; by default all of them."""

    rank: int = 0
    group: ProcessGroup | None = None


class MicroBatchReading:
    """The features and weights of a micro-batch, read around one forward pass.

    Args:
        micro_batch: verl's micro-batch: nested `input_ids`, `prompts`, `response_mask`.
        request: What to read.
    """

    def __init__(self, micro_batch: TensorDict, request: ReadingRequest) -> None:
        self._request = request
        self._lengths = micro_batch["input_ids"].offsets().diff().cpu()
        columns = torch.arange(int(self._lengths.max()))
        self._is_token = columns < self._lengths[:, None]
        is_prompt = columns < micro_batch["prompts"].offsets().diff().cpu()[:, None]
        is_response = self._is_token & ~is_prompt
        completion = is_response.clone()
        completion[is_response] = micro_batch["response_mask"].values().cpu().bool()
        self._prompt, self._completion = is_prompt, completion
        self._reasoning, self._answer = reasoning_mask(
            padded(micro_batch["input_ids"].cpu(), self._is_token),
            completion,
            end_of_thinking_ids=request.end_of_thinking_ids,
        )
        self._capture: HiddenStateCapture | None = None

    @contextmanager
    def hooks(
        self, model: nn.Module, seen_ids: Int[Tensor, "seen_rows seen_columns"], shard: SequenceShard | None
    ) -> Iterator[None]:
        """Hooks in the model for one forward pass.

        Args:
            model: The policy.
            seen_ids: The ids that the model is given in this process: padded rows, or one packed row.
            shard: Which part of the packed tokens that is; `None` where rows are padded.
        """
        self._shard = shard
        prompt = last_tokens(self._prompt, count=self._request.pool_tokens)
        reasoning = last_tokens(self._reasoning, count=self._request.pool_tokens)
        lengths = None
        if shard is not None:
            size = seen_ids.shape[1]
            starts, lengths = shares_of_rows(self._lengths, first=shard.rank * size, size=size)
            prompt, reasoning = (columns_of(mask, starts, lengths) for mask in (prompt, reasoning))
        self._counts = torch.stack([prompt, reasoning]).sum(dim=2)
        self._columns = prompt.shape[1]
        with capture_hidden_states(
            model,
            prompt,
            reasoning,
            layers=self._request.layers,
            pool_tokens=self._request.pool_tokens,
            row_lengths=lengths,
        ) as self._capture:
            yield

    def outputs(self, logprobs: Tensor, entropies: Tensor) -> dict[str, Tensor]:
        """What was read, by the names in `FIELDS`.

        Args:
            logprobs: Nested, of all tokens of every row, each one column before the token that is predicted.
            entropies: In nats, likewise.
        """
        device = logprobs.device
        logprobs, entropies = (
            padded(values, self._is_token.to(device)).roll(1, dims=1)  # to the token that is predicted
            for values in (logprobs, entropies)
        )
        completion = self._completion.to(device)
        means = mean_entropies(entropies, completion, self._reasoning.to(device), self._answer.to(device))
        weights = score_norm_weights(
            logprobs, entropies, completion, loss_normalization=self._request.loss_normalization
        )
        segments = (self._prompt, self._completion, self._reasoning, self._answer)
        missing = torch.stack([~mask.any(dim=1) for mask in segments], dim=1).to(torch.uint8)
        return dict(zip(FIELDS, (*self._pooled_states(), means, missing, weights[:, None]), strict=True))

    def _pooled_states(self) -> Float[Tensor, "2 rows width"]:
        """Mean states of prompt and reasoning over the tokens that were chosen, of all processes."""
        assert self._capture is not None
        seen = self._capture.features(torch.zeros(self._counts.shape[1], self._columns))
        means, rows = torch.stack([seen.prompt, seen.completion]), len(self._lengths)
        if self._shard is not None and self._shard.group is not None:
            counts = self._counts.to(means)[:, :, None]
            sums = torch.cat([means * counts, counts], dim=2)
            all_reduce(sums, group=self._shard.group)
            means = sums[:, :, :-1] / sums[:, :, -1:].clamp(min=1)
        return means[:, :rows]


def last_tokens(mask: Bool[Tensor, "rows columns"], *, count: int) -> Bool[Tensor, "rows columns"]:
    """Keep True on the last `count` tokens of every row."""
    return mask & (mask.flip(1).cumsum(dim=1).flip(1) <= count)


def shares_of_rows(
    lengths: Int[Tensor, " rows"], *, first: int, size: int
) -> tuple[Int[Tensor, " rows_and_padding"], Int[Tensor, " rows_and_padding"]]:
    """Which columns of each row lie among `size` packed tokens from the token `first` on.

    Returns:
        For every row its first such column and their number; then the same of the padding behind the rows.
    """
    begins = lengths.cumsum(dim=0) - lengths
    starts = (first - begins).clamp(min=0).minimum(lengths)
    counts = (first + size - begins).clamp(min=0).minimum(lengths) - starts
    padding = size - int(counts.sum())
    return torch.cat([starts, starts.new_zeros(1)]), torch.cat([counts, counts.new_tensor([padding])])


def columns_of(
    mask: Bool[Tensor, "rows columns"],
    starts: Int[Tensor, " rows_and_padding"],
    counts: Int[Tensor, " rows_and_padding"],
) -> Bool[Tensor, "rows_and_padding most"]:
    """Cut `counts` columns out of each row, from its column in `starts` on; behind the rows stands padding."""
    offsets = torch.arange(int(counts.max()))
    inside = (offsets < counts[:, None])[:-1]
    cut = mask.gather(1, (starts[:-1, None] + offsets).clamp(max=mask.shape[1] - 1)) & inside
    return torch.cat([cut, cut.new_zeros(1, cut.shape[1])])


def padded(nested: Tensor, is_token: Bool[Tensor, "rows columns"]) -> Tensor:
    """Nested rows as one tensor, padded with zeros to the right; `is_token` is True on their columns."""
    rows = nested.values().new_zeros(is_token.shape)
    rows[is_token] = nested.values()
    return rows
