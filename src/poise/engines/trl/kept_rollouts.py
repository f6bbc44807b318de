"""What is kept of a generation batch for people to read, beside rewards and baselines, and the time it took.

Gold answers, the parts of each reward, which completions were cut off, and where the policy hesitated: the entropy of
every token, with the characters that it stands for.

Dimensions: N rollouts of the generation batch over all processes, B of this process, C completion columns.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

GOLD_COLUMNS = ("answer", "solution", "ground_truth")
"""Columns of a data set that may hold the gold answer; the first that is there does."""
TOKENS_KEPT = 65_536
"""Tokens of a generation batch whose entropies are kept, of its first rollouts."""

TokenEntropies = tuple[list[int], list[float]]
"""Of one completion: characters, and entropy in nats, of each token."""


class Phases:
    """Seconds that the phases of a generation batch take, as metrics `poise/seconds_NAME`."""

    def __init__(self, metrics: dict[str, list[float]]) -> None:
        self._metrics = metrics

    @contextmanager
    def timed(self, name: str, wanted: bool = True) -> Iterator[None]:
        """Measure what happens inside, where it is wanted."""
        started = time.perf_counter()
        yield
        if wanted:
            self._metrics[f"poise/seconds_{name}"].append(time.perf_counter() - started)


def columns_for_people(
    inputs: Sequence[Mapping[str, Any]],
    completion_ids: Sequence[Sequence[int]],
    *,
    tokenizer: Any,
    ends: Sequence[int],
    entropies: Float[Tensor, "B C"] | None,
    most_tokens: int = TOKENS_KEPT,
) -> dict[str, list[Any]]:
    """`answers`, `truncated` and `token_entropies` of all N rollouts, as far as there are any.

    Args:
        inputs: Rows of the data set, one a rollout of this process.
        completion_ids: Of this process.
        tokenizer: Of the policy.
        ends: Tokens that end a completion.
        entropies: Of the pass over the rollouts; None where there was none.
        most_tokens: See `token_entropies`.
    """
    return {
        "answers": gather_object([gold_answer(row) for row in inputs]),
        "truncated": gather_object(are_truncated(completion_ids, [*ends, tokenizer.pad_token_id])),
        "token_entropies": gather_object(
            token_entropies(tokenizer, completion_ids, entropies, most_tokens=most_tokens)
        ),
    }


def gold_answer(row: Mapping[str, Any]) -> str | None:
    """The gold answer of a row of the data set as text; None where it has none."""
    return next((str(row[name]) for name in GOLD_COLUMNS if row.get(name) not in (None, "")), None)


def reward_parts(
    names: Sequence[str], rewards_per_func: Float[Tensor, "N functions"], rows: int
) -> list[dict[str, float]]:
    """For each rollout what every reward function gave; a function that gave nothing is left out."""
    columns = rewards_per_func[:rows].tolist()
    return [
        {name: reward for name, reward in zip(names, rewards, strict=True) if reward == reward} for rewards in columns
    ]


def are_truncated(completion_ids: Sequence[Sequence[int]], ends: Sequence[int | None]) -> list[bool]:
    """Whether each completion stops without one of the tokens that end it, as TRL counts."""
    return [bool(ids) and ids[-1] not in ends for ids in completion_ids]


def token_entropies(
    tokenizer: Any,
    completion_ids: Sequence[Sequence[int]],
    entropies: Float[Tensor, "B C"] | None,
    *,
    most_tokens: int = TOKENS_KEPT,
) -> list[TokenEntropies | None]:
    """Characters and entropies of each completion's tokens.

    None from the completion on that has no room among `most_tokens`, and where tokens one by one do not spell what they
    spell together, as with characters of several tokens.
    """
    kept: list[TokenEntropies | None] = [None] * len(completion_ids)
    if entropies is None:
        return kept
    pieces: dict[int, str] = {}
    for row, ids in enumerate(completion_ids):
        most_tokens -= len(ids)
        if most_tokens < 0:
            break
        for token in ids:
            if token not in pieces:
                pieces[token] = tokenizer.decode([token], skip_special_tokens=True)
        spelled = [pieces[token] for token in ids]
        if ids and "".join(spelled) == tokenizer.decode(list(ids), skip_special_tokens=True):
            kept[row] = [len(text) for text in spelled], entropies[row, : len(ids)].float().tolist()
    return kept
