"""Quantities: expressions with a unit, a percent sign or a base, as answers write them."""

import re
from dataclasses import dataclass
from fractions import Fraction

from poise.tasks.expressions import Expression, expression, same_value

_UNITS = """
m meter meters metre metres | cm centimeter centimeters centimetre centimetres | mm millimeter millimeters
km kilometer kilometers kilometre kilometres | in inch inches | ft foot feet | yd yard yards | mi mile miles
g gram grams | kg kilogram kilograms | mg milligram milligrams | lb lbs pound pounds | oz ounce ounces
l L liter liters litre litres | ml mL milliliter milliliters | s sec second seconds | min minute minutes
h hr hrs hour hours | day days | week weeks | month months | year years yr yrs | usd USD dollar dollars
cent cents ¢ | eur EUR euro euros | gbp GBP | jpy JPY yen | inr INR | km/h kph kmh km/hr | m/s | mph mi/h | m/s^2
ohm ohms | kohm | A amp amps ampere amperes | um | us | uF | uA | uC | uL | uV
uW | F | T tesla | eV | rmb RMB CNY yuan
deg degree degrees ° | rad radian radians | J joule joules | N newton newtons | W watt watts | V volt volts | Pa | kPa
Hz hertz | kJ | kW | mol mole moles | K kelvin | C celsius | unit units sq square cubic
"""
"""Units, each by the first of its spellings."""
_UNIT_OF = {
    spelling: spellings.split()[0] for spellings in re.split(r"[|\n]", _UNITS.strip()) for spelling in spellings.split()
}
_CURRENCY = {"$": "usd", "£": "gbp", "€": "eur", "¥": "jpy", "₹": "inr"}
_DIGIT_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    *("nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
)
FUNCTIONS = (
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
    *("log", "ln", "exp", "max", "min", "gcd", "lcm", "det"),
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"(?<=\d)\s*(?:\\text\s*\{{)?\s*({'|'.join(_SCALES)})\b\s*\}}?")
_BASE_IN_WORDS = re.compile(
    r"\(?([0-9A-Fa-f]+)\)?\s*\(?\s*(?:\\text\s*\{)?[\s(]*(?:in\s+)?base[\s-]*\}?\s*(\w+)[\s)]*\}?\s*\)?", re.IGNORECASE
)
_NUMBER_END = r"(?:(?<=[\d)}\]])|(?<=\\pi)|(?<=\\pi ))"


@dataclass(frozen=True)
class Quantity:
    """An expression with its unit ("" where none is written), the factor of its scale, and its digits' base.

    The scale is said in a word or a sign behind the number, as in "5%" or "5 million"; answers leave it out.
    """

    value: Expression
    unit: str = ""
    scale: Fraction = Fraction(1)
    base: str = ""


def quantity(text: str) -> Quantity | None:
    """An expression with what stands around it: currency, percent, unit, base."""
    unit = ""
    text = re.sub(r"(?<=[\d)}])\s*(?:\\text\s*\{\s*)?([kM]?)\s*\}?\s*\\Omega$", r"\\text{\1ohm}", text)
    text = re.sub(r"(?<=[\d)}])\s*\\mu\s*(?:([msFACLVW])|\\text\s*\{\s*([a-zA-Z]+)\s*\})$", r"\\text{u\1\2}", text)
    text = re.sub(r"^(?:Rs\.?|INR|₹)\s*(?=\d)", "₹", re.sub(r"^(?:US\s*\\?\$|USD)\s*(?=\d)", "$", text))
    text = _BASE_IN_WORDS.sub(r"\1_{\2}", text) if _BASE_IN_WORDS.fullmatch(text) else text
    scale = Fraction(1)
    if said := _SCALE.search(text):
        scale, text = Fraction(_SCALES[said[1]]), text[: said.start()] + " " + text[said.end() :]
        text = text.strip()
    currency = re.match(r"^([-+]?)\s*\\?([$£€¥₹])\s*(?=[\d.(\\-])", text)
    if currency:
        unit = _CURRENCY[currency[2]]
        text = currency[1] + text[currency.end() :]
    elif trailing := re.search(r"\s*\\?([$£€¥₹])$", text):
        unit = _CURRENCY[trailing[1]]
        text = text[: trailing.start()]
    percent = re.search(r"\s*(?:\\?%|\bper\s*cent\b|\bpercent\b|\\text\s*\{\s*(?:\\?%|percent|per cent)\s*\})$", text)
    if percent:
        text, scale = text[: percent.start()], Fraction(1, 100)
    else:
        text, written = _without_unit(text)
        unit = unit or written
    text = text.strip()
    base = ""
    text = re.sub(r"^\\text\s*\{\s*([0-9A-Fa-f]+)\s*\}(?=_)", r"\1", text)
    subscript = re.fullmatch(r"\(?([0-9A-Fa-f]+)\)?_\{?\s*(?:\\text\s*\{)?\s*(\w+)\s*\}?\s*\}?", text)
    if subscript and (subscript[2].isdigit() or subscript[2].lower() in _DIGIT_WORDS):
        word = subscript[2].lower()
        base = word if word.isdigit() else str(_DIGIT_WORDS.index(word))
        text = subscript[1]
    value = expression(text)
    return None if value is None else Quantity(value, unit, scale, base)


def _without_unit(text: str) -> tuple[str, str]:
    """A number and the unit behind it, canonical where it is known; the text as it is where nothing is a unit."""
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", text):
        return re.sub(r"(\d+(?:\.\d+)?)\s*\^\s*\\circ", r"(\\frac{\1\\pi}{180})", text), ""
    text = re.sub(r"\s*\^\s*\\circ\s*(?:\\text\s*\{)?\s*[CF]?\s*\}?$", r"\\text{deg}", text)
    power = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
    written = re.search(rf"{_NUMBER_END}\s*\\text\s*\{{\s*([^{{}}]*?(?:\^\{{?-?\d\}}?)?)\s*\}}({power})(.*)$", text)
    if written and text[: written.start()].strip():
        rest = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", written[3])
        if re.search(r"\b(?:or|and|not|to)\b|\?", written[1]) or re.search(
            r"\d(?!\s*\}?$)", re.sub(r"\^\{?-?\d\}?", "", rest)
        ):
            return text, ""
        return text[: written.start()], _canonical(written[1] + written[2] + rest)
    bare = re.search(
        rf"(?<=[\d)}}\]])(\s*)([a-zA-Z°¢]+{power}(?:\s*(?:/|per)\s*[a-zA-Z]+{power})?(?:\s+[a-zA-Z]+)*)$", text
    )
    if bare and bare[2] not in FUNCTIONS:
        words = re.findall(r"[a-zA-Z°¢]+", bare[2])
        known = all(word in _UNIT_OF or word == "per" for word in words)
        prose = (
            bool(bare[1])
            and all(len(word) >= 4 for word in words[:1])
            and not re.search(r"\b(?:or|and|not|to)\b", bare[2])
        )
        glued = not bare[1] and (len(words[0]) < 2 or not known)
        single = len(words) == 1 and len(words[0]) == 1 and not (bare[1] and known)
        if (known or prose) and not glued and not single:
            return text[: bare.start()], _canonical(bare[2])
    foreign = re.search(r"(?<=[\d)}])\s*[^\x00-\x7f]+$", text)
    return (text[: foreign.start()], "") if foreign else (text, "")


def _canonical(unit: str) -> str:
    """A unit's one name, with its power; "" where it is not known."""
    unit = re.sub(r"\s*\^\s*\{?\s*(-?\d)\s*\}?", r"^\1", unit.strip())
    if unit in _UNIT_OF:
        return _UNIT_OF[unit]
    parts = re.split(r"\s*(?:/|\bper\b)\s*", unit)
    names = []
    for part in parts:
        words = re.fullmatch(r"(?:(square|sq|cubic)\.?\s+)?([a-zA-Z]+)(?:\^(\d))?", part)
        if not words or words[2] not in _UNIT_OF:
            return ""
        power = words[3] or {"square": "2", "sq": "2", "cubic": "3"}.get(words[1] or "", "")
        names.append(_UNIT_OF[words[2]] + (f"^{power}" if power else ""))
    return "/".join(names)


def same_quantity(answer: Quantity, gold: Quantity) -> bool:
    """Whether two quantities agree in value, unit and base, where both have one; a scale may be left out."""
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return False
    if answer.base and gold.base and answer.base != gold.base:
        return False
    if (answer.base or gold.base) and re.search("[A-Fa-f]", answer.value.text + gold.value.text):
        return answer.value.text.upper() == gold.value.text.upper()  # digits beyond nine
    if answer.scale == gold.scale:
        return same_value(answer.value, gold.value)
    if 1 not in (answer.scale, gold.scale):
        return same_value(answer.value.times(answer.scale), gold.value.times(gold.scale))
    return same_value(answer.value, gold.value) or same_value(
        answer.value.times(answer.scale), gold.value.times(gold.scale)
    )
