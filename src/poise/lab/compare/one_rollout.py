"""Baselines for one rollout a prompt that read no hidden states: the rivals of preset `poise-single`.

None of them knows the rollout that it is subtracted from: they are made of earlier steps, or of another rollout.

Dimensions: N rollouts, P columns of prompts, C columns of completions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from poise.baselines import Step, step_of
from poise.batch import Batch


class RunningMean:
    """One number for all prompts: the mean reward of earlier steps, each step back counting 0.9 of the one after it.

        b_t = m_{t-1} / n_{t-1},   m_t = 0.9 m_{t-1} + sum_i r_i,   n_t = 0.9 n_{t-1} + N

    0 in the first step. Rollouts that could not be graded do not count.
    """

    DECAY = 0.9

    def __init__(self) -> None:
        self._total = self._count = 0.0

    @property
    def mean(self) -> float:
        """The baseline of the next step."""
        return self._total / self._count if self._count else 0.0

    def step(self, batch: Batch) -> Step:
        """Baselines of this batch; then learn from it."""
        step = step_of(batch, torch.full_like(batch.rewards, self.mean))
        self._total = self.DECAY * self._total + float(batch.rewards[batch.gradable].sum())
        self._count = self.DECAY * self._count + int(batch.gradable.sum())
        return step

    def state_dict(self) -> dict[str, Any]:
        """Sum and count."""
        return {"total": self._total, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._total, self._count = state["total"], state["count"]


class ValueTracker:
    """A Beta tracker for each prompt that forgets by how far the policy has moved (SPO, arXiv:2509.13232).

        b = alpha / (alpha + beta)
        rho = clip(2^(-D / D_half), 0.875, 0.96)
        alpha <- rho alpha + r,   beta <- rho beta + 1 - r,   for r in [0, 1]

    D is the divergence, in nats a token, of the policy of now from the one that was last asked this prompt. The
    authors begin with N_0 = 1 / (1 - 0.875) = 8 rollouts of every prompt, sampled before training. Here a new prompt
    begins with the running mean of all rewards (0.5 in the first step) in their place: nothing is sampled that the
    budget does not hold. Their sampling of prompts by uncertainty and their normalisation of advantages over the batch
    are no part of the baseline.
    """

    HALVING = 0.06
    LEAST_KEPT, MOST_KEPT = 0.875, 0.96
    FIRST_COUNT = 1 / (1 - LEAST_KEPT)

    def __init__(self) -> None:
        self._beliefs: dict[int, tuple[float, float]] = {}
        self._all = RunningMean()
        self._last: dict[int, tuple[Tensor, int, Tensor]] = {}  # key -> ids, completion's length, log-probabilities
        self._moved: dict[int, float] = {}

    def look(self, trainer: Any, scored: dict[str, Any], keys: Sequence[int]) -> None:
        """Measure D on the completions that these prompts got last, then keep those of now in their place."""
        old = {key: self._last[key] for key in keys if key in self._last}
        if old:
            sequences, columns, known = zip(*old.values(), strict=True)
            logprobs = _logprobs(trainer, sequences, max(columns))
            self._moved = {
                key: mean_divergence(before, after[len(after) - columns[row] :])
                for row, (key, before, after) in enumerate(zip(old, known, logprobs, strict=True))
            }
        now = scored.get("old_per_token_logps")  # TRL leaves them out where they are those of the update
        if now is None:
            ids, mask = (
                torch.cat([scored[f"{part}_{what}"] for part in ("prompt", "completion")], dim=1)
                for what in ("ids", "mask")
            )
            with torch.no_grad():
                now = trainer.logprobs(ids, mask, scored["completion_ids"].shape[1])
        prompt_mask, mask = scored["prompt_mask"].bool(), scored["completion_mask"].bool()
        for row, key in enumerate(keys):
            of_prompt, of_completion = scored["prompt_ids"][row, prompt_mask[row]], scored["completion_ids"][row]
            self._last[key] = (
                torch.cat([of_prompt, of_completion[mask[row]]]),
                int(mask[row].sum()),
                now[row, mask[row]],
            )

    def step(self, batch: Batch) -> Step:
        """Baselines of this batch; then learn from it."""
        mean = self._all.mean if self._beliefs else 0.5
        prior = (self.FIRST_COUNT * mean, self.FIRST_COUNT * (1 - mean))
        believed = {key: self._beliefs.get(key, prior) for key in batch.keys}
        values = torch.tensor([a / (a + b) for a, b in map(believed.__getitem__, batch.keys)], dtype=torch.float64)
        for key, (alpha, beta) in believed.items():
            kept = min(max(2 ** (-self._moved.get(key, 0.0) / self.HALVING), self.LEAST_KEPT), self.MOST_KEPT)
            mine = torch.tensor([each == key for each in batch.keys]) & batch.gradable
            right = float(batch.rewards[mine].sum())
            self._beliefs[key] = kept * alpha + right, kept * beta + int(mine.sum()) - right
        self._moved = {}
        self._all.step(batch)
        return step_of(batch, values, values)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a comparison begins anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class GreedyReward:
    """The reward of one greedy rollout of the prompt (ReMax, arXiv:2310.10505), which counts as sampled.

    0 where the greedy rollout could not be graded.
    """

    def __init__(self) -> None:
        self._earned: list[float] = []

    def look(self, trainer: Any, scored: dict[str, Any], keys: Sequence[int]) -> None:
        """Roll out each prompt once more, greedily."""
        first: dict[int, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        earned = dict(zip(first, trainer.greedy_rewards(list(first.values())), strict=True))
        self._earned = [earned[key] for key in keys]

    def step(self, batch: Batch) -> Step:
        """What the greedy rollouts earned."""
        return step_of(batch, torch.tensor(self._earned, dtype=torch.float64).nan_to_num(0.0))

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def mean_divergence(before: Float[Tensor, " tokens"], now: Float[Tensor, " tokens"]) -> float:
    """Estimate KL(before || now) a token from tokens that `before` sampled: the mean of e^d - 1 - d, d = now - before.

    Each term is at least 0, and its expectation is the divergence of its position.
    """
    change = (now - before).double()
    return float((change.exp() - 1 - change).mean()) if len(change) else 0.0


def _logprobs(trainer: Any, rows: Sequence[Tensor], columns: int) -> Float[Tensor, "N columns"]:
    """Log-probabilities, by the trainer's policy of now, of the last `columns` tokens of each row."""
    ids = torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_side="left", padding_value=trainer.processing_class.pad_token_id
    )
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    mask: Bool[Tensor, "N C"] = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - lengths[:, None]
    with torch.no_grad():
        logprobs: Tensor = trainer.logprobs(ids, mask.long(), columns)
    return logprobs
