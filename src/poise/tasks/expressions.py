"""Values of LaTeX expressions: exact rationals where they are written exactly, else numbers at probe points.

Two expressions are the same where they agree at points drawn once for all, at sixty digits. Sizes of exact numbers are
bounded, so that a tower of powers costs no time; what neither way can read is compared by math-verify.
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from poise.extras import required_extra

_MOST_BITS = 20_000
_DIGITS = 60
_DECIMAL_TOLERANCE = 1e-6
_NUMBER = re.compile(
    r"([-+]?)\s*(\d+\.?\d*|\.\d+)(?:\s*(?:[eE]\s*([-+]?\d{1,4})|(?:\\times|\\cdot)\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,4})\s*\}|(\d))))?"
)
_FRACTION = re.compile(
    r"([-+]?)\s*(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)|([-+]?)\s*(\d*)\s*\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}"
)
_REPEATING = re.compile(r"(\d+)\.(\d*)\\(?:overline|dot)\s*\{\s*(\d+)\s*\}")


@dataclass(frozen=True)
class Expression:
    """A value: `exact` where it is a rational number; `tree` is sympy's, None where `exact` was read without it.

    Attributes:
        exact: The number, None where it is no rational or too large.
        decimal: Whether it is written as a decimal fraction, whose last digit may be rounded.
        tree: The expression.
        text: What it was read from.
    """

    exact: Fraction | None
    decimal: bool
    tree: Any
    text: str

    @property
    def is_constant(self) -> bool:
        """Whether no variable is in it."""
        return self.exact is not None or not _symbols(self.tree)

    def times(self, factor: Fraction) -> "Expression":
        """This value times a number."""
        exact = None if self.exact is None else self.exact * factor
        return Expression(exact, self.decimal, None if self.tree is None else self.tree * _rational(factor), "")


@functools.lru_cache(maxsize=4096)
def expression(text: str) -> Expression | None:
    """Read an expression in plain LaTeX; None where it is none."""
    text = text.strip()
    if r"\overline" in text or r"\dot" in text:
        text = _REPEATING.sub(_fraction_of_repeating, text)
    number = _number(text)
    if number is not None:
        return number
    if len(text) > 500 or re.search(r"[?!]\s*\w*\?|\\text|[^\x00-\x7f]", text) or text.count("{") > 60:
        return None
    readable = re.sub(r"(?<![\d.a-zA-Z])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?!\w)", r"\1\\times 10^{\2}", text)
    readable = re.sub(r"(?<![\d.])(\d+)\.(?!\d)", r"\1", readable)
    readable = re.sub(r"(?<!\d)\.(\d)", r"0.\1", readable)
    readable = re.sub(r"(\d)\s+(?=\d+\s*/\s*\d)", r"\1+", readable)
    with required_extra("tasks", "the verifier of mathematics"):
        from latex2sympy2_extended import latex2sympy

    try:
        tree = latex2sympy(readable)
    except Exception:
        return None
    if not hasattr(tree, "free_symbols"):
        return None
    decimal = bool(re.search(r"\d\.\d", text))
    return Expression(_exact(tree), decimal, tree, text)


def same_value(one: Expression, other: Expression) -> bool:
    """Whether two expressions have the same value, whatever their variables are."""
    if one.exact is not None and other.exact is not None:
        if one.exact == other.exact:
            return True
        largest = max(abs(one.exact), abs(other.exact))
        return (one.decimal or other.decimal) and abs(one.exact - other.exact) <= largest * Fraction(1, 10**6)
    if _symbols(one.tree) != _symbols(other.tree) and one.exact is None and other.exact is None:
        return _canonically_same(one, other)
    tolerance = _DECIMAL_TOLERANCE if one.decimal or other.decimal else 1e-40
    try:
        points = [_values((one, other), point) for point in range(3)]
        return all(
            _close(values[0], values[1], tolerance)
            for point, values in enumerate(points)
            if point < 2 or _are_real(values)
        )
    except _UnreadableError:
        return _canonically_same(one, other)


def _are_real(values: list[Any]) -> bool:
    """Whether two functions are real at a point: where ln x is not, ln x^2 and 2 ln x may differ."""
    return all(value.imag == 0 for value in values)


def proportional(one: tuple[Expression, Expression], other: tuple[Expression, Expression]) -> bool:
    """Whether two equations, each as its two sides, are multiples of each other."""
    try:
        ratios = []
        for point in range(4):
            left, right, left_too, right_too = _values((*one, *other), point)
            mine, theirs = left - right, left_too - right_too
            if abs(theirs) < 1e-30 or abs(mine) < 1e-30:
                return False
            ratios.append(mine / theirs)
        return all(abs(ratio - ratios[0]) <= 1e-15 * abs(ratios[0]) for ratio in ratios)
    except _UnreadableError:
        return False


class _UnreadableError(Exception):
    """An expression that has no number at a point."""


def _number(text: str) -> Expression | None:
    """Integers, decimals, powers of ten, fractions and mixed numbers, read without a grammar."""
    match = _NUMBER.fullmatch(text)
    if match:
        power = next((int(each) for each in match.groups()[2:] if each), 0)
        value = Fraction(match[2].rstrip(".") if match[2] != "." else "0") * Fraction(10) ** power
        decimal = "." in match[2].rstrip(".") and bool(match[2].rpartition(".")[2])
        return Expression(-value if match[1] == "-" else value, decimal, None, text)
    match = _FRACTION.fullmatch(text)
    if match:
        sign, whole, top, bottom = match.groups()[:4] if match[3] else match.groups()[4:]
        if int(bottom) == 0:
            return None
        value = Fraction(int(top), int(bottom)) + int(whole or 0)
        return Expression(-value if sign == "-" else value, False, None, text)
    return None


def _fraction_of_repeating(match: "re.Match[str]") -> str:
    """The fraction that a decimal with repeating digits is."""
    whole, fixed, repeated = match.groups()
    nines = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    return rf"\frac{{{int(whole + fixed + repeated) - int(whole + fixed)}}}{{{nines}}}"


def _rational(value: Fraction) -> Any:
    from sympy import Rational

    return Rational(value.numerator, value.denominator)


def _symbols(tree: Any) -> frozenset[str]:
    if tree is None or not hasattr(tree, "free_symbols"):
        return frozenset()
    return frozenset(str(symbol).lower() for symbol in tree.free_symbols) - {"i", "e"}


def _exact(tree: Any) -> Fraction | None:
    """The rational number that a tree of sums, products, powers and factorials is; None where none, or too large."""
    if tree.is_Integer or tree.is_Rational:
        return Fraction(int(tree.p), int(tree.q))
    if tree.is_Float:
        return Fraction(str(tree))
    name = type(tree).__name__
    if name not in ("Add", "Mul", "Pow", "factorial", "binomial"):
        return None
    parts = [_exact(each) for each in tree.args]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    try:
        return _combined(name, known)
    except (ArithmeticError, ValueError):
        return None


def _combined(name: str, parts: list[Fraction]) -> Fraction | None:
    if name == "Pow":
        base, power = parts
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        return base ** int(power) if power.denominator == 1 and abs(power) * bits <= _MOST_BITS else None
    if name in ("factorial", "binomial"):
        import math

        if any(part.denominator != 1 or not 0 <= part <= 1500 for part in parts):
            return None
        return Fraction(getattr(math, {"factorial": "factorial", "binomial": "comb"}[name])(*map(int, parts)))
    total = Fraction(0) if name == "Add" else Fraction(1)
    for part in parts:
        total = total + part if name == "Add" else total * part
        if total.numerator.bit_length() > 4 * _MOST_BITS:
            return None
    return total


def _values(expressions: tuple[Expression, ...], point: int) -> list[Any]:
    import mpmath

    names = sorted(set().union(*(_symbols(each.tree) for each in expressions)))
    with mpmath.workdps(_DIGITS):
        seeds = (0.7320508, 1.6180339, -0.5772156, 2.2360679)
        given = {name: mpmath.mpf(seeds[(point + at) % 4]) * (1 + mpmath.mpf(at) / 7) for at, name in enumerate(names)}
        return [_value(each, given) for each in expressions]


def _value(each: Expression, given: dict[str, Any]) -> Any:
    import mpmath

    if each.exact is not None:
        return mpmath.mpf(each.exact.numerator) / each.exact.denominator
    try:
        value = mpmath.mpc(_evaluated(each.tree, given))
    except (ArithmeticError, ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise _UnreadableError from error
    return value


_NAMES = {"Abs": "fabs", "ceiling": "ceil"}
_NAMES |= {
    name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "re", "im")
}
_NAMES |= {name: name for name in ("sinh", "cosh", "tanh", "exp", "floor", "gamma", "sqrt", "conjugate")}


def _evaluated(tree: Any, given: dict[str, Any]) -> Any:
    import mpmath

    name = type(tree).__name__
    if tree.is_Rational:
        return mpmath.mpf(int(tree.p)) / int(tree.q)
    if tree.is_Float:
        return mpmath.mpf(str(tree))
    if tree.is_Symbol:
        letter = str(tree).lower()
        return {"i": mpmath.mpc(0, 1), "e": mpmath.e, **given}[letter] if letter in {"i", "e", *given} else _unknown()
    constants = {"Pi": mpmath.pi, "Exp1": mpmath.e, "ImaginaryUnit": mpmath.mpc(0, 1), "GoldenRatio": mpmath.phi}
    if name in constants:
        return constants[name] * 1
    if name in ("Infinity", "NegativeInfinity"):
        return mpmath.inf if name == "Infinity" else -mpmath.inf
    parts = [_evaluated(each, given) for each in tree.args]
    if name == "Add":
        return mpmath.fsum(parts)
    if name == "Mul":
        return mpmath.fprod(parts)
    if name == "Pow":
        return _power(tree, parts)
    if name == "log":
        return mpmath.log(*parts)
    if name in ("factorial", "binomial"):
        if any(abs(part) > 1e5 for part in parts):
            return _unknown()
        return getattr(mpmath, name)(*parts)
    return getattr(mpmath, _NAMES[name])(*parts) if name in _NAMES else _unknown()


def _power(tree: Any, parts: list[Any]) -> Any:
    import mpmath

    base, power = parts
    if abs(power) > 1e6:
        return _unknown()
    real_root = (
        tree.args[1].is_Rational and int(tree.args[1].q) % 2 == 1 and not isinstance(base, mpmath.mpc) and base < 0
    )
    if real_root and int(tree.args[1].q) > 1:  # the cube root of -8 is -2 to whoever asks for an answer
        return (-1) ** int(tree.args[1].p) * mpmath.power(-base, power)
    return mpmath.power(base, power)


def _unknown() -> Any:
    raise _UnreadableError


def _close(one: Any, other: Any, tolerance: float) -> bool:
    import mpmath

    with mpmath.workdps(_DIGITS):
        if mpmath.isnan(one) or mpmath.isnan(other):
            raise _UnreadableError
        if mpmath.isinf(one) or mpmath.isinf(other):
            return bool(one == other)
        largest = max(abs(one), abs(other))
        return bool(abs(one - other) <= max(tolerance * largest, mpmath.mpf(10) ** (8 - _DIGITS)))


def _canonically_same(one: Expression, other: Expression) -> bool:
    """math-verify's word on what has no number at a point: sets, integrals, unknown functions."""
    if one.tree is None or other.tree is None:
        return False
    if one.tree == other.tree:
        return True
    from math_verify import verify

    if _symbols(one.tree) != _symbols(other.tree) or any(_has_large_power(each.tree) for each in (one, other)):
        return False
    try:
        return bool(
            verify([one.tree], [other.tree], timeout_seconds=None)
            and verify([other.tree], [one.tree], timeout_seconds=None)
        )
    except Exception:
        return False


def _has_large_power(tree: Any) -> bool:
    numbers = (
        [abs(int(each)) for each in tree.atoms() if getattr(each, "is_Integer", False)]
        if hasattr(tree, "atoms")
        else []
    )
    return any(number > 1000 for number in numbers) or len(str(tree)) > 300
