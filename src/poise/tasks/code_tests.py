"""Verdicts on programs by their tests.

A program gets what it should read, or the calls that it should answer, and never what is expected of it. Outputs and
results are compared out here, as plain values, so that a program can pass no test but by solving it.
"""

import functools
import itertools
import json
import math
import re
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from poise.tasks.code_asserts import CallTest, Made, UnreadableTestError
from poise.tasks.code_test_forms import PrintTest, Tests, parsed_tests
from poise.tasks.program_text import program_of, usual_imports
from poise.tasks.sandbox import Limits, NotBegunError, program_run

__all__ = ["CallTest", "PrintTest", "Tests", "UnreadableTestError", "failure", "parsed_tests", "program_of"]

CLOSE_WHERE_PRINTED = 1e-6
"""Absolute or relative difference up to which numbers with a fraction are equal where they are printed."""
SHARE_OF_ALL = 0.5
"""Of the time limits of all tests together, what they may take beyond the limit of one."""
LONGER = 4
"""How much longer than what is expected an output may be, beyond the limit that short ones have."""
NUMBER = re.compile(r"(?<![\w.])([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])")


def failure(program: str, tests: Tests, *, seconds: float | None = None, limits: Limits | None = None) -> str | None:
    """Why a program does not pass: "program failed", "program timed out", ...; "" for a wrong result; None if it does.

    Args:
        program: Its text.
        tests: Tried in their order, until one is failed.
        seconds: For all of them together; by default what their number makes of the limit of one.
        limits: Of each test.

    Raises:
        poise.tasks.sandbox.IsolationError: If programs cannot be shut in here.
        poise.tasks.sandbox.NotBegunError: If the machine did not bring the program to its beginning.
    """
    limits = limits or Limits()
    if seconds is None:
        seconds = limits.seconds * (1 + SHARE_OF_ALL * (len(tests.prints) + len(tests.calls)))
    mark = f"\0{secrets.token_hex(8)} "
    job = {
        "mark": mark,
        "program": program,
        "usual": usual_imports(program, {*tests.names, tests.entry}),
        "imports": tests.imports,
        "entry": tests.entry,
        "inputs": [test.stdin for test in tests.prints],
        "calls": [(test.before, test.expression) for test in tests.calls],
    }
    longest = max((len(test.expected) for test in tests.prints), default=0)
    room = max((len(test.stdin) for test in tests.prints), default=0) // 2**18  # of up to four bytes a character
    whole = replace(
        limits,
        seconds=limits.seconds + seconds,  # the judge is stricter
        processes=limits.processes + 1,
        file_mebibytes=limits.file_mebibytes + room,
        output_bytes=limits.output_bytes + LONGER * longest,
    )
    judge = _Judge(tests, mark.encode(), in_all=seconds, each=limits.seconds)
    found = program_run(_harness(), json.dumps(job), limits=whole, judge=judge)
    if judge.passed:
        return None
    if judge.place < 0:
        raise NotBegunError("the program's tests did not begin")
    return "" if judge.wrong else found.cause or "program failed"  # it ended before it answered


@functools.cache
def _harness() -> str:
    return Path(__file__).with_name("program_harness.py").read_text()


class _Judge:
    """Compares what comes out, test by test, and looks at the clock of each."""

    def __init__(self, tests: Tests, mark: bytes, *, in_all: float, each: float) -> None:
        self.tests: list[PrintTest | CallTest] = [*tests.prints, *tests.calls]
        self.mark, self.in_all, self.each = mark, in_all, each
        self.place = -1
        self.passed = self.wrong = False
        self.first_began = self.began = 0.0

    def __call__(self, output: bytearray, spent: float) -> str | None:
        while (at := output.find(self.mark)) >= 0 and (end := output.find(b"\n", at)) >= 0:
            printed, message = bytes(output[:at]), output[at + len(self.mark) : end].decode(errors="replace")
            del output[: end + 1]
            if self.place < 0:
                self.first_began = spent
            elif isinstance(test := self.tests[self.place], PrintTest):
                if message != "0":
                    return "program failed"
                self.wrong = not printed_alike(printed.decode(errors="replace"), test.expected)
            else:
                self.wrong = not _accepted(message, test.accepts)
            if self.wrong:
                return ""
            self.place, self.began = self.place + 1, spent
            if self.place == len(self.tests):
                self.passed = True
                return ""
        late = self.place >= 0 and (spent - self.began > self.each or spent - self.first_began > self.in_all)
        return "program timed out" if late else None


def printed_alike(printed: str, expected: str) -> bool:
    """Whether two outputs are the same but for blanks, empty lines, and digits of numbers with a fraction."""
    lines, wanted = ([line.split() for line in text.split("\n") if line.strip()] for text in (printed, expected))
    return lines == wanted or (
        [len(line) for line in lines] == [len(line) for line in wanted]
        and all(map(_words_alike, itertools.chain(*lines), itertools.chain(*wanted)))
    )


def _words_alike(printed: str, expected: str) -> bool:
    """Whether two words are the same but for their numbers, and those are equal."""
    if printed == expected:
        return True
    found, wanted = NUMBER.split(printed), NUMBER.split(expected)
    return found[::2] == wanted[::2] and all(
        a == b or _numbers_alike(a, b) for a, b in zip(found[1::2], wanted[1::2], strict=True)
    )


def _numbers_alike(printed: str, expected: str) -> bool:
    if re.fullmatch(r"[+-]?\d+", expected):
        return re.sub(r"\.0*$", "", printed) == expected
    near = CLOSE_WHERE_PRINTED
    return math.isclose(float(printed), float(expected), rel_tol=near, abs_tol=near)


def _accepted(message: str, accepts: Callable[[Any], Any]) -> bool:
    try:
        return bool(accepts(_value(json.loads(message))))
    except Exception:  # no plain value, or none that can be compared
        return False


MADE_BY: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "bytes": bytes.fromhex,
    "complex": complex,
    "Decimal": Decimal,
    "Fraction": Fraction,
    "range": lambda text: range(*json.loads(f"[{text[6:-1]}]")),
    "dict": lambda pairs: {_value(key): _value(each) for key, each in pairs},
    "list": lambda items: [_value(each) for each in items],
    "tuple": lambda items: tuple(_value(each) for each in items),
    "set": lambda items: {_value(each) for each in items},
    "deque": lambda items: deque(_value(each) for each in items),
    "made": lambda given: Made(given[0], [], {name: _value(each) for name, each in given[1]}),
    "other": lambda _: object(),
}


def _value(given: Any) -> Any:
    """The value that `plain` of the harness has written."""
    return MADE_BY[given[0]](given[1]) if isinstance(given, list) else given
