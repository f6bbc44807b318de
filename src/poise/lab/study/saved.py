"""Which rollouts has a training run saved, and what does a model's forward pass tell about them?

The rule: a file of something else (another version, another model, another task) is refused with one sentence, before
anything is computed from it.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import poise
from poise.baselines import prompt_groups
from poise.features.hidden_states import checked_layers, decoder_blocks
from poise.features.rollout_features import MEAN_ENTROPIES, end_of_thinking_ids
from poise.features.scalars import SCALARS
from poise.lab.study.reading import reading
from poise.storage.run_directory import ROLLOUTS_SCHEMA_VERSION
from poise.tasks.embedded import END_OF_THINKING

COLUMNS = ("step", "prompt", "completion", "domain", "reward")
"""Columns of a run's rollout files that are read."""
FEWEST_PROMPTS = 16


@dataclass(frozen=True)
class SavedRollouts:
    """Rollouts of a run, one entry each."""

    prompts: list[str]
    completions: list[str]
    domains: list[str]
    rewards: Float[Tensor, " rows"]
    """NaN where ungradable."""
    groups: Int[Tensor, " rows"]
    """Rollouts of one prompt in one step are siblings."""

    @property
    def gradable(self) -> Bool[Tensor, " rows"]:
        """Whether each could be graded."""
        return ~self.rewards.isnan()


def saved_rollouts(paths: Sequence[Path]) -> SavedRollouts:
    """Read rollout files of a run, `runs/NAME/rollouts/step-000123.parquet`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is not one of a run, of another version, or too little is in it to compare baselines.
    """
    lines = [line for path in paths for line in _lines(path)]
    groups = prompt_groups([(line["step"], line["prompt"]) for line in lines])
    rewards = torch.tensor([math.nan if r["reward"] is None else r["reward"] for r in lines], dtype=torch.float64)
    gradable = ~rewards.isnan()
    sizes = torch.bincount(groups[gradable])
    if not (sizes > 1).any():
        raise ValueError("no prompt has two graded rollouts: baselines are compared by pairs of them")
    if int((sizes > 1).sum()) < FEWEST_PROMPTS:
        raise ValueError(
            f"baselines are compared on {FEWEST_PROMPTS} prompts with two graded rollouts or more, got "
            f"{int((sizes > 1).sum())}: give more files"
        )
    if bool((rewards[gradable] == rewards[gradable][0]).all()):
        raise ValueError(
            f"every rollout earned {float(rewards[gradable][0]):g}: rewards that are all equal say nothing about any "
            "baseline"
        )
    return SavedRollouts(
        [line["prompt"] for line in lines],
        [line["completion"] for line in lines],
        [line["domain"] or "" for line in lines],
        rewards,
        groups,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is no parquet file: {(str(error).splitlines() or ['no reason given'])[0]}") from error
    missing = [name for name in COLUMNS if name not in table.schema.names]
    if missing:
        raise ValueError(f"{path} holds no rollouts of a run: it lacks the columns {', '.join(missing)}")
    version = (table.schema.metadata or {}).get(b"poise_schema_version", b"none").decode(errors="replace")
    if version != str(ROLLOUTS_SCHEMA_VERSION):
        raise ValueError(f"{path} has schema version {version}, and this poise reads {ROLLOUTS_SCHEMA_VERSION}")
    lines: list[dict[str, Any]] = table.select(list(COLUMNS)).to_pylist()
    return lines


def saved_features(
    rollouts: SavedRollouts,
    policy: Any,
    tokenizer: Any,
    *,
    model: str,
    layer: int | None = None,
    pool_tokens: int = 10,
    temperature: float = 1.0,
    watch: Callable[[int], None] = lambda num_rows: None,
) -> tuple[poise.Features, Float[Tensor, " rows"]]:
    """Features and score-norm weights of saved rollouts, read anew; a completion is taken to have ended by itself.

    Args:
        rollouts: Their texts are spelled again.
        policy, tokenizer: Of the model that drew them, or a later one.
        model: Its name, for the sentence.
        layer: Default: the one at 0.6 of the depth.
        pool_tokens, temperature: As in training.
        watch: Told how many rollouts are read.

    Raises:
        ValueError: If the tokenizer cannot spell a prompt or a completion, or there is no such layer.
    """
    depth = len(decoder_blocks(policy)[1])
    layers = checked_layers(None if layer is None else [layer], depth=depth)
    prompts = [_spelled(_prompt_text(text, tokenizer), tokenizer, "prompt", model=model) for text in rollouts.prompts]
    completions = [
        [*_spelled(text, tokenizer, "completion", model=model, special=False), tokenizer.eos_token_id]
        for text in rollouts.completions
    ]
    read = reading(
        policy,
        prompts,
        completions,
        layers=layers,
        pools=[pool_tokens],
        end_of_thinking_ids=end_of_thinking_ids(tokenizer, END_OF_THINKING),
        temperature=temperature,
        watch=watch,
    )
    scalars = dict(zip(SCALARS, read.scalars.T, strict=True))
    features = poise.Features(
        prompt=read.prompt[pool_tokens][:, 0],
        completion=read.completion[pool_tokens][:, 0],
        entropies=torch.stack([scalars[name] for name in MEAN_ENTROPIES], dim=1),
        missing=torch.zeros(len(prompts), 4, dtype=torch.bool),
        scalars=scalars,
    )
    return features, read.weights


def _prompt_text(prompt: str, tokenizer: Any) -> str | list[dict[str, str]]:
    """A prompt as it was saved: text, or messages as JSON."""
    try:
        messages = json.loads(prompt)
    except ValueError:
        return prompt
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
        return messages
    return prompt


def _spelled(
    text: str | list[dict[str, str]], tokenizer: Any, what: str, *, model: str, special: bool = True
) -> list[int]:
    """Token ids of a text, or of a chat up to where the completion begins."""
    if not isinstance(text, str):
        if not tokenizer.chat_template:
            raise ValueError(f"the rollouts have chats as prompts, and the tokenizer of {model} has no chat template")
        text, special = tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=True), False
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    if (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids) or (what == "prompt" and not ids):
        raise ValueError(
            f"the tokenizer of {model} cannot spell the {what} {text[:60]!r}: these rollouts are of another model or "
            "task"
        )
    return ids
