"""A separate value model, as large as the policy.

A copy of the policy's decoder with a linear head, fine-tuned on rewards: what PPO pays for, and what a probe on the
policy's own states is measured against. It reads either the prompt alone (the paper's critic: last prompt token,
sigmoid, binary cross-entropy; arXiv:2605.07579, section 5) or prompt and completion.

A critic that has read a rollout may not judge that rollout. The second kind is trained and used across rollouts, as the
probe is: the target of a row is its siblings' mean reward (`poise.baselines.sibling_means`), and the
baseline of a rollout is the mean value of its siblings (`poise.baselines.cross_rollout_baselines`).
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from poise.features.hidden_states import decoder_blocks

HEAD_LEARNING_RATE_FACTOR = 30.0
"""The head starts at zero, and until it has moved the decoder has no gradient: it learns faster by this factor."""

_CLIPPED_NORM = 1.0
_PATIENCE = 2  # epochs in a row without a lower error, after which training stops
_VALUES_BATCH_FACTOR = 4  # without gradients a batch may be larger


@dataclass(frozen=True)
class CriticFit:
    """What one call of `SequenceCritic.fit` did, and what it took."""

    losses: list[float]
    """Mean binary cross-entropy of each epoch's batches, in nats."""
    held_back_errors: list[float]
    """Mean squared error on the held-back prompts, before the first epoch and after each; empty without them."""
    seconds: float
    """Of wall-clock time."""
    cpu_seconds: float
    """Of all cores together."""
    extra_bytes: int
    """Parameters, gradients and optimizer state; the policy itself is not counted."""


class SequenceCritic(nn.Module):
    """A value in [0, 1] for every token sequence, by a model of the policy's size.

    Args:
        policy: A causal language model of `transformers`; its decoder is copied, in float32, and is left alone.
        mean_rate: The value of every sequence before training.

    Raises:
        ValueError: If the rate is not between 0 and 1.
        TypeError: If the policy has no decoder that can be found.
    """

    def __init__(self, policy: nn.Module, *, mean_rate: float = 0.5) -> None:
        super().__init__()
        if not 0 < mean_rate < 1:
            raise ValueError(f"a critic starts at a rate between 0 and 1, got {mean_rate:g}")
        decoder, _ = decoder_blocks(policy)
        self.decoder = copy.deepcopy(decoder).float().requires_grad_(True).eval()  # dropout stays off
        width = int(decoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.head = nn.Linear(width, 1, device=next(decoder.parameters()).device)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, float(torch.logit(torch.tensor(mean_rate, dtype=torch.float64))))
        self._optimizer: torch.optim.AdamW | None = None

    def forward(self, input_ids: Int[Tensor, "rows columns"], attention_mask: Tensor) -> Float[Tensor, " rows"]:
        """The logit of each row's value, read at its last attended token; padding may stand on either side.

        Raises:
            ValueError: If a row has no token.
        """
        attended = attention_mask.bool()
        if not bool(attended.any(dim=1).all()):
            raise ValueError("a critic reads rows of at least 1 token, got a row without any")
        positions = (attended.long().cumsum(dim=1) - 1).clamp(min=0)
        states = self.decoder(
            input_ids=input_ids, attention_mask=attended.long(), position_ids=positions, use_cache=False
        ).last_hidden_state
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(attended, columns, 0).amax(dim=1)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        logits: Tensor = self.head(states[rows, last])[:, 0]
        return logits

    def fit(
        self,
        sequences: Sequence[Sequence[int]],
        targets: Float[Tensor, " rows"],
        *,
        epochs: int = 1,
        learning_rate: float = 3e-5,
        batch_size: int = 16,
        seed: int = 0,
        groups: Int[Tensor, " rows"] | None = None,
        held_back: float = 0.0,
        watch: Callable[[int, int], None] = lambda done, total: None,
        after_epoch: Callable[["SequenceCritic"], None] = lambda critic: None,
    ) -> CriticFit:
        """Minimise the binary cross-entropy of values and targets by AdamW; a later call goes on with its moments.

            L = mean_i -[t_i log v_i + (1 - t_i) log(1 - v_i)]

        Rows of like length share a batch. The same for the same sequences, targets and seed.

        Args:
            sequences: Token ids of each row, without padding.
            targets: From 0 to 1; soft ones are meant to be.
            epochs: At most so many passes over the rows.
            learning_rate: Of the decoder; the head's is `HEAD_LEARNING_RATE_FACTOR` times larger.
            batch_size: Rows.
            seed: Of the order of rows and of the choice of prompts that are held back.
            groups: The prompt of each row; needed to hold back some. Default: every row is a prompt of its own.
            held_back: Share of prompts that are not trained on. The weights with their lowest squared error are kept,
                and training stops after two epochs in a row that do not lower it. Their cross-entropy would choose
                otherwise: a few values that are sure and wrong outweigh all that are near.
            watch: Told how many batches are done, and how many there are at most, before the first and after each.
            after_epoch: Given this critic after each epoch, with that epoch's weights; its time is not counted.

        Raises:
            ValueError: If there are no rows, lengths differ, a sequence is empty, a target lies outside 0 to 1, or
                the share that is held back leaves no prompt on one of the two sides.
        """
        targets = self._checked(sequences, targets)
        fitted, judged = _split_by_prompt(len(sequences), groups, share=held_back, seed=seed)
        optimizer = self._set_optimizer(learning_rate)
        generator = torch.Generator().manual_seed(seed)
        wall, cpu = time.perf_counter(), time.process_time()
        losses: list[float] = []
        held_back_errors = [self._error(sequences, targets, judged, batch_size)] if judged else []
        best = copy.deepcopy(self.state_dict()) if judged else None
        total = epochs * -(-len(fitted) // batch_size)
        done = 0
        watch(done, total)
        for _ in range(epochs):
            summed = 0.0
            for rows in _batches_of_like_length(sequences, fitted, batch_size, generator):
                loss = binary_cross_entropy_with_logits(
                    self(*self._padded([sequences[row] for row in rows])), targets[rows]
                )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters(), _CLIPPED_NORM)
                optimizer.step()
                summed += loss.item() * len(rows)
                done += 1
                watch(done, total)
            losses.append(summed / len(fitted))
            paused = time.perf_counter(), time.process_time()
            after_epoch(self)
            wall, cpu = wall + time.perf_counter() - paused[0], cpu + time.process_time() - paused[1]
            if best is not None:
                held_back_errors.append(self._error(sequences, targets, judged, batch_size))
                if held_back_errors[-1] < min(held_back_errors[:-1]):
                    best = copy.deepcopy(self.state_dict())
                elif min(held_back_errors[-_PATIENCE:]) > min(held_back_errors):
                    break
        if best is not None:
            self.load_state_dict(best)
        return CriticFit(
            losses, held_back_errors, time.perf_counter() - wall, time.process_time() - cpu, self._extra_bytes()
        )

    @torch.no_grad()
    def values(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        batch_size: int = 64,
        watch: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float[Tensor, " rows"]:
        """The value of each sequence, on the CPU in float64, in the order given.

        Args:
            sequences: Token ids of each row, without padding.
            batch_size: Rows.
            watch: Told how many batches are done, and how many there are, before the first and after each.
        """
        out = torch.empty(len(sequences), dtype=torch.float64)
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
        batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        watch(0, len(batches))
        for done, rows in enumerate(batches, start=1):
            out[rows] = self(*self._padded([sequences[row] for row in rows])).sigmoid().double().cpu()
            watch(done, len(batches))
        return out

    def _checked(self, sequences: Sequence[Sequence[int]], targets: Tensor) -> Float[Tensor, " rows"]:
        if not len(sequences) or len(sequences) != len(targets):
            raise ValueError(
                f"a critic is fitted on 1 row or more with a target each, got {len(sequences)} sequences and "
                f"{len(targets)} targets"
            )
        if not all(len(sequence) for sequence in sequences):
            raise ValueError("a critic reads rows of at least 1 token, got a row without any")
        if not bool(((targets >= 0) & (targets <= 1)).all()):  # false for NaN too
            raise ValueError("a critic's targets must lie between 0 and 1, got one that does not")
        return targets.to(self.head.weight.device, torch.float32)

    def _set_optimizer(self, learning_rate: float) -> torch.optim.AdamW:
        if self._optimizer is None:
            groups = [{"params": list(part.parameters())} for part in (self.decoder, self.head)]
            self._optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0)
        for group, factor in zip(self._optimizer.param_groups, (1.0, HEAD_LEARNING_RATE_FACTOR), strict=True):
            group["lr"] = factor * learning_rate
        return self._optimizer

    def _padded(
        self, sequences: Sequence[Sequence[int]]
    ) -> tuple[Int[Tensor, "rows columns"], Int[Tensor, "rows columns"]]:
        device = self.head.weight.device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(list(each)) for each in sequences], batch_first=True)
        lengths = torch.tensor([len(each) for each in sequences])
        return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)

    def _error(
        self, sequences: Sequence[Sequence[int]], targets: Float[Tensor, " rows"], rows: list[int], batch_size: int
    ) -> float:
        """Mean squared error of some rows."""
        values = self.values([sequences[row] for row in rows], batch_size=_VALUES_BATCH_FACTOR * batch_size)
        return float(((values - targets[rows].cpu().double()) ** 2).mean())

    def _extra_bytes(self) -> int:
        held: list[Tensor] = list(self.parameters())
        held += [each.grad for each in self.parameters() if each.grad is not None]
        for state in self._optimizer.state.values() if self._optimizer else ():
            held += [each for each in state.values() if isinstance(each, Tensor)]
        return sum(each.numel() * each.element_size() for each in held)


def _split_by_prompt(
    num_rows: int, groups: Int[Tensor, " rows"] | None, *, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Rows to fit, and rows of the prompts that are held back."""
    groups = torch.arange(num_rows) if groups is None else groups
    prompts = groups.unique()
    if share == 0:
        return list(range(num_rows)), []
    chosen = prompts[torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))]
    held = torch.isin(groups, chosen[: round(share * len(prompts))])
    fitted, judged = (~held).nonzero()[:, 0].tolist(), held.nonzero()[:, 0].tolist()
    if not fitted or not judged:
        raise ValueError(f"a share of {share:g} of {len(prompts)} prompts leaves none on one side of the split")
    return fitted, judged


def _batches_of_like_length(
    sequences: Sequence[Sequence[int]], rows: Sequence[int], batch_size: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Batches of rows of like length, in random order; which of equal rows share a batch is random too."""
    shuffled = [rows[k] for k in torch.randperm(len(rows), generator=generator).tolist()]
    by_length = sorted(shuffled, key=lambda row: len(sequences[row]))
    batches = [by_length[first : first + batch_size] for first in range(0, len(by_length), batch_size)]
    for k in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[k]
