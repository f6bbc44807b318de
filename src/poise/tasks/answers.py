"""Mathematical answers as values: `parsed(text)` reads one, `equal(answer, gold)` compares two.

A number is compared exactly where both are written exactly, and to a relative 1e-6 where one is a decimal fraction. A
word is no product of letters, an equation no number; lists are compared as sets, tuples and intervals in their order.
LaTeX expressions are read by latex2sympy (of math-verify), numbers with their units by `quantities`; lists, intervals,
relations and words here.
"""

import functools
import re
from dataclasses import dataclass, replace
from typing import Any

from poise.tasks.answer_text import plain_latex
from poise.tasks.expressions import expression, proportional
from poise.tasks.quantities import FUNCTIONS, Quantity, quantity, same_quantity

_RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv|in|notin)(?![a-zA-Z])|[<>=]")
_OPEN, _CLOSE = "([{", ")]}"
_LONGEST = 2000
_LEADING_WORDS = re.compile(
    r"^\\text\s*\{\s*(?:(?:so|thus|hence|therefore|the|final|is|answer|about|around|approximately|roughly|exactly)[\s:,=]*|"
    r"[a-zA-Z ]*[a-zA-Z]\s*[:=]\s*)+\}\s*(?=\S)",
    re.IGNORECASE,
)
_ALL_REALS = re.compile(
    r"(?:[a-z]\s*\\in\s*)?\\mathbb\s*\{?\s*R\s*\}?|\\R|(?:the|all)\s+(?:set\s+of\s+)?real(?:s|\s+numbers)?"
)
_SET_BUILDER = re.compile(
    r"\\\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\\mid|\||:)\s*(.*[<>]|.*\\[lg]e\b)(.*)\\\}"
)


@dataclass(frozen=True)
class Word:
    """An answer in letters, without case and articles."""

    text: str


@dataclass(frozen=True)
class Many:
    """Several answers: between brackets in this order, or (brackets "{}" or none) in any."""

    items: tuple["Answer", ...]
    brackets: str = ""

    @property
    def ordered(self) -> bool:
        """Whether the order counts."""
        return self.brackets not in ("", "{}", "U")


@dataclass(frozen=True)
class Relation:
    """Sides and the signs between them, where they are no interval and give no value."""

    sides: tuple["Answer", ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """A value with the name it is given to: x = 5."""

    name: str
    value: "Answer"


Answer = Word | Quantity | Many | Relation | Named


@functools.lru_cache(maxsize=4096)
def parsed(text: str) -> Answer:
    """Read an answer; what is no mathematics is a `Word`.

    Args:
        text: LaTeX or plain text, without a box around it.
    """
    if len(text) > _LONGEST:
        return Word(text[:_LONGEST])
    plain = _bare(plain_latex(text.strip(" \n*`")))
    return _parsed(plain) if plain else Word("")


def equal(answer: Answer, gold: Answer) -> bool:
    """Whether two answers say the same; symmetric, and true of an answer and itself."""
    if answer == gold:
        return True
    if isinstance(answer, Named) and isinstance(gold, Named):
        axes = {answer.name, gold.name} <= {"x", "y", "z"}  # x = 1 and y = 1 are two lines
        return equal(answer.value, gold.value) and (answer.name == gold.name or not axes)
    if isinstance(answer, Named) or isinstance(gold, Named):
        named, other = (answer, gold) if isinstance(answer, Named) else (gold, answer)
        assert isinstance(named, Named)
        return _relations_agree(named, other) if isinstance(other, Relation) else equal(named.value, other)
    match answer, gold:
        case Quantity(), Quantity():
            return same_quantity(answer, gold)
        case Many(), Many():
            return _same_items(answer, gold)
        case Relation(), Relation():
            return _same_relation(answer, gold)
        case (Many(items=(single,)), other) | (other, Many(items=(single,))):
            return equal(single, other)
    return False


def _bare(text: str) -> str:
    """Without dollars, marks and a full stop around it, labels in front, and parentheses around a single value."""
    while True:
        before = text
        text = text.strip().strip("`*\"'“”「」『』【】«»").strip()
        text = re.sub(r"^\\\(|\\\)$|^\\\[|\\\]$", "", text).strip()
        if re.fullmatch(r"(?<!\\)\$[^$]*(?<!\\)\$|\$\$[^$]*\$\$", text):
            text = text.strip("$").strip()
        text = re.sub(r"^_(.*)_$", r"\1", text)
        text = re.sub(r"(?<![.\s])\s*[.;,]$|(?<=\\ldots) *[.,;]$", "", text)
        text = re.sub(r"^(?:\\approx|=|:|~|\\equiv)\s*", "", text)
        text = re.sub(r"^\\text\s*\{((?:[^{}]|\{[^{}]*\})*)\}$", r"\1", text)
        text = re.sub(
            r"^(?:(?:the|final|our|correct)\s+)*(?:answer|ans)\b\s*(?:is\b|:|=)?\s*", "", text, flags=re.IGNORECASE
        )
        text = _LEADING_WORDS.sub("", text)
        if re.fullmatch(r"\{[^{},]*\}", text):
            text = text[1:-1]
        if text == before:
            return text


def _parsed(text: str) -> Answer:
    text = text.strip()
    if _ALL_REALS.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip()):
        return Many((_parsed("-\\infty"), _parsed("\\infty")), "()")
    if re.fullmatch(r"\\\{\s*\\\}", text):
        text = r"\emptyset"
    if builder := _SET_BUILDER.fullmatch(text):
        return _parsed(builder[2] + builder[3])
    if re.fullmatch(r"\][^\[\]()]*,[^\[\]()]*\[", text):
        text = f"({text[1:-1]})"
    if _is_word(text):
        return _word(text)
    text, found = _alternatives(text)
    if found is not None:
        return found
    matrix = re.fullmatch(
        r"\\begin\{([pbvBV]?matrix|array|cases)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", text, flags=re.DOTALL
    )
    if matrix:
        rows = [row for row in re.split(r"\\\\", matrix[2]) if row.strip()]
        return Many(tuple(Many(tuple(_parsed(cell) for cell in row.split("&")), "row") for row in rows), "matrix")
    if re.search(r"\\(?:pm|mp)(?![a-z])", text):
        plus = re.sub(r"\\mp(?![a-z])", "-", re.sub(r"\\pm(?![a-z])", "+", text))
        minus = re.sub(r"\\mp(?![a-z])", "+", re.sub(r"\\pm(?![a-z])", "-", text))
        return _flat((_parsed(plus.lstrip("+ ")), _parsed(minus.lstrip("+ "))), "")
    relation = _relation(text)
    if relation is not None:
        return relation
    bracketed = _bracketed(text)
    if bracketed is not None:
        return bracketed
    return quantity(text) or _word(text)


def _alternatives(text: str) -> tuple[str, Answer | None]:
    """Lists and unions at the top level; else the text as it is."""
    unions = _split(text, (r"\cup",))
    if len(unions) > 1:
        return text, _flat(tuple(_parsed(part) for part in unions), "U")
    joined = re.sub(r"\\text\s*\{\s*,?\s*(and|or)\s*,?\s*\}", r" \1 ", text)
    parts = _split(joined, (",", ";", " and ", " or ", "和", "或"))
    parts = [part for part in parts if part.strip()]
    if len(parts) > 1 and not re.match(r"\\(?:gcd|max|min|lcm)", joined):
        items = tuple(_parsed(_bare(part)) for part in parts)
        intervals = all(isinstance(item, Many) and item.brackets in _INTERVALS for item in items)
        dotted = any(item == Word("…") for item in items)
        if intervals and " or " in joined:
            return joined, _flat(items, "U")
        return joined, Many(items, "…") if dotted else _flat(items, "")
    return joined, None


_INTERVALS = {"()", "[]", "(]", "[)"}


def _flat(items: tuple[Answer, ...], brackets: str) -> Answer:
    """Unordered items without lists in lists and without repetitions."""
    flat: list[Answer] = []
    for item in items:
        inner = item.items if isinstance(item, Many) and item.brackets in ("", "U") else (item,)
        flat += [each for each in inner if not any(equal(each, other) for other in flat)]
    return flat[0] if len(flat) == 1 else Many(tuple(flat), brackets)


def _split(text: str, separators: tuple[str, ...]) -> list[str]:
    """Parts between separators that stand in no bracket; half-open intervals close with any bracket."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        separator = next((each for each in separators if text.startswith(each, at)), None) if depth == 0 else None
        if separator is not None and not (separator.startswith("\\") and text[at + len(separator) :][:1].isalpha()):
            parts.append(text[start:at])
            at += len(separator)
            start = at
            continue
        if text[at] == "\\" and text[at + 1 : at + 2] in ("{", "}"):
            depth += 1 if text[at + 1] == "{" else -1
            at += 2
            continue
        depth += (text[at] in _OPEN) - (text[at] in _CLOSE)
        depth = max(depth, 0)
        at += 1
    return [*parts, text[start:]]


def _bracketed(text: str) -> Answer | None:
    """What one pair of brackets holds: a set, a tuple, an interval, or a single value in parentheses."""
    is_set = text.startswith("\\{") and text.endswith("\\}")
    inside = text[2:-2] if is_set else text[1:-1]
    opening, closing = ("{", "}") if is_set else (text[:1], text[-1:])
    pair = {"\\langle": "(", "(": "(", "[": "[", "{": "{", "]": "("}.get(opening)
    if pair is None or closing not in (*_CLOSE, "[") or not _is_one_pair(inside):
        return None
    parts = _split(inside, (",", ";"))
    if len(parts) == 1 and not is_set:
        return _parsed(_bare(inside)) if (opening, closing) in (("(", ")"), ("[", "]"), ("{", "}")) else None
    items = tuple(_parsed(_bare(part)) for part in parts if part.strip())
    if is_set or opening == "{":
        flat = _flat(items, "{}")
        return flat if isinstance(flat, Many) else Many((flat,), "{}")
    if pair + closing == "[]" and all(isinstance(item, Many) and item.brackets == "[]" for item in items):
        return Many(tuple(replace(item, brackets="row") for item in items if isinstance(item, Many)), "matrix")
    return Many(items, pair + (")" if closing == "[" else closing))


def _is_one_pair(inside: str) -> bool:
    """Whether no bracket closes in here that was not opened in here: "(1)(2)" is two pairs."""
    depth = 0
    for character in re.sub(r"\\[{}]", "", inside):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _relation(text: str) -> Answer | None:
    """Equations and inequalities: a value, an interval, or a relation that is neither."""
    signs: list[str] = []
    sides: list[str] = []
    rest = 0
    depth = 0
    for token in re.finditer(r"\\[{}]|[()\[\]{}]|" + _RELATION.pattern, text):
        if token[0] in ("\\{", "(", "[", "{"):
            depth += 1
        elif token[0] in ("\\}", ")", "]", "}"):
            depth = max(0, depth - 1)
        elif depth == 0:
            sides.append(text[rest : token.start()].strip())
            signs.append(token[0])
            rest = token.end()
    if not signs:
        return None
    sides.append(text[rest:].strip())
    if any(not side for side in sides):
        return _word(text)
    if all(sign in ("=", r"\approx") for sign in signs):
        return _value_of_equation(sides)
    if signs == [r"\in"] and _is_name(sides[0]):
        return _parsed(_bare(sides[1]))
    interval = _interval(sides, signs)
    return interval or Relation(tuple(_parsed(side) for side in sides), tuple(signs))


def _value_of_equation(sides: list[str]) -> Answer:
    """The value that an equation gives: of what stands beside a name, or of sides that are all equal numbers."""
    names = [side for side in sides if _is_name(side)]
    values = [_parsed(_bare(side)) for side in sides if not _is_name(side)]
    constant = all(isinstance(each, Quantity) and each.value.is_constant for each in values)
    if names and values and all(equal(values[0], each) for each in values[1:]):
        return Named(names[0], values[-1])
    if not names and constant and all(equal(values[0], each) for each in values[1:]):
        return values[-1]
    return Relation(tuple(_parsed(_bare(side)) for side in sides), ("=",) * (len(sides) - 1))


def _is_name(text: str) -> bool:
    """A variable, a function at a place, a segment or a tuple of variables: what a value can be given to."""
    letter = r"(?:\\[a-zA-Z]+|[a-zA-Z])(?:_(?:\{[^{}]*\}|\w))?'*"
    call = rf"{letter}\s*\((?:[^()]*)\)"
    figure = r"m?\s*\\(?:angle|overline|triangle)\s*\{?\s*[A-Z]{1,3}\s*\}?|\|\s*[A-Z]{2}\s*\|"
    figure += r"|\\frac\s*\{d[^{}]*\}\s*\{d[^{}]*\}"
    names = rf"(?:{letter}|{call}|[A-Z]{{2,4}}|{figure}|\\text\s*\{{\s*[a-zA-Z][^{{}}]*\}})"
    others = ("\\pi", "\\infty", "e", "i")
    return text not in others and bool(
        re.fullmatch(rf"{names}|\(\s*{letter}(?:\s*,\s*{letter})+\s*\)|[a-zA-Z]{{3,}}", text)
    )


def _interval(sides: list[str], signs: list[str]) -> Many | None:
    """The interval of a variable between bounds: x > 2, or -2 < x <= 3."""
    flip = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    if any(sign not in flip for sign in signs):
        return None
    minus_infinity, infinity = _parsed("-\\infty"), _parsed("\\infty")
    if len(signs) == 1:
        left, right = sides
        sign = signs[0]
        if (size := re.fullmatch(r"\|\s*([a-zA-Z])\s*\|", left)) and sign in ("<", r"\le"):
            return _interval([f"-({right})", size[1], right], signs * 2)
        if _is_name(right) and not _is_name(left):
            left, right, sign = right, left, flip[sign]
        if not _is_name(left):
            return None
        bound = _parsed(right)
        if sign in (">", r"\ge"):
            return Many((bound, infinity), "(" + ")" if sign == ">" else "[)")
        return Many((minus_infinity, bound), "()" if sign == "<" else "(]")
    if len(signs) == 2 and _is_name(sides[1]):
        if all(sign in (">", r"\ge") for sign in signs):
            sides, signs = sides[::-1], [flip[sign] for sign in reversed(signs)]
        if all(sign in ("<", r"\le") for sign in signs):
            brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
            return Many((_parsed(sides[0]), _parsed(sides[2])), brackets)
    return None


def _is_word(text: str) -> bool:
    """Letters that are no product: capitals, a known word's length, or text by its mark."""
    if re.fullmatch(r"(?:\\ldots|\.\.\.)\s*", text):
        return True
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip()
    if re.search(r"[^a-zA-Z\s'.,()-]", bare) or not re.search("[a-zA-Z]", bare):
        return False
    words = re.findall(r"[a-zA-Z']+", bare)
    if len(words) == 1 and (words[0] in FUNCTIONS or words[0] in ("pi", "infty")):
        return False
    if re.search(r"\b(?:or|and)\b|,", bare) and len(words) <= 4 and "\\text" not in text:
        return False
    return "\\text" in text or any(
        (len(word) > 1 and word.isupper()) or len(word) > 3 or _is_short_word(word.lower()) for word in words
    )


def _is_short_word(word: str) -> bool:
    """Whether two or three small letters are spoken: products are of consonants, and of a to d and x to z."""
    return (len(word) == 2 and "o" in word) or (
        len(word) == 3 and bool(set(word) & set("aeiou") - (set("a") if set(word) <= set("abcdxyz") else set()))
    )


def _word(text: str) -> Word:
    if re.fullmatch(r"(?:\\ldots|\.\.\.)\s*", text.strip()):
        return Word("…")
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    bare = re.sub(r"^\s*(?:the|an|a)\s+(?=\w\w)", "", re.sub(r"[\"'`*.]", "", bare).casefold())
    return Word(" ".join(bare.split()))


def _same_items(answer: Many, gold: Many) -> bool:
    pairs = {answer.brackets, gold.brackets}
    loose = pairs <= {"", "{}"} or pairs in ({"", "()"}, {"", "row"})
    if len(answer.items) != len(gold.items) or (answer.brackets != gold.brackets and not loose):
        return False
    if answer.ordered or gold.ordered:
        return all(equal(mine, theirs) for mine, theirs in zip(answer.items, gold.items, strict=True))
    left = list(gold.items)
    for item in answer.items:
        match = next((at for at, each in enumerate(left) if equal(item, each) and _same_name(item, each)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _same_name(answer: Answer, gold: Answer) -> bool:
    """Whether two values in a list are given to the same name, or one of them to none."""
    return not (isinstance(answer, Named) and isinstance(gold, Named)) or answer.name == gold.name


def _same_relation(answer: Relation, gold: Relation) -> bool:
    if answer.signs != gold.signs or len(answer.sides) != len(gold.sides):
        return False
    if answer.signs == ("=",):
        sides = [*answer.sides, *gold.sides]
        if all(isinstance(side, Quantity) for side in sides):
            values: list[Any] = [side.value for side in sides if isinstance(side, Quantity)]
            return proportional((values[0], values[1]), (values[2], values[3]))
    if answer.signs[0] in ("=", r"\ne") and all(map(equal, answer.sides, reversed(gold.sides))):
        return True
    return all(map(equal, answer.sides, gold.sides))


def _relations_agree(named: Named, relation: Relation) -> bool:
    name = expression(named.name)
    if name is None or not isinstance(named.value, Quantity):
        return False
    return _same_relation(Relation((Quantity(name), replace(named.value)), ("=",)), relation)
