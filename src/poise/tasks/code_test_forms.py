"""Tests of programs, in the forms that published data sets have."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.tasks.code_asserts import ENTRY, CallTest, UnreadableTestError, alike, asserted

CALLED = {"functional", "function", "function_call", "call", "call_based"}
READ = {"stdin", "stdin_stdout", "stdio", "standard_input", "standard", "io"}
KINDS = ("testtype", "test_type", "type")
"""Where a test says whether it is called or read."""
NAMES = ("fn_name", "func_name", "function_name", "entry_point", "entry")
"""Where a test says which function is called."""
INSIDE = ("tests", "test_cases", "official_tests", "public_tests", "test_list", "test", "input_output", "ground_truth")
"""Where an object holds its tests."""
INPUTS, OUTPUTS = ("inputs", "input", "stdin"), ("outputs", "output", "expected_output", "stdout")


@dataclass(frozen=True)
class PrintTest:
    """What a program reads from its standard input, and what it should print."""

    stdin: str
    expected: str


@dataclass(frozen=True)
class Tests:
    """The tests of one problem, all of which a program must pass."""

    prints: Sequence[PrintTest] = ()
    calls: Sequence[CallTest] = ()
    imports: str = ""
    """Lines that the calls need."""
    entry: str = ""
    """The name of the function that the calls are of, where they do not say it."""
    names: frozenset[str] = frozenset()
    """The names that the calls use."""


def parsed_tests(given: Any) -> Tests:
    """The tests in any of the forms that published data sets have.

    - `[{"input": "1 2", "output": "3"}, ...]` or `{"inputs": ["1 2", ...], "outputs": ["3", ...]}`: read and print
    - `{"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [3, ...]}`: calls of a function, or of a method of
      `Solution`; arguments may be text, one a line, each JSON, and so may what is expected; all that is expected may
      stand in lists of one
    - `[{"input": "1\\n2", "output": "3", "testtype": "functional"}, ...]`: such calls, test by test
    - `["assert add(1, 2) == 3", ...]` or such lines as one text: `assert CALL == VALUE`, with any comparison; also
      `assert f(x)`, `assert not f(x)`, `assert abs(f(x) - VALUE) < VALUE`, `assert math.isclose(f(x), VALUE)`, after
      assignments, and in `def check(candidate)`
    - an object that holds one of these under a name of `INSIDE`, beside the name of the function

    Args:
        given: One of these forms, or JSON text of one.

    Raises:
        UnreadableTestError: If it has another form, or holds no test.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return _from_asserts(given)
    match given:
        case [str(), *_] if all(isinstance(each, str) for each in given):
            return _from_asserts("\n".join(given))
        case [dict(), *_] if all(isinstance(each, dict) for each in given):
            rows = given
        case dict() if None not in (found := [_found(given, names) for names in (INPUTS, OUTPUTS)]):
            inputs, outputs = found
            if not (isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs)):
                raise _no_known_form(given)
            rest = {name: value for name, value in given.items() if name not in (*INPUTS, *OUTPUTS)}
            rows = [rest | {"input": a, "output": b} for a, b in zip(inputs, outputs, strict=True)]
        case dict() if (inner := _found(given, INSIDE)) is not None:
            return _inside(given, inner)
        case _:
            raise _no_known_form(given)
    if not rows:
        raise UnreadableTestError("there is no test")
    return _from_rows(rows)


def _from_asserts(text: str, entry: str = "") -> Tests:
    found = asserted(text)
    return Tests(
        calls=found.calls,
        imports="\n".join(found.imports),
        entry=_function_name(found.entry or entry),
        names=frozenset(found.names),
    )


def _inside(given: Mapping[str, Any], inner: Any) -> Tests:
    """Tests that an object holds, beside what it says of all of them."""
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except ValueError:
            inner = [inner]
    said = {name: given[name] for name in (*KINDS, *NAMES, "metadata") if name in given}
    match inner:
        case dict():
            return parsed_tests(said | inner)
        case [dict(), *_]:
            return parsed_tests([said | each if isinstance(each, dict) else each for each in inner])
        case [str(), *_] if all(isinstance(each, str) for each in inner):
            setup = given.get("test_setup_code") or "\n".join(given.get("test_imports") or [])
            return _from_asserts("\n".join([setup, *inner]), entry=_said_name(given) or "")
    raise _no_known_form(given)


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> Tests:
    """Tests of which each has an input and an output."""
    if not all(set(INPUTS) & set(row) and set(OUTPUTS) & set(row) for row in rows):
        raise _no_known_form(rows)
    pairs = [(_found(row, INPUTS), _found(row, OUTPUTS)) for row in rows]
    called = [_is_call(row, given) for row, (given, _) in zip(rows, pairs, strict=True)]
    prints = [PrintTest(_read(a), _text(b)) for is_call, (a, b) in zip(called, pairs, strict=True) if not is_call]
    asked = [(row, *each) for row, is_call, each in zip(rows, called, pairs, strict=True) if is_call]
    names = {_function_name(_said_name(row) or "") for row, *_ in asked}
    if len(names) > 1:
        raise UnreadableTestError(f"tests call several functions: {', '.join(sorted(names))}")
    calls = [
        (_arguments(given), _value(expected) if isinstance(given, str) else expected) for _, given, expected in asked
    ]
    wrapped = all(isinstance(expected, list) and len(expected) == 1 for _, expected in calls)
    return Tests(prints, [_call(*each, wrapped=wrapped) for each in calls], entry="".join(names))


def _is_call(row: Mapping[str, Any], given: Any) -> bool:
    """Whether a test is a call, by what it says of itself."""
    kinds = {str(row[name]).lower().replace("-", "_") for name in KINDS if row.get(name) is not None}
    if kinds - CALLED - READ:
        raise UnreadableTestError(f"tests are called or read, and not {', '.join(sorted(kinds))}")
    if kinds:
        return bool(kinds & CALLED)
    name = _said_name(row)
    if name == "" and isinstance(given, str):
        raise UnreadableTestError("a test neither names its function nor says that it is read")
    return bool(name) or name == ""


def _said_name(row: Mapping[str, Any]) -> str | None:
    """The function that a test says it calls; empty where it says that there is one."""
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            metadata = None
    places = [row, metadata] if isinstance(metadata, dict) else [row]
    said = [place[name] for place in places for name in NAMES if place.get(name) is not None]
    return next((str(each) for each in said if each), "" if said else None)


def _function_name(name: str) -> str:
    """The function's own name, without its class."""
    own = name.rpartition(".")[2]
    if own and not own.isidentifier():
        raise UnreadableTestError(f"calls of {name!r} need lists of arguments and the name of a function")
    return own


def _arguments(given: Any) -> list[Any]:
    """The arguments of a call: a list, or one a line."""
    if isinstance(given, str):
        try:
            return [json.loads(line) for line in given.splitlines() if line.strip()]
        except ValueError:
            return [_literal(line) for line in given.splitlines() if line.strip()]
    if isinstance(given, dict):
        raise UnreadableTestError(f"calls need lists of arguments, got {given!r:.80}")
    return given if isinstance(given, list) else [given]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UnreadableTestError(f"an argument must be JSON or a value of Python, got {text!r:.80}") from None


def _value(text: Any) -> Any:
    """What a text says that is expected: JSON, a value of Python, or itself."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        try:
            return _literal(text)
        except UnreadableTestError:
            return text


def _call(arguments: list[Any], expected: Any, *, wrapped: bool) -> CallTest:
    def accepts(value: Any) -> bool:
        found = _as_json(value)
        return alike(found, _as_json(expected)) or (wrapped and alike(found, _as_json(expected[0])))

    return CallTest(f"{ENTRY}(*{arguments!r})", accepts)


def _as_json(value: Any) -> Any:
    """With lists in the place of tuples, and keys as text."""
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, dict):
        return {_key(key): _as_json(each) for key, each in value.items()}
    return value


def _key(key: Any) -> str:
    return json.dumps(key) if key is None or isinstance(key, bool) else str(key)


def _found(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first value that is there under one of several names."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _read(value: Any) -> str:
    """Input as text; numbers in lists are arguments, and no lines."""
    if isinstance(value, list) and not all(isinstance(each, str) for each in value):
        raise UnreadableTestError(f"what is read must be text, got {value!r:.80}")
    return "" if value is None else _text(value)


def _text(value: Any) -> str:
    """Input or output as text; of a list, its lines."""
    if isinstance(value, list) and not any(isinstance(each, list) for each in value):
        return "\n".join(map(_text, value))
    if isinstance(value, str | int | float):
        return str(value)
    raise UnreadableTestError(f"what is read and printed must be text, got {value!r:.80}")


def _no_known_form(given: Any) -> UnreadableTestError:
    return UnreadableTestError(f"tests have none of the known forms: {given!r:.80}")
