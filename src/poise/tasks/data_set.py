"""Data sets of questions and answers, from files or Hugging Face, as sources of problems.

Columns are found by the names that published sets give them, or named in the task. Rows with a prompt that was there
before are left out, and so are prompts whose rows give different answers; both are counted and said. A given split, or
else a hash of the prompt, holds problems out.
"""

import csv
import json
import logging
import math
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from poise.storage.shown_text import LONGEST_NAME
from poise.tasks.answers import equal, parsed
from poise.tasks.choices import option_letter, options_of, with_options
from poise.tasks.problem import Messages, Problem, ProblemSource, prompt_text, split_of
from poise.tasks.sandbox import isolation_fault

PROMPT_COLUMNS = ("prompt", "problem", "question")
ANSWER_COLUMNS = (
    *(
        "answer",
        "ground_truth",
        "reward_model.ground_truth",
        "final_answer",
        "expected_answer",
        "answerkey",
        "solution",
    ),
)
OPTIONS_COLUMNS = ("choices", "options")
TESTS_COLUMNS = ("tests", "test_list", "test_cases", "input_output", "test", "public_test_cases")
BESIDE_TESTS = ("entry_point", "fn_name", "func_name", "metadata", "test_setup_code", "test_imports")
"""Columns that say of all tests of a row what they call and need."""
OPTIONS = ("prompt", "answer", "domain", "split", "heldout", "config", "verifier", "tests", "instruction")
VERIFIER_NAMES = ("math", "exact", "choice", "python")
FILES = (".jsonl", ".json", ".parquet", ".csv")
OWN_COLUMNS = frozenset({"prompt", "answer", "domain", "verifier", "details", "completion", "completions", "prompts"})
"""Names of columns that have a meaning of their own in the data set that a trainer gets."""

Row = Mapping[str, Any]
Place = tuple[str, Row]
"""Where a row stands, for sentences about it, and the row."""


@dataclass(frozen=True)
class DataSet:
    """The problems of a data set, read once when they are first needed.

    Attributes:
        source: A file, a folder, or a name.
        options: Those of `OPTIONS` that were given.
        needs_answers: Whether a data set without a column of answers is refused.
    """

    source: str
    options: Mapping[str, str]
    needs_answers: bool

    def __call__(self, num: int, *, seed: int, split: str = "train") -> list[Problem]:
        """Up to `num` problems of a side, each once, in an order drawn by the seed.

        Args:
            num: At most so many.
            seed: Of the order.
            split: "train", "heldout" or "all".
        """
        if split not in (*self._sides, "all"):
            raise ValueError(f"split needs 'train', 'heldout' or 'all', got {split!r}")
        found = [p for each in self._sides.values() for p in each] if split == "all" else list(self._sides[split])
        random.Random(f"poise {seed}").shuffle(found)
        return found[:num]

    @cached_property
    def _sides(self) -> dict[str, list[Problem]]:
        """Problems to train on, and those held out."""
        first = self._problems(self._rows(self.options.get("split", "train"), default="split" not in self.options))
        if not first:
            raise ValueError(f"{self.source} holds no problems")
        if "heldout" not in self.options:
            sides: dict[str, list[Problem]] = {"train": [], "heldout": []}
            for problem in first.values():
                sides[split_of(problem.prompt)].append(problem)
            return sides
        second = self._problems(self._rows(self.options["heldout"], default=False))
        if not second:
            raise ValueError(f"{self.options['heldout']!r} of {self.source} holds no problems")
        kept = [problem for prompt, problem in first.items() if prompt not in second]
        return {"train": kept, "heldout": list(second.values())}

    def _problems(self, rows: Iterable[Place]) -> dict[str, Problem]:
        """By prompt, the first row's problem; prompts whose rows give different answers are left out."""
        found: dict[str, Problem] = {}
        contradicted: set[str] = set()
        repeated = 0
        names: dict[str, str | None] | None = None
        for place, row in rows:
            if names is None:
                names = self._column_names(row)
            problem = self._problem(place, row, names)
            first = found.setdefault(problem.prompt, problem)
            if first is not problem:
                repeated += 1
                if not _same_answer(first.answer, problem.answer):
                    contradicted.add(problem.prompt)
        if repeated:
            said = f"{self.source}: {len(found)} distinct prompts in {len(found) + repeated} rows, each is taken once"
            if contradicted:
                said += f"; {len(contradicted)} have rows with different answers and are left out"
            logging.getLogger("poise").warning(said)
        return {prompt: problem for prompt, problem in found.items() if prompt not in contradicted}

    def _column_names(self, row: Row) -> dict[str, str | None]:
        """The columns of prompt, answer, tests and domain."""
        tested = self.options.get("verifier") == "python"
        prompt = self._column(row, "prompt", PROMPT_COLUMNS, needed=True)
        answer = self._column(row, "answer", ANSWER_COLUMNS, needed=self.needs_answers and not tested)
        tests = self._column(row, "tests", TESTS_COLUMNS, needed=tested)
        domain = self._column(row, "domain", ("domain",), needed=False)
        options = self._column(row, "options", OPTIONS_COLUMNS, needed=False)
        return {"prompt": prompt, "answer": answer, "tests": tests, "domain": domain, "options": options}

    def _column(self, row: Row, option: str, known: Sequence[str], *, needed: bool) -> str | None:
        there = {
            name.lower(): name
            for name in [*row, *(f"{a}.{b}" for a in row if isinstance(row[a], dict) for b in row[a])]
        }
        if option in self.options:
            name = there.get(self.options[option].lower())
            if name is None:
                raise ValueError(f"{self.source} has no column {self.options[option]!r}: it has {', '.join(row)}")
            return name
        for name in known:
            if name in there:
                return there[name]
        if needed:
            raise ValueError(
                f"{self.source} needs a column {', '.join(known[:-1])} or {known[-1]}, and has {', '.join(row)}: "
                f"name it with ?{option}=COLUMN"
            )
        return None

    def _problem(self, place: str, row: Row, names: Mapping[str, str | None]) -> Problem:
        prompt, messages = _prompt(_value(row, names["prompt"]), place=place, column=names["prompt"])
        answer = _value(row, names["answer"])
        options = options_of(_value(row, names["options"]))
        if options:
            answer = options.letter_of(answer)
            if answer is None:
                raise ValueError(
                    f"{place} needs the letter, the index or the text of one of its {len(options.texts)} options in "
                    f"column {names['answer']!r}, got {_value(row, names['answer'])!r:.80}"
                )
            prompt, messages = _extended(prompt, messages, with_options(prompt, options)[len(prompt) :])
        if instruction := self.options.get("instruction", ""):
            prompt, messages = _extended(prompt, messages, f"\n\n{instruction}")
        verifier = self._verifier(place, row, _answer(answer))
        details: dict[str, Any] = {}
        if verifier == "python":
            tests = _value(row, names["tests"])
            beside = {name: row[name] for name in BESIDE_TESTS if row.get(name)}
            details = {"tests": {"tests": tests, **beside} if beside else tests}
        elif verifier == "choice" and options:
            details = {"options": options.texts}
        domain = _value(row, names["domain"])
        domain = Path(self.source).stem if domain is None else str(domain)
        if len(domain) > LONGEST_NAME:
            raise ValueError(
                f"{place}: a domain has a name of {LONGEST_NAME} characters at most, and the column "
                f"{names['domain']!r} holds {len(domain)}"
            )
        return Problem(
            prompt,
            _answer(answer),
            domain,
            verifier=verifier,
            details=json.dumps(details) if details else "",
            messages=messages,
            columns={name: value for name, value in row.items() if name not in OWN_COLUMNS},
        )

    def _verifier(self, place: str, row: Row, answer: str) -> str:
        """The verifier that the task names, the row's own, or "choice" for a letter and "math" for all else."""
        if "verifier" in self.options:
            return self.options["verifier"]
        named = row.get("verifier")
        if _is_missing(named):
            return "choice" if option_letter(answer) else "math"
        if named not in VERIFIER_NAMES:
            raise ValueError(
                f"{place} names a verifier {named!r:.80}, which does not exist: there are {', '.join(VERIFIER_NAMES)}"
            )
        return str(named)

    def _rows(self, split: str, *, default: bool) -> Iterator[Place]:
        """Rows of a split; of a file, its own rows, or those of another file where `split` names one."""
        path = Path(self.source)
        if path.is_file():
            if not default:
                path = next((each for each in (Path(split), path.parent / split) if each.is_file()), Path(split))
            return file_rows(path)
        if path.suffix in FILES:
            raise FileNotFoundError(f"there is no file {path}")
        return self._hub_rows(split, default=default)

    def _hub_rows(self, split: str, *, default: bool) -> Iterator[Place]:
        import datasets

        path = Path(self.source)
        try:
            if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
                loaded = datasets.load_from_disk(self.source)
            else:
                loaded = datasets.load_dataset(self.source, self.options.get("config"))
        except Exception as error:  # whatever a host says about what it cannot find, reach or read
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"task {self.source!r} is not embedded, reasoning-gym:NAME or a file, and no data set could be loaded "
                f"from there: {reason}"
            ) from error
        if isinstance(loaded, datasets.DatasetDict):
            if default and split not in loaded and len(loaded) == 1:
                split = next(iter(loaded))
            if split not in loaded:
                raise ValueError(f"{self.source} has no split {split!r}: it has {', '.join(loaded)}")
            loaded = loaded[split]
        elif not default:
            raise ValueError(f"{self.source} has no splits, got {split!r}")
        number = 0
        for batch in loaded.with_format("arrow").iter(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield f"{self.source} row {number}", row


def data_set_problems(source: str, options: Mapping[str, str], *, needs_answers: bool) -> tuple[str, ProblemSource]:
    """The short name of a data set, and a source of its problems.

    Args:
        source: A .jsonl, .json, .parquet or .csv file, a folder, or the name of a Hugging Face data set.
        options: See `OPTIONS`: columns, splits, the verifier of rows that do not name their own ("math", "exact" or
            "python"), a text to put after every question.
        needs_answers: Whether a data set without a column of answers is refused.

    Raises:
        ValueError: If it cannot be read, lacks a column, or holds nothing.
        FileNotFoundError: If there is no such file.
    """
    if unknown := [name for name in options if name not in OPTIONS]:
        raise ValueError(f"options of a data set are {', '.join(OPTIONS)}, got {', '.join(unknown)}")
    if options.get("verifier", "math") not in VERIFIER_NAMES:
        raise ValueError(f"verifier needs {', '.join(VERIFIER_NAMES)}, got {options['verifier']!r}")
    if needs_answers and options.get("verifier", "math") == "math" and find_spec("math_verify") is None:
        raise ValueError(
            "answers are graded by the package math-verify: pip install 'poise-rlvr[tasks]', or ?verifier=exact"
        )
    problems = DataSet(source, dict(options), needs_answers)
    everything = problems(sys.maxsize, seed=0, split="all")  # says at once what is wrong with it
    if any(problem.verifier == "python" for problem in everything) and (fault := isolation_fault()):
        raise ValueError(f"tests of programs need isolation, which this machine does not give: {fault}")
    return Path(source).stem, problems


def file_rows(path: Path) -> Iterator[Place]:
    """Every row of a file and where it stands.

    Raises:
        ValueError: If a line is not JSON, the file is not what its ending says, or the ending is unknown.
        FileNotFoundError: If there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        yield from _rows_by_ending(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error


def _rows_by_ending(path: Path) -> Iterator[Place]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path} line {number}", _object(line, place=f"{path} line {number}")
    elif path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {error.lineno} is not JSON: {error.msg}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path} must hold a list of objects")
        yield from ((f"{path} entry {number}", row) for number, row in enumerate(rows, start=1))
    elif path.suffix == ".parquet":
        import pyarrow.parquet

        number = 0
        try:
            table = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not parquet: {error}") from error
        for batch in table.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    elif path.suffix == ".csv":
        csv.field_size_limit(2**31 - 1)  # tests of programs are longer than the default of 131,072
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from ((f"{path} row {number}", row) for number, row in enumerate(csv.DictReader(file), start=1))
    else:
        raise ValueError(f"{path} must end with {', '.join(FILES[:-1])} or {FILES[-1]}")


def _object(line: str, *, place: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} must be an object with named columns, got a {type(row).__name__}")
    return row


def _value(row: Row, name: str | None) -> Any:
    """A column's value; "a.b" is b within a."""
    if name is None or name in row:
        return None if name is None else row[name]
    outer, _, inner = name.partition(".")
    within = row.get(outer)
    return within.get(inner) if isinstance(within, Mapping) else None


def _prompt(value: Any, *, place: str, column: str | None) -> tuple[str, Messages | None]:
    if isinstance(value, str) and value.strip():
        return value, None
    if (
        isinstance(value, list)
        and value
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value)
    ):
        messages = [{"role": str(m.get("role", "user")), "content": m["content"]} for m in value]
        return prompt_text(messages), messages
    raise ValueError(f"{place} needs text or chat messages in column {column!r}, got {value!r:.80}")


def _extended(prompt: str, messages: Messages | None, text: str) -> tuple[str, Messages | None]:
    """A prompt with text after it, in its last message too."""
    if messages is not None:
        messages = [*messages[:-1], messages[-1] | {"content": messages[-1]["content"] + text}]
    return prompt + text, messages


def _is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: no value, an empty text, or no number where a number was to be."""
    if isinstance(value, str):
        return value.strip().casefold() in ("", "nan")
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _answer(value: Any) -> str:
    """As text; a list of several is one answer of all its members; nothing where there is none."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_answer(each) for each in value)
    if _is_missing(value):
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _same_answer(one: str, other: str) -> bool:
    return one == other or (bool(one) and bool(other) and equal(parsed(one), parsed(other)))
