"""The files of rollouts that a run keeps: their columns, and how they are written and read.

A file holds one generation batch. Files of version 1 lack the columns from `answer` on, which are null then.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from poise.storage.whole_files import written_whole

ROLLOUTS_SCHEMA_VERSION = 2
"""Raised whenever a column of the rollout files changes its name, type or meaning, or comes anew."""

ROLLOUTS_SCHEMA = pyarrow.schema(
    [
        ("step", pyarrow.int64()),  # the first step that is trained on the rollout, as in metrics.jsonl
        ("prompt", pyarrow.string()),
        ("completion", pyarrow.string()),
        ("domain", pyarrow.string()),
        ("reward", pyarrow.float64()),  # null where the rollout could not be graded
        ("value", pyarrow.float64()),  # null for presets without values
        ("baseline", pyarrow.float64()),
        ("advantage", pyarrow.float64()),
        ("sibling", pyarrow.int64()),  # row of another rollout of the same prompt, in this file; null without one
        # From version 2 on; each is null where it is not known.
        ("answer", pyarrow.string()),  # the gold answer
        ("parts", pyarrow.map_(pyarrow.string(), pyarrow.float64())),  # what each reward function gave
        ("truncated", pyarrow.bool_()),  # cut off at the largest length
        ("weight", pyarrow.float64()),  # of the rollout in the fit of the baselines
        ("token_lengths", pyarrow.list_(pyarrow.int32())),  # characters of the completion's tokens
        ("token_entropies", pyarrow.list_(pyarrow.float32())),  # in nats
    ],
    metadata={"poise_schema_version": str(ROLLOUTS_SCHEMA_VERSION)},
)
READ_VERSIONS = ("1", str(ROLLOUTS_SCHEMA_VERSION))
FIRST_COLUMNS = 9
"""Of version 1."""


def write_rollouts(
    path: Path,
    step: int,
    *,
    prompts: Sequence[str],
    completions: Sequence[str],
    domains: Sequence[str | None],
    rewards: Sequence[float],
    values: Sequence[float],
    baselines: Sequence[float],
    advantages: Sequence[float],
    answers: Sequence[str | None] | None = None,
    parts: Sequence[Mapping[str, float]] | None = None,
    truncated: Sequence[bool] | None = None,
    weights: Sequence[float | None] | None = None,
    token_entropies: Sequence[tuple[Sequence[int], Sequence[float]] | None] | None = None,
) -> None:
    """Write one generation batch; NaN becomes null.

    Args:
        path: Of the file, `rollouts/step-000123.parquet`.
        step: The first step that is trained on these rollouts.
        prompts: Rollouts of equal prompts are siblings.
        completions, domains, rewards, values, baselines, advantages: One entry a rollout.
        answers, parts, truncated, weights: The same; None where they are not known.
        token_entropies: For each rollout the characters and the entropies of its tokens, or None.
    """
    unknown = [None] * len(prompts)
    tokens = [each or (None, None) for each in token_entropies or unknown]
    columns = {
        "step": [step] * len(prompts),
        "prompt": list(prompts),
        "completion": list(completions),
        "domain": list(domains),
        "reward": finite(rewards),
        "value": finite(values),
        "baseline": finite(baselines),
        "advantage": finite(advantages),
        "sibling": sibling_rows(prompts),
        "answer": unknown if answers is None else list(answers),
        "parts": unknown if parts is None else [finite(each) for each in parts],
        "truncated": unknown if truncated is None else list(truncated),
        "weight": unknown if weights is None else finite(weights),
        "token_lengths": [lengths for lengths, _ in tokens],
        "token_entropies": [entropies for _, entropies in tokens],
    }
    with written_whole(path) as place:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=ROLLOUTS_SCHEMA), place)


def rollout_table(path: Path) -> pyarrow.Table:
    """A file of rollouts with the columns of `ROLLOUTS_SCHEMA`; those that its version lacks are null.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or of a later version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        table = pyarrow.parquet.ParquetFile(path).read()  # `read_table` would load pandas
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is no parquet file: {(str(error).splitlines() or ['no reason given'])[0]}") from error
    version = (table.schema.metadata or {}).get(b"poise_schema_version", b"none").decode(errors="replace")
    needed = ROLLOUTS_SCHEMA.names[: None if version == str(ROLLOUTS_SCHEMA_VERSION) else FIRST_COLUMNS]
    if missing := [name for name in needed if name not in table.schema.names]:
        raise ValueError(f"{path} holds no rollouts of a run: it lacks the columns {', '.join(missing)}")
    if version not in READ_VERSIONS:
        raise ValueError(
            f"{path} has schema version {version}, and this poise reads {' and '.join(READ_VERSIONS)}: a newer poise "
            "can read it"
        )
    for field in ROLLOUTS_SCHEMA:
        if field.name not in table.schema.names:
            table = table.append_column(field, pyarrow.nulls(len(table), field.type))
    return table.select(ROLLOUTS_SCHEMA.names)


def rollout_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of rollouts; errors as `rollout_table`."""
    lines: list[dict[str, Any]] = rollout_table(path).to_pylist()
    return lines


def sibling_rows(prompts: Sequence[str]) -> list[int | None]:
    """For each row, the next one with the same prompt, from the last on to the first; None where there is no other."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    following: list[int | None] = [None] * len(prompts)
    for group in rows.values():
        if len(group) > 1:
            for row, sibling in zip(group, group[1:] + group[:1], strict=True):
                following[row] = sibling
    return following


def finite(value: Any) -> Any:
    """The same with None in place of numbers that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
