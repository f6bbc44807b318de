"""Does a program pass its tests?

The rule: the program gets what it should read, or the calls that it should answer, and never what is expected of it.
Outputs and results are compared out here, as plain values, so that a program can pass no test but by solving it.
"""

import ast
import builtins
import json
import math
import operator
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poise.tasks.sandbox import Limits, ProgramRun, program_run

Accepts = Callable[[Any], bool]


class UnreadableTestError(Exception):
    """A test has a form in which what is expected cannot be told from what is asked."""


@dataclass(frozen=True)
class PrintTest:
    """What a program reads from its standard input, and what it should print."""

    stdin: str
    expected: str


@dataclass(frozen=True)
class CallTest:
    """An expression to evaluate after the program, and which values are accepted."""

    expression: str
    accepts: Accepts


@dataclass(frozen=True)
class Tests:
    """The tests of one problem, all of which a program must pass."""

    prints: Sequence[PrintTest] = ()
    calls: Sequence[CallTest] = ()
    imports: str = ""
    """Lines that the calls need."""


def parsed_tests(given: Any) -> Tests:
    """The tests in any of the forms that published data sets have.

    - `[{"input": "1 2", "output": "3"}, ...]` or `{"inputs": ["1 2", ...], "outputs": ["3", ...]}`: read and print
    - `{"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [3, ...]}`: calls of a function, or of a
      method of `Solution`
    - `["assert add(1, 2) == 3", ...]` or such lines as one text: `assert CALL == VALUE`, with any comparison; also
      `assert f(x)`, `assert not f(x)`, `assert abs(f(x) - VALUE) < VALUE`, `assert math.isclose(f(x), VALUE)`

    Args:
        given: One of these forms, or JSON text of one.

    Raises:
        UnreadableTestError: If it has another form, or holds no test.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError:
            return _asserts(given)
    match given:
        case {"fn_name": str(name), "inputs": list(inputs), "outputs": list(outputs)} if len(inputs) == len(outputs):
            tests = Tests(calls=[_json_call(name, *each) for each in zip(inputs, outputs, strict=True)])
        case {"inputs": list(inputs), "outputs": list(outputs)} if len(inputs) == len(outputs):
            tests = Tests(prints=[PrintTest(_text(a), _text(b)) for a, b in zip(inputs, outputs, strict=True)])
        case [{"input": _, "output": _}, *_] if all(
            isinstance(e, dict) and {"input", "output"} <= set(e) for e in given
        ):
            tests = Tests(prints=[PrintTest(_text(each["input"]), _text(each["output"])) for each in given])
        case [str(), *_] if all(isinstance(each, str) for each in given):
            tests = _asserts("\n".join(given))
        case _:
            raise UnreadableTestError(f"tests have none of the known forms: {given!r:.80}")
    if not (tests.prints or tests.calls):
        raise UnreadableTestError("there is no test")
    return tests


def program_of(answer: str) -> str:
    """The program in an answer: its last fenced block where there is one, else all of it."""
    fenced = re.findall(r"```[ \t]*\w*[ \t]*\n(.*?)```", answer, flags=re.DOTALL)
    return fenced[-1] if fenced else answer


def failure(program: str, tests: Tests, *, seconds: float, limits: Limits | None = None) -> str | None:
    """Why a program does not pass: "program failed", "program timed out", ...; "" for a wrong result; None if it does.

    Args:
        program: Its text.
        tests: Tried in their order, until one is failed.
        seconds: For all of them together.
        limits: Of each run.

    Raises:
        poise.tasks.sandbox.IsolationError: If programs cannot be shut in here.
    """
    deadline = time.monotonic() + seconds
    limits = limits or Limits()

    def run(text: str, stdin: str = "") -> ProgramRun:
        left = deadline - time.monotonic()
        if left <= 0:
            return ProgramRun(b"", "program timed out")
        return program_run(text, stdin, limits=replace(limits, seconds=min(limits.seconds, left)))

    for test in tests.prints:
        found = run(program, test.stdin)
        if found.cause:
            return found.cause
        if _lines(found.output.decode(errors="replace")) != _lines(test.expected):
            return ""
    if tests.calls:
        found = run(_questions(program, tests))
        if found.cause:
            return found.cause
        results = found.output.decode(errors="replace").splitlines()
        if len(results) != len(tests.calls) or not all(
            _accepted(text, test) for text, test in zip(results, tests.calls, strict=True)
        ):
            return ""
    return None


def _questions(program: str, tests: Tests) -> str:
    """A program that runs the given one as a module, evaluates the calls and prints what they give, one a line.

    What the given program prints itself goes nowhere.
    """
    calls = [test.expression for test in tests.calls]
    return f"""import os
answers = open(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
names = {{"__name__": "program"}}
exec(compile({program!r}, "program.py", "exec"), names)
exec({tests.imports!r}, names)
for call in {calls!r}:
    value = eval(call, names)
    print(repr(value.tolist() if hasattr(value, "tolist") else value), file=answers, flush=True)
"""


def _accepted(text: str, test: CallTest) -> bool:
    try:
        return bool(test.accepts(ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError):
        return False  # no plain value, or none that can be compared


def _text(value: Any) -> str:
    """Input or output as text; of a list, its lines."""
    return "\n".join(map(_text, value)) if isinstance(value, list) else value if isinstance(value, str) else str(value)


def _lines(text: str) -> list[str]:
    """Lines without spaces at their ends, and without empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _json_call(name: str, arguments: Any, expected: Any) -> CallTest:
    if not (name.isidentifier() and isinstance(arguments, list)):
        raise UnreadableTestError(f"calls of {name!r} need lists of arguments, got {arguments!r:.80}")
    function = f"({name} if {name!r} in globals() else Solution().{name})"
    return CallTest(f"{function}(*{arguments!r})", lambda value: _listed(value) == expected)


def _listed(value: Any) -> Any:
    """With lists in the place of tuples, which JSON does not know."""
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.eq,
    ast.IsNot: operator.ne,
    ast.In: lambda value, several: value in several,
}
MADE_OF: dict[str, Callable[..., Any]] = {each.__name__: each for each in (set, tuple, list, dict, float, sorted)}
"""What may be called, on plain values, in what a test expects."""


def _asserts(text: str) -> Tests:
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        raise UnreadableTestError(f"tests are neither JSON nor Python: {text!r:.80}") from error
    imports = [ast.unparse(each) for each in statements if isinstance(each, ast.Import | ast.ImportFrom)]
    rest = [each for each in statements if not isinstance(each, ast.Import | ast.ImportFrom)]
    calls = [_assertion(each) for each in rest]
    if not calls:
        raise UnreadableTestError("there is no test")
    return Tests(calls=calls, imports="\n".join(imports))


def _assertion(statement: ast.stmt) -> CallTest:
    """Split an assertion into what is asked and what is expected."""
    if isinstance(statement, ast.Assert):
        match statement.test:
            case ast.Compare(
                ast.Call(ast.Name("abs"), [ast.BinOp(asked, ast.Sub(), middle)]),
                [ast.Lt() | ast.LtE() as within],
                [far],
            ) if _is_plain(middle) and _is_plain(far):
                centre, distance, closer = _plain(middle), _plain(far), COMPARISONS[type(within)]
                return CallTest(ast.unparse(asked), lambda value: closer(abs(value - centre), distance))
            case ast.Compare(asked, [comparison], [expected]) if type(comparison) in COMPARISONS and _is_plain(
                expected
            ):
                compare, right = COMPARISONS[type(comparison)], _plain(expected)
                return CallTest(ast.unparse(asked), lambda value: compare(value, right))
            case ast.Compare(expected, [comparison], [asked]) if type(comparison) in COMPARISONS and _is_plain(
                expected
            ):
                compare, left = COMPARISONS[type(comparison)], _plain(expected)
                return CallTest(ast.unparse(asked), lambda value: compare(left, value))
            case ast.Call(
                ast.Attribute(ast.Name("math"), "isclose") | ast.Name("isclose"), [asked, expected], options
            ) if _is_plain(expected) and all(each.arg and _is_plain(each.value) for each in options):
                given, near = {str(each.arg): _plain(each.value) for each in options}, _plain(expected)
                return CallTest(ast.unparse(asked), lambda value: math.isclose(value, near, **given))
            case ast.Call() as asked if _is_own_call(asked):
                return CallTest(ast.unparse(asked), bool)
            case ast.UnaryOp(ast.Not(), ast.Call() as asked) if _is_own_call(asked):
                return CallTest(ast.unparse(asked), lambda value: not value)
    raise UnreadableTestError(f"a test must be `assert CALL == VALUE` or alike, got {ast.unparse(statement)!r:.80}")


def _is_own_call(call: ast.Call) -> bool:
    """Whether it is a call of something of the program's; `all(...)` around a comparison tells what is expected."""
    return not (isinstance(call.func, ast.Name) and hasattr(builtins, call.func.id))


def _is_plain(node: ast.expr) -> bool:
    try:
        _plain(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _plain(node: ast.expr) -> Any:
    """The value of an expression of plain values, such as `set([1, 2])`."""
    match node:
        case ast.Call(ast.Name(name), arguments, []) if name in MADE_OF:
            return MADE_OF[name](*map(_plain, arguments))
    return ast.literal_eval(node)
