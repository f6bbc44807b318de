"""Script that runs a program on its tests, inside the walls of `poise.tasks.sandbox`.

It reads what to run and what to ask from its standard input, and never what is expected. After every test it prints a
mark and a message: of something to read and print, the program's exit code; of a call, what it gives, as JSON.
"""

# ruff: noqa: S102, S307 - this is where programs are run
import _thread
import gc
import json
import os
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, ModuleType
from typing import Any


def tell(descriptor: int, message: str) -> None:
    """Write a mark and a message, in one line."""
    text = f"{job['mark']}{message}\n".encode()
    while text:
        text = text[os.write(descriptor, text) :]


def stack_size(size: int = 0, /) -> int:
    """As `threading.stack_size`; threads' stacks are memory that is reserved, not used."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    return own_stack_size(size)


def module_of_program(name: str) -> ModuleType:
    """The empty module that the program is about to be."""
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = "/box/program.py"
    exec(job["usual"], vars(module))
    return module


def is_child(stdin: str) -> bool:
    """Whether this is the process that the program should go on in; in the other, the program has ended."""
    for entry in os.scandir():
        if entry.is_file() and entry.name != "program.py":
            os.unlink(entry)
    with open("stdin", "w", newline="", errors="replace") as file:
        file.write(stdin)
    reading = os.open("stdin", os.O_RDONLY)
    os.unlink("stdin")
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.dup2(reading, 0)
    else:
        how = os.waitpid(pid, 0)[1]
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)  # whatever it left behind
        tell(1, str(os.waitstatus_to_exitcode(how)))
    os.close(reading)
    return pid == 0


def answer_calls(code: CodeType) -> None:
    """Tell what every call gives; what the program prints itself goes nowhere."""
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    names = vars(module_of_program("program"))
    exec(code, names)
    exec(job["imports"], names)
    names["_entry_"] = lambda *given, **named: entry(names)(*given, **named)
    for before, expression in job["calls"]:
        exec(before, names)
        tell(answers, json.dumps(plain(eval(expression, names))))


def entry(names: dict[str, Any]) -> Any:
    """The function that the tests call: of the program or of its class `Solution`.

    Where they do not name it, it is the last one that no other one calls.
    """
    solution = names.get("Solution")
    name = job["entry"]
    if not name:
        home = vars(solution) if isinstance(solution, type) else names
        codes = dict(codes_in(home))
        called = {other for key, code in codes.items() for other in names_in(code) if other != key}
        name = [key for key in codes if not key.startswith("_") and (key not in called or len(codes) == 1)][-1]
    elif name in names:
        return names[name]
    return getattr(solution(), name) if isinstance(solution, type) else names[name]


def codes_in(home: Any) -> Iterator[tuple[str, CodeType]]:
    """The functions that the program defines in a place."""
    for name, value in home.items():
        code = getattr(getattr(value, "__wrapped__", value), "__code__", None)
        if code is not None and code.co_filename == "program.py":
            yield name, code


def names_in(code: CodeType) -> Iterator[str]:
    """The names that a function uses."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_in(inner)


def plain(value: Any) -> Any:
    """A value as JSON that keeps what Python's `==` looks at; an object of the program's own says nothing."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["float", float.__repr__(value)]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        return ["dict", [[plain(key), plain(each)] for key, each in dict.items(value)]]
    for kind, name in KINDS.items():
        if isinstance(value, kind):
            return [name, [plain(each) for each in kind.__iter__(value)]]
    if type(value).__module__ == "program" and isinstance(getattr(value, "__dict__", None), dict):
        with suppress(RecursionError):
            return ["made", [type(value).__name__, [[str(key), plain(each)] for key, each in vars(value).items()]]]
    name = type(value).__name__
    return [name, str(value)] if name in ("complex", "Decimal", "Fraction", "range") else ["other", ""]


KINDS: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "set", deque: "deque"}
KINDS |= {type({}.keys()): "set", type({}.items()): "set"}

with open(0, "rb", closefd=False) as stdin:
    job = json.load(stdin)
own_stack_size, threading.stack_size, _thread.stack_size = threading.stack_size, stack_size, stack_size
exec(job["imports"], {})  # what cannot be imported at all is no fault of the program's
tell(1, "ready")
code = compile(job["program"], "program.py", "exec", dont_inherit=True)
gc.freeze()  # half of the time in which a child ends
if any(is_child(text) for text in job["inputs"]):
    sys.argv = ["program.py"]
    exec(code, vars(module_of_program("__main__")))  # and end as any program does
else:
    if job["calls"]:
        answer_calls(code)
    os._exit(0)
