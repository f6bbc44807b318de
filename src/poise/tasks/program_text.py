"""Programs in the text of completions."""

import ast
import builtins
import functools
import importlib
import re
import textwrap
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from poise.tasks.embedded import END_OF_THINKING, THINK

FENCE = re.compile(r"(?P<before>[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?|.*[^`~])(?P<fence>`{3,}|~{3,})(?P<language>[^`]*)")
PYTHON = re.compile(r"[\s{.]*(?:ipython|pypy|python|py)[\d.]*(?![a-z])", re.IGNORECASE)
CODE = re.compile(r"^\s*(?:def|class|import|from|for|while|if|try|with|return|print)\b|\w\s*=[^=]|\w\(", re.MULTILINE)
MOST_ENDS = 4
"""Fences that are tried as the end of a block; a program may have some in its texts."""
LONGEST_PARSED = 100_000
"""Characters of a program that is looked into."""
FROM = (
    *("typing", "collections", "heapq", "bisect", "itertools", "functools", "math", "string", "fractions", "decimal"),
    *("dataclasses", "enum", "random", "copy", "operator"),
)
"""Modules from which starter code imports names, those first that have the better right to one."""
WHOLE = ("sys", "os", "re", "json", "time", "datetime", "io", "statistics", *FROM)
"""Modules that starter code imports."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the places where it begins and ends in the text, and what it says and is said to be."""

    begin: int
    end: int
    language: str
    text: str


def program_of(completion: str, wanted: Collection[str] = ()) -> str:
    """The program in a completion: what follows its thinking, or the last fenced block of that in Python that is no
    sample of input or output.

    Args:
        completion: The text.
        wanted: Functions that the tests call; a block that defines one of them comes before others.
    """
    answer = _answer(completion.replace("\r\n", "\n"))
    blocks = list(_blocks(answer))
    if not blocks:
        return answer.strip()
    python = [each for each in blocks if PYTHON.match(each.language)]
    unnamed = [each for each in blocks if not each.language.strip()]
    programs = [each for each in python if _is_program(each.text, is_python=True)]
    programs = programs or [each for each in unnamed if _is_program(each.text, is_python=False)]
    defining = [each for each in programs if set(wanted) & _defined(each.text)]
    return (defining or programs or python or blocks)[-1].text


def usual_imports(program: str, asked: Collection[str]) -> str:
    """Imports of the names that a program takes for granted, as starter code of data sets has them.

    Args:
        program: Its text.
        asked: Names that the tests use; the program must define them itself.
    """
    tree = _tree(program)
    names = {node for node in ast.walk(tree) if isinstance(node, ast.Name)} if tree else set()
    bound = {each.id for each in names if not isinstance(each.ctx, ast.Load)} | set(asked) | set(dir(builtins))
    missing = {each.id for each in names} - bound - _defined(program, everywhere=True)
    return "\n".join(_usual()[name] for name in sorted(missing & _usual().keys()))


@functools.cache
def _usual() -> dict[str, str]:
    """Import lines by the name that they bring."""
    lines: dict[str, str] = {}
    for module in FROM:
        found = importlib.import_module(module)
        for name in getattr(found, "__all__", [each for each in dir(found) if not each.startswith("_")]):
            lines.setdefault(name, f"from {module} import {name}")
    return lines | {module: f"import {module}" for module in WHOLE}


def _answer(text: str) -> str:
    """What follows the thinking, of it what is tagged as the answer; nothing where thinking does not end.

    A mark that is text of a program is none.
    """
    blocks = list(_blocks(text))
    if not blocks and _tree(text):
        return text
    outside, done = [], 0  # the text, with blanks in the place of programs
    for each in blocks:
        if "<" in each.text and _tree(each.text):
            outside += [text[done : each.begin], " " * (each.end - each.begin)]
            done = each.end
    marked = "".join([*outside, text[done:]])
    begin = marked.rfind(END_OF_THINKING)
    begin = begin + len(END_OF_THINKING) if begin >= 0 else 0
    if re.search(f"(?<![`'\"]){re.escape(THINK)}", marked[begin:]):
        return ""
    end = marked.rfind("</answer>", begin)
    tag = marked.rfind("<answer>", begin, end) if end >= 0 else -1
    tagged = text[tag + len("<answer>") : end] if tag >= 0 else ""
    return tagged if "```" in tagged or ("```" not in text[begin:] and tagged) else text[begin:]


def _blocks(text: str) -> Iterator[Block]:
    """Every fenced block; the last one may lack its end."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    number = 0
    while number < len(lines):
        opening = FENCE.fullmatch(lines[number].rstrip())
        number += 1
        if not opening or (opening["before"].strip(" \t>") and len(opening["language"].split()) > 1):
            continue
        begin, fence = number, opening["fence"]
        ends = []
        for place in range(begin, len(lines)):
            at = lines[place].find(fence) if fence[0] == "`" or lines[place].strip().startswith(fence) else -1
            if at >= 0:
                ends.append((place, at))
            if len(ends) == MOST_ENDS:
                break
        candidates = [
            (place + 1, _unindented([*lines[begin:place], lines[place][:at]], opening["before"])) for place, at in ends
        ] or [(len(lines), _unindented(lines[begin:], opening["before"]))]
        number, inside = next(((end, each) for end, each in candidates if _tree(each)), candidates[0])
        yield Block(starts[begin], starts[number], opening["language"], inside)


def _unindented(lines: list[str], before: str) -> str:
    """The lines of a block whose fence stands behind `before`."""
    indent = len(before) if not before.strip(" \t>-*+.)0123456789") else 0
    pattern = re.compile(rf"[ \t>]{{0,{indent}}}")
    text = "".join(line[pattern.match(line).end() :] for line in lines)  # type: ignore[union-attr]
    dedented = textwrap.dedent(text)
    return dedented if not _tree(text) and _tree(dedented) else text


def _is_program(text: str, *, is_python: bool) -> bool:
    """Whether a block is more than values, such as a sample of output, or a session with a prompt."""
    if text.lstrip().startswith((">>>", "$ ", "In [")):
        return False
    tree = _tree(text)
    if tree is None:
        return is_python and CODE.search(text) is not None
    calls = any(isinstance(node, ast.Call | ast.NamedExpr) for node in ast.walk(tree))
    return calls or not all(isinstance(each, ast.Expr) for each in tree.body)


def _defined(program: str, *, everywhere: bool = False) -> set[str]:
    """The functions, methods, classes and names that a program defines or imports, outside of functions or
    everywhere."""
    tree = _tree(program)
    if tree is None:
        return set(re.findall(r"(?:def|class)\s+(\w+)", program))
    found: set[str] = set()
    classes = [each.body for each in tree.body if isinstance(each, ast.ClassDef)]
    for node in ast.walk(tree) if everywhere else [*tree.body, *(each for body in classes for each in body)]:
        match node:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                found.add(name)
            case ast.Import(names) | ast.ImportFrom(_, names):
                found |= {(each.asname or each.name).split(".")[0] for each in names}
            case ast.Assign(targets):
                found |= {each.id for each in targets if isinstance(each, ast.Name)}
            case ast.arg(name) | ast.ExceptHandler(_, str(name)):
                found.add(name)
    return found


@functools.lru_cache(maxsize=32)
def _tree(text: str) -> ast.Module | None:
    """What Python reads in a text; None where it reads nothing, or too much."""
    if len(text) > LONGEST_PARSED:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return tree if tree.body else None
