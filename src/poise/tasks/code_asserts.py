"""Tests of programs that are written as assertions, taken apart into what is asked and what is expected."""

import ast
import builtins
import copy
import math
import operator
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

CLOSE_WHERE_RETURNED = 1e-5
"""Absolute or relative difference up to which numbers with a fraction are equal where a call gives them."""
ENTRY = "_entry_"
"""The function under test, where the tests call it by another name than its own."""


class UnreadableTestError(Exception):
    """A test has a form in which what is expected cannot be told from what is asked."""


@dataclass(frozen=True)
class CallTest:
    """An expression to evaluate after the program, and which values are accepted."""

    expression: str
    accepts: Callable[[Any], Any]
    before: str = ""
    """Statements to run first."""


@dataclass(frozen=True)
class Made:
    """An object of a class of the program's: what it was made of, or what its attributes are, in their order."""

    name: str
    given: list[Any]
    named: dict[str, Any]

    def is_made(self, value: Any) -> bool:
        """Whether an object has all these attributes and no others."""
        if isinstance(value, tuple) and not self.named:
            return alike(value, tuple(self.given))
        if not isinstance(value, Made) or value.name != self.name:
            return False
        wanted = dict(zip(value.named, self.given, strict=False)) | self.named
        return len(self.given) + len(self.named) == len(wanted) and alike(value.named, wanted)


def alike(value: Any, expected: Any) -> bool:
    """Whether Python calls two values equal, or would, were it not for the last digits of numbers with a fraction."""
    match expected:
        case float():
            near = CLOSE_WHERE_RETURNED
            number = isinstance(value, int | float | Decimal | Fraction)
            return bool(value == expected) or (number and math.isclose(value, expected, rel_tol=near, abs_tol=near))
        case list() | tuple() if type(value) is type(expected):
            return len(value) == len(expected) and all(map(alike, value, expected))
        case dict() if isinstance(value, dict):
            return value.keys() == expected.keys() and all(alike(value[key], each) for key, each in expected.items())
    return bool(value == expected)


COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: alike,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.eq,
    ast.IsNot: operator.ne,
    ast.In: lambda value, several: value in several,
    ast.NotIn: lambda value, several: value not in several,
}
CONSTANTS = {f"math.{name}": getattr(math, name) for name in ("pi", "e", "tau", "inf", "nan")}
MADE_OF: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (set, frozenset, tuple, list, dict, float, int, str, bool, complex, sorted, range, len, sum, abs, round)
}
MADE_OF |= {each.__name__: each for each in (min, max, Counter, OrderedDict, deque, Decimal, Fraction)}
"""What may be called, on plain values, in what a test expects."""
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
SIGNS |= {ast.Not: operator.not_}
LARGEST = 10**6
"""A factor or an exponent beyond it is not computed."""


@dataclass
class Asserts:
    """The assertions of a text, in their order, and what they need."""

    calls: list[CallTest] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    entry: str | None = None
    names: set[str] = field(default_factory=set)
    """Those that the calls use."""
    _values: dict[str, ast.expr] = field(default_factory=dict)
    _objects: set[str] = field(default_factory=set)
    _before: list[str] = field(default_factory=list)

    def read(self, statements: Sequence[ast.stmt]) -> None:
        """Add the assertions of statements.

        Raises:
            UnreadableTestError: If one of them has another form.
        """
        for each in statements:
            self._read_one(each)

    def _read_one(self, statement: ast.stmt) -> None:
        match statement:
            case ast.ImportFrom("solution" | "main" | "program"):
                return  # the program itself
            case ast.Import() | ast.ImportFrom():
                return self.imports.append(ast.unparse(statement))
            case ast.Pass() | ast.Expr(ast.Constant()):
                return None
            case ast.FunctionDef("check", ast.arguments([], [ast.arg(candidate)], None, [], [], None, [])):
                return self.read([_replaced(each, {candidate: ast.Name(ENTRY, ast.Load())}) for each in statement.body])
            case ast.FunctionDef(name, ast.arguments([], [], None, [], [], None, [])) if name.startswith("test_"):
                return self.read(statement.body)
            case ast.Expr(ast.Call(ast.Name("check"), [function], [])):
                self.entry = self.entry or ast.unparse(function)
                return None
            case ast.Assign([ast.Name(name)], value):
                value = _replaced(value, self._values)
                if self._is_plain(value):
                    self._values[name] = value
                else:
                    self._values.pop(name, None)
                    self._objects.add(name)
                    self._asked(value)
                    self._before.append(f"{name} = {ast.unparse(value)}")
                return None
            case ast.Expr(ast.Call(ast.Attribute(ast.Name(name)))) if name in self._objects:
                return self._before.append(self._asked(_replaced(statement.value, self._values)))
            case ast.Assert(test):
                return self._assert(_replaced(test, self._values))
        raise _unreadable(statement)

    def _assert(self, test: ast.expr) -> None:
        compare: Callable[[Any, Any], Any]
        match test:
            case ast.Constant(True):
                return
            case ast.BoolOp(ast.And(), parts):
                for part in parts:
                    self._assert(part)
                return
            case ast.Compare(asked, [ast.Eq()], [ast.Call(ast.Name(name), given, named)]) if (
                name[:1].isupper()
                and name not in MADE_OF
                and not self._is_plain(asked)
                and all(self._is_plain(each) for each in (*given, *(pair.value for pair in named if pair.arg)))
            ):
                made = Made(name, [*_items(given)], {str(pair.arg): _plain(pair.value) for pair in named})
                return self._add(asked, made.is_made)
            case ast.Compare(
                ast.Call(ast.Name("abs"), [ast.BinOp(asked, ast.Sub(), middle)]),
                [ast.Lt() | ast.LtE() as within],
                [far],
            ) if not self._is_plain(asked) and self._is_plain(middle) and self._is_plain(far):
                centre, distance, closer = _plain(middle), _plain(far), COMPARISONS[type(within)]
                return self._add(asked, lambda value: closer(abs(value - centre), distance))
            case ast.Compare(asked, [comparison], [expected]) if self._splits(asked, comparison, expected):
                compare, right = COMPARISONS[type(comparison)], _plain(expected)
                return self._add(asked, lambda value: compare(value, right))
            case ast.Compare(expected, [comparison], [asked]) if self._splits(asked, comparison, expected):
                compare, left = COMPARISONS[type(comparison)], _plain(expected)
                if isinstance(comparison, ast.Eq):
                    return self._add(asked, lambda value: alike(value, left))
                return self._add(asked, lambda value: compare(left, value))
            case ast.Call(
                ast.Attribute(ast.Name("math"), "isclose") | ast.Name("isclose"), [asked, expected], options
            ) if self._is_plain(expected) and all(each.arg and self._is_plain(each.value) for each in options):
                allowed, near = {str(each.arg): _plain(each.value) for each in options}, _plain(expected)
                return self._add(asked, lambda value: math.isclose(value, near, **allowed))
            case ast.Call() as asked if _is_own_call(asked):
                return self._add(asked, bool)
            case ast.UnaryOp(ast.Not(), ast.Call() as asked) if _is_own_call(asked):
                return self._add(asked, lambda value: not value)
        raise _unreadable(ast.Assert(test))

    def _splits(self, asked: ast.expr, comparison: ast.cmpop, expected: ast.expr) -> bool:
        return type(comparison) in COMPARISONS and self._is_plain(expected) and not self._is_plain(asked)

    def _add(self, asked: ast.expr, accepts: Callable[[Any], Any]) -> None:
        self.calls.append(CallTest(self._asked(asked), accepts, "\n".join(self._before)))
        self._before.clear()

    def _asked(self, expression: ast.expr) -> str:
        self.names |= {each.id for each in ast.walk(expression) if isinstance(each, ast.Name)} - self._objects
        return ast.unparse(expression)

    def _is_plain(self, node: ast.expr) -> bool:
        try:
            _plain(node)
        except Exception:  # whatever cannot be computed without the program
            return False
        return True


def asserted(text: str) -> Asserts:
    """The assertions of a text.

    Raises:
        UnreadableTestError: If it is no Python, or holds something else than assertions.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise UnreadableTestError(f"tests are neither JSON nor Python: {text!r:.80}") from error
    found = Asserts()
    found.read(statements)
    if not found.calls:
        others = [each for each in statements if not isinstance(each, ast.Import | ast.ImportFrom)]
        raise _unreadable(others[0]) if others else UnreadableTestError("there is no test")
    return found


def _unreadable(statement: ast.stmt) -> UnreadableTestError:
    text = ast.unparse(statement)
    return UnreadableTestError(f"a test must be `assert CALL == VALUE` or alike, got {text!r:.80}")


def _replaced(node: Any, values: Mapping[str, ast.expr]) -> Any:
    """With expressions in the place of names."""

    class Replacing(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return values.get(name.id, name) if isinstance(name.ctx, ast.Load) else name

    return Replacing().visit(copy.deepcopy(node)) if values else node


def _is_own_call(call: ast.Call) -> bool:
    """Whether it is a call of something of the program's; `all(...)` around a comparison tells what is expected."""
    return not (isinstance(call.func, ast.Name) and hasattr(builtins, call.func.id))


def _plain(node: ast.expr) -> Any:
    """The value of an expression of plain values, such as `set([1, 2])` or `2**10`.

    Raises:
        ValueError: If it is something else.
    """
    match node:
        case ast.Constant(value):
            return value
        case ast.List(items):
            return [*_items(items)]
        case ast.Tuple(items):
            return tuple(_items(items))
        case ast.Set(items):
            return set(_items(items))
        case ast.Dict(keys, values):
            return dict(zip(_items(keys), _items(values), strict=True))
        case ast.Attribute(ast.Name(), _) if ast.unparse(node) in CONSTANTS:
            return CONSTANTS[ast.unparse(node)]
        case ast.UnaryOp(sign, inner) if type(sign) in SIGNS:
            return SIGNS[type(sign)](_plain(inner))
        case ast.BinOp(left, how, right) if type(how) in OPERATORS:
            one, two = _plain(left), _plain(right)
            large = [each for each in (one, two) if isinstance(each, int) and abs(each) > LARGEST]
            if isinstance(how, ast.Pow) and (large or abs(two) > 1000):
                raise ValueError("too large")
            if isinstance(how, ast.Mult) and large and not all(isinstance(each, int | float) for each in (one, two)):
                raise ValueError("too long")
            return OPERATORS[type(how)](one, two)
        case ast.Call(ast.Name(name) | ast.Attribute(ast.Name("collections"), name), arguments, []) if name in MADE_OF:
            return MADE_OF[name](*_items(arguments))
    raise ValueError(f"{ast.unparse(node)!r:.80} is no plain value")


def _items(nodes: Sequence[ast.expr | None]) -> Iterator[Any]:
    for each in nodes:
        if each is None:
            raise ValueError("a dict in a dict")
        yield _plain(each)
