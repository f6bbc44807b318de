"""Rows of a generation batch as poise sees them: the tokens that the policy sampled, and the prompt each belongs to.

TRL's completions may hold tokens of others: results of tools, observations of an environment, what a `rollout_func`
added. TRL tells them by a mask, one list a row. Nothing is read of them, and "the last tokens" are the last own ones.

Dimensions: B rollouts of this process, C completion columns.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from poise.batch import prompt_id

IMAGE_COLUMNS = ("image", "images")


def token_masks(
    completion_ids: Sequence[Sequence[int]], own: Sequence[Sequence[int]] | None, *, columns: int, device: torch.device
) -> tuple[Bool[Tensor, "B C"], Bool[Tensor, "B C"]]:
    """Where completions have a token, and where they have one that the policy sampled.

    Args:
        completion_ids: As TRL generated them, one list a row.
        own: TRL's mask of the policy's tokens, 1 or 0, one list a row; None where all are.
        columns: C.
        device: Where the masks shall lie.
    """
    places = torch.arange(columns)
    tokens = places < torch.tensor([len(ids) for ids in completion_ids])[:, None]
    sampled = tokens.clone()
    if own is not None:
        for row, mask in enumerate(own):
            sampled[row, : len(mask)] &= torch.tensor(list(mask), dtype=torch.bool)
    return tokens.to(device), sampled.to(device)


def prompt_key(row: Mapping[str, Any], *, whole: bool) -> str:
    """One string a distinct prompt of the data set, its pictures by their digests.

    An environment makes the task out of the whole row, and is not asked: what it adds to the prompt is no part of it.

    Args:
        row: As the data set gave it.
        whole: Whether the row is the prompt, and not only its column of that name.

    Raises:
        ValueError: If the row has no such column where it needs one; a stream tells its columns only then.
    """
    if not whole and "prompt" not in row:
        raise ValueError(f"the data set needs a column 'prompt', got {', '.join(sorted(row))}")
    pictures = {name: row[name] for name in IMAGE_COLUMNS if row.get(name) is not None}
    if not whole and not pictures and isinstance(row["prompt"], str):
        return prompt_id(row["prompt"])
    if whole:
        return _text(dict(row))
    return _text(list(row["prompt"])) + (_text(pictures) if pictures else "")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=_digest)


def _digest(value: Any) -> str:
    """What stands for something that has no text of its own."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "tobytes"):  # a picture or an array; its bytes do not tell its shape
        shape = f"{getattr(value, 'mode', '')}{getattr(value, 'size', '')}{getattr(value, 'shape', '')}"
        return hashlib.sha256(shape.encode() + value.tobytes()).hexdigest()
    return str(value)


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """A completion as text; of messages, the contents in order."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)
