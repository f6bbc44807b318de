"""How does a generator of reasoning-gym become a source of problems?

The rule: what the data set needs to score an answer travels with the problem, as JSON text that keeps tuples tuples, so
that any process can score it; and one side of the split never holds a prompt of the other.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from poise.tasks.problem import Problem, ProblemSource, split_of

PROBLEMS_A_SEED = 500
"""Problem i of a data set of reasoning-gym is drawn with its seed + i: seeds must lie further apart than that."""
OWN_OPTIONS = ("instruction", "extract")
"""Options of a task that are no fields of the data set's configuration."""
EXTRACTS = ("all", "line", "word", "number")
"""What of a completion is scored: all that is not thinking, or its first line, word or number."""
LONGEST_SEARCH = 2_000
"""Draws in a row that may all fall on the wrong side of the split."""


def reasoning_gym_problems(name: str, options: Mapping[str, str]) -> ProblemSource:
    """A source of problems.

    Args:
        name: Of the data set, such as "chain_sum".
        options: Fields of its configuration, as texts; `instruction`, a text to put after every question; and
            `extract`, what of a completion is its answer (see `EXTRACTS`).

    Raises:
        ValueError: If reasoning-gym is not installed, or has no such data set, or the data set no such configuration.
    """
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(
            "tasks of reasoning-gym need the package reasoning-gym: `pip install reasoning-gym`"
        ) from error
    if name not in DATASETS:
        closest = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.5)
        hint = f"; the closest is {closest[0]}" if closest else ""
        raise ValueError(f"reasoning-gym has no data set {name!r}{hint}")
    settings = {field: yaml.safe_load(value) for field, value in options.items() if field not in OWN_OPTIONS}
    instruction, extract = options.get("instruction", ""), options.get("extract", "all")
    if extract not in EXTRACTS:
        raise ValueError(f"extract needs one of {', '.join(EXTRACTS)}, got {extract!r}")
    _, config_class = DATASETS[name]
    fields = [field.name for field in dataclasses.fields(config_class) if field.name not in ("seed", "size")]
    if unknown := [field for field in settings if field not in fields]:
        raise ValueError(f"{name} of reasoning-gym has fields {', '.join(fields)}, got {', '.join(unknown)}")
    data_set(name, settings, seed=0, size=1)  # refuses a wrong configuration

    def problems(num: int, *, seed: int, split: str = "train") -> list[Problem]:
        if split not in ("train", "heldout"):
            raise ValueError(f"split needs 'train' or 'heldout', got {split!r}")
        drawn: list[Problem] = []
        chunk = in_vain = 0
        while len(drawn) < num:
            text = f"poise {name} {split} {seed} {chunk}"
            chunk_seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") // 2
            source = data_set(name, settings, seed=chunk_seed, size=PROBLEMS_A_SEED)
            for place in range(PROBLEMS_A_SEED):
                entry = source[place]
                if split_of(entry["question"]) == split:
                    drawn.append(_problem(name, settings, entry, instruction=instruction, extract=extract))
                    in_vain = 0
                else:
                    in_vain += 1
                if len(drawn) == num:
                    break
                if in_vain > LONGEST_SEARCH:
                    raise ValueError(f"{name} with this configuration has too few questions to hold some of them out")
            chunk += 1
        return drawn

    return problems


def _problem(
    name: str, settings: Mapping[str, Any], entry: Mapping[str, Any], *, instruction: str, extract: str
) -> Problem:
    question = entry["question"] + (f"\n\n{instruction}" if instruction else "")
    details = {"data_set": name, "settings": dict(settings), "entry": dict(entry), "extract": extract}
    answer = entry["answer"] if isinstance(entry["answer"], str) else ""
    return Problem(question, answer, name, verifier="reasoning-gym", details=json_text(details))


def data_set(name: str, settings: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """A data set of reasoning-gym.

    Raises:
        ValueError: If it does not take the settings.
    """
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym refuses this configuration of {name}: {error}") from error


def json_text(value: Any) -> str:
    """A value of plain types as JSON; tuples and mappings with keys that are no text come back as they were."""
    return json.dumps(_tagged(value))


def json_value(text: str) -> Any:
    """What `json_text` was given."""
    return _untagged(json.loads(text))


def _tagged(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_tagged(each) for each in value]}
    if isinstance(value, list):
        return [_tagged(each) for each in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _tagged(each) for key, each in value.items()}
        return {"__pairs__": [[_tagged(key), _tagged(each)] for key, each in value.items()]}
    return value


def _untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [_untagged(each) for each in value]
    if isinstance(value, dict):
        if set(value) == {"__tuple__"}:
            return tuple(_untagged(each) for each in value["__tuple__"])
        if set(value) == {"__pairs__"}:
            return {_untagged(key): _untagged(each) for key, each in value["__pairs__"]}
        return {key: _untagged(each) for key, each in value.items()}
    return value
