"""Generators of reasoning-gym as sources of problems, the same ones in every process.

What the data set needs to score an answer travels with the problem, as JSON text that keeps tuples tuples, so that any
process can score it. One side of the split never holds a prompt of the other, and no held-out prompt comes twice.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
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
LONGEST_REPETITION = 500
"""Draws in a row that may all repeat held-out prompts, before a task is taken to have no more of them."""
SET_ORDERED = frozenset(
    {"isomorphic_strings", "knight_swap", "list_functions", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
"""Data sets that iterate over sets of texts, so that the same seed gives others under another hash seed of Python."""
REFUSED = {
    "codeio": "gives other problems at every draw and writes into the working folder",
    "composite": "is a mixture: name its parts, as in reasoning-gym:gcd + reasoning-gym:lcm",
    "game_of_life_halting": "gives full marks to any answer",
}
"""Data sets that cannot be trained on, and why."""


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
            "tasks of reasoning-gym need the package reasoning-gym: pip install 'poise-rlvr[tasks]'"
        ) from error
    if name in REFUSED:
        raise ValueError(f"{name} of reasoning-gym {REFUSED[name]}")
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
        seen: set[str] = set()
        chunk = in_vain = repeated = 0
        while len(drawn) < num:
            text = f"poise {name} {split} {seed} {chunk}"
            chunk_seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") // 2
            for entry in _entries(name, settings, seed=chunk_seed):
                if split_of(entry["question"]) != split:
                    in_vain += 1
                elif split == "heldout" and entry["question"] in seen:
                    repeated += 1
                else:
                    seen.add(entry["question"])
                    drawn.append(_problem(name, settings, entry, instruction=instruction, extract=extract))
                    in_vain = repeated = 0
                if repeated > LONGEST_REPETITION:
                    return drawn
                if len(drawn) == num:
                    break
                if in_vain > LONGEST_SEARCH:
                    raise ValueError(f"{name} with this configuration has too few questions to hold some of them out")
            chunk += 1
        return drawn

    return problems


def _entries(name: str, settings: Mapping[str, Any], *, seed: int) -> Iterator[Mapping[str, Any]]:
    """The entries of a data set with this seed; where sets have a say, from a process with a fixed hash seed."""
    if name not in SET_ORDERED:
        source = data_set(name, settings, seed=seed, size=PROBLEMS_A_SEED)
        yield from (source[place] for place in range(PROBLEMS_A_SEED))
        return
    yield from json_value(_written_entries(name, json_text({"name": name, "settings": dict(settings), "seed": seed})))


@lru_cache(maxsize=64)
def _written_entries(name: str, asked: str) -> str:
    """What `write_entries` writes, in a process of its own with a fixed hash seed; drawn once for all who ask."""
    code = "from poise.tasks.generated import write_entries; write_entries()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=asked,
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"problems of {name} could not be drawn: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return done.stdout


def write_entries() -> None:
    """Write entries of the data set that standard input names to standard output; for `_entries`."""
    asked = json_value(sys.stdin.read())
    random.seed(asked["seed"])  # some draw from the global generator
    source = data_set(asked["name"], asked["settings"], seed=asked["seed"], size=PROBLEMS_A_SEED)
    print(json_text([dict(source[place]) for place in range(PROBLEMS_A_SEED)]))


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
    """A value of plain types as JSON; tuples, fractions and keys that are no text come back as they were."""
    return json.dumps(_tagged(value))


def json_value(text: str) -> Any:
    """What `json_text` was given."""
    return _untagged(json.loads(text))


def _tagged(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_tagged(each) for each in value]}
    if isinstance(value, Fraction):
        return {"__fraction__": str(value)}
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
        if set(value) == {"__fraction__"}:
            return Fraction(value["__fraction__"])
        if set(value) == {"__pairs__"}:
            return {_untagged(key): _untagged(each) for key, each in value["__pairs__"]}
        return {key: _untagged(each) for key, each in value.items()}
    return value
