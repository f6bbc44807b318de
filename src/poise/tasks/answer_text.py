"""Answer texts: which part of a completion is its answer, and plain LaTeX in the place of its many spellings.

`answer_text` finds the answer: the last box, else what follows the last "answer is", else the last formula, line or
number. `plain_latex` rewrites what means the same (full-width digits, x², √3, \\dfrac, thin spaces, 1{,}234) in one
way, so that `poise.tasks.answers.parsed` has one form to read.
"""

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SYMBOLS = dict.fromkeys("−–—﹣", "-") | dict.fromkeys("⋅·∙", r"\cdot ") | dict.fromkeys("÷⁄∕", "/")
_SYMBOLS |= dict.fromkeys("\u2005\u2006\u2007\u2009\u200a\u202f", r"\,") | dict.fromkeys("…⋯", r"\ldots ")
_SYMBOLS |= dict.fromkeys("≤⩽", r"\le ") | dict.fromkeys("≥⩾", r"\ge ") | {"×": r"\times ", "≠": r"\ne ", "±": r"\pm "}
_SYMBOLS |= {
    "∓": r"\mp ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "≈": r"\approx ",
    "°": r"^\circ ",
    "∅": r"\emptyset ",
}
_SYMBOLS |= {
    "π": r"\pi ",
    "∞": r"\infty ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "θ": r"\theta ",
    "λ": r"\lambda ",
    "φ": r"\phi ",
}
_SYMBOLS |= {
    "，": ",",
    "、": ",",
    "；": ";",
    "：": ":",
    "（": "(",
    "）": ")",
    "。": ".",
    "ℝ": r"\mathbb{R}",
    "′": "'",
    "µ": r"\mu ",
    "μ": r"\mu ",
    "\u00a0": " ",
}
_SPELLINGS = [
    (r"\\(?:begin|end)\s*\{(?:aligned|align\*?|equation\*?|gathered|split)\}|&(?==)|\\text\s*\{\s*\}", " "),
    (r"\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|rm|it)(?![a-zA-Z])", ""),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\+\s*/\s*-", r"\\pm "),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
    (r"\\(?:mathrm|operatorname|text|textrm)\s*\{\s*(sin|cos|tan|cot|arcsin|arccos|arctan|ln|log|exp)\s*\}", r"\\\1 "),
    (r"\\(?:left|right|displaystyle|textstyle|[bB]ig[lr]?|limits)(?![a-zA-Z])\s*\.?(?=[^a-zA-Z.]|\b|$)", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le"),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge"),
    (r"\\(?:neq|not\s*=)(?![a-zA-Z])", r"\\ne"),
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:dots|cdots|dotsc|dotsb|hdots)(?![a-zA-Z])|(?<!\.)\.\.\.(?!\.)", r"\\ldots "),
    (r"\\(?:cdot|times|ast)\s*\\(?=\d)", r"\\cdot "),
    (r"\\(?:lbrace|\{)", r"\\{"),
    (r"\\(?:rbrace|\})", r"\\}"),
    (r"\\l?brack(?![a-zA-Z])", "["),
    (r"\\rbrack(?![a-zA-Z])", "]"),
    (r"\\(?:mathrm|mathit|operatorname|text|textrm|mathbf|boldsymbol|bm)\s*\{\s*([ei])\s*\}", r"\1"),
    (r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|mathtt)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:textbf|textit|emph|textrm|textsf|mbox|hbox|mathrm|operatorname|texttt|textnormal)\s*(?=\{)", r"\\text"),
    (r"\\(?:degree|circ)(?![a-zA-Z])", r"\\circ"),
    (r"\^\s*\{\s*\\circ\s*\}", r"^\\circ"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*([a-zA-Z])(?![a-zA-Z])", r"\\sqrt{\1}"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
    (r"(?<![\\a-zA-Z])(?:infty|infinity|inf)(?![a-zA-Z])", r"\\infty "),
    (r"(?<![\\a-zA-Z])(?=(?:sin|cos|tan|ln|log|exp)\s*\()", r"\\"),
    (r"\*\*", "^"),
    (r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r"\\cdot "),
    (r"\\[pb]mod\s*\{?\s*(\w+)\s*\}?|\(\s*(?:\\text\s*\{)?\s*mod\s*\}?\s*(\w+)\s*\)", r"\\pmod{\1\2}"),
    (r"\^\s*-\s*(\d+)", r"^{-\1}"),
    (r"\^\s*(\d{2,})", r"^{\1}"),
    (r">=", r"\\ge "),
    (r"<=", r"\\le "),
    (r"!=(?!=)", r"\\ne "),
    (r"\\(?:iff|implies|Rightarrow|to)(?![a-zA-Z])", ";"),
]  # fmt: skip
_GROUP = r"(?:,|\{,\}|\\!,|\\,|\\!|\\;|\\:|~|\\ | |,\\!|'|_)"
_THOUSANDS = re.compile(rf"(?<![\d.,_^])(\d{{1,3}})((?:{_GROUP}\d{{3}})+)(?!\d|{_GROUP}\d)")
_SPACES = re.compile(
    r"(?<!\\)\\[,;:!> ]|~|\\(?:quad|qquad|thinspace|enspace|hspace\{[^{}]*\}|hfill|newline)(?![a-zA-Z])|\s+"
)

_LABEL = (
    r"(?:final\s+answer|answer|ans|(?:correct|right)\s+(?:option|choice)|result|solution|答案|最终答案|结果|答え|정답|ответ|respuesta(?:\s+final)?|réponse|resposta|antwort|"
    r"risposta|答(?=\s*[：:])|उत्तर|الجواب|الإجابة|cevap|odpowiedź|đáp\s+án)"
)
_IS = r"(?:is\s+equal\s+to\b|equals\b|is\b|are\b|was\b|est\b|es\b|ist\b|是|为|為|：|:|=|は|는)"
_LINK = rf"\s*(?:[*_`\"]*\s*{_IS}\s*[*_`\"]*\s*)"
_ANSWER = re.compile(
    rf"(?<![a-z]){_LABEL}\s*(?:to\s+the\s+(?:question|problem)\s*|\([^()]*\)\s*)?{_LINK}+:?|选(?:择)?\s*[：:]?\s*(?=[（(]?[A-J])",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\?|\b(?:not|never|neither|nor|cannot|unknown|unsure)\b|n't\b|\b(?:is|are|was)\s+(?:wrong|incorrect)\b|不是|不",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(
    r"(?:[.;!]\s|[.;!]$|\n|。|,?\s+(?:since|because|as|so|which|where|due\s+to|and\s+so)\s|,\s+(?:and\s+)?(?=[a-z]{3}|I\b)|\s+\((?=[a-z]+\s+[a-z])(?!in\s+base))"
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:\s+\d+/\d+|/\d+)?(?:[eE][-+]?\d+)?(?![\w])")


def answer_text(completion: str) -> str | None:
    """The part of a completion (behind its thinking) that is given as the answer; None where there is none.

    Boxes that follow each other with nothing but "or", "and" or a comma between are one answer of several parts.
    """
    text = _without_html(completion).strip()
    boxes, open_box = _boxes(text)
    if boxes:
        start, _, inside = boxes[-1]
        parts = [inside]
        for earlier_start, earlier_end, earlier in reversed(boxes[:-1]):
            between = re.sub(r"\\text|[$\\(){}\[\]*\s]", "", text[earlier_end:start]).lower()
            if between not in {",", "or", "and", ",or", ",and", "and/or", "、", "或", "和"}:
                break
            parts.insert(0, earlier)
            start = earlier_start
        around = text[:start].rsplit("\n", 1)[-1]
        return None if re.search(r"\b(?:not|isn't)\s*[$(\\]*$", around.rstrip()) else ", ".join(parts)
    if open_box:
        return None
    labels = list(_ANSWER.finditer(text))
    if labels:
        return _first_statement(text[labels[-1].end() :])
    if "####" in text:
        return text.rpartition("####")[2].strip()
    formulas = list(_FORMULA.finditer(text))
    if formulas:
        last = formulas[-1]
        return None if _DENIAL.search(text[last.end() :]) else _group(last)
    spoken = re.search(r"(?<![\\a-zA-Z])(?!sqrt|pi|frac)[a-zA-Z]{2,}\b[^a-zA-Z]*\d|[a-zA-Z]{2,}\s+[a-zA-Z]", text)
    if len(text) <= 100 and "\n" not in text and not spoken:
        return text
    last_line = text.rsplit("\n", 1)[-1]
    numbers = _NUMBER.findall(last_line) or _NUMBER.findall(text)
    hedged = _DENIAL.search(last_line) or re.search(r"\d\W{0,3}\s+or\s+\W{0,3}\d", last_line)
    return numbers[-1].strip() if numbers and not hedged else None


def gold_text(gold: str) -> str:
    """A gold answer without what data sets put around it: "####", a box, dollars, "The answer is", a full stop."""
    text = gold.rpartition("####")[2].strip()
    boxes, _ = _boxes(text)
    if boxes:
        return boxes[-1][2]
    label = _ANSWER.match(re.sub(r"^(?:so|thus|therefore|hence)?,?\s*(?:the|our)?\s*", "", text, flags=re.IGNORECASE))
    if label:
        stripped = re.sub(r"^(?:so|thus|therefore|hence)?,?\s*(?:the|our)?\s*", "", text, flags=re.IGNORECASE)
        return _first_statement(stripped[label.end() :]) or text
    return text


def _boxes(text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """Start, end and content of outermost boxes; whether a box is opened and never closed."""
    found: list[tuple[int, int, str]] = []
    for match in re.finditer(r"\\f?box(?:ed)?\s*(\{|(?=[\w\-]))|\\framebox\s*(\{)", text):
        if found and match.start() < found[-1][1]:
            continue
        if not match[0].endswith("{"):
            token = re.match(r"-?[\w.]+", text[match.end() :])
            if token and "boxed" in match[0]:
                found.append((match.start(), match.end() + token.end(), token[0]))
            continue
        depth, at = 1, match.end()
        while at < len(text) and depth:
            if text[at] == "\\":
                at += 1
            else:
                depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if depth:
            return found, not found
        inside = text[match.end() : at - 1].strip()
        inner, _ = _boxes(inside) if "box" in inside else ([], False)
        found.append((match.start(), at, inner[-1][2] if inner else inside))
    return found, False


def _group(match: "re.Match[str]") -> str:
    return next(each for each in match.groups() if each is not None).strip()


def _first_statement(text: str) -> str | None:
    """The answer at the beginning of what follows "answer is": a formula, or the rest of the clause."""
    text = text.strip().lstrip(":=").strip()
    text = re.sub(r"^(?:[*_`\"'“”]+)|(?:[*_`\"'“”]+)$", "", text.split("\n\n", 1)[0].strip()).strip()
    formula = _FORMULA.match(text)
    if formula:
        rest = text[formula.end() :].split("\n", 1)[0]
        also = re.match(r"\s*(?:,|and|or|,\s*and|,\s*or)\s*(?=\$)", rest)
        denied = rest.strip().startswith("?")
        if also:
            first = re.match(r"(?:[^.;\n]|\.(?=\d))*", text)
            return first[0].replace("$", "").strip() if first else None
        return None if denied else _group(formula)
    clause = text[: end.start()] if (end := _SENTENCE_END.search(text)) else text
    clause = re.sub(r"[*_`\"“”]+$|^[*_`\"“”]+", "", clause.strip()).strip()
    return None if not clause or re.match(r"not\b|unknown\b|不", clause, re.IGNORECASE) else clause


def _without_html(text: str) -> str:
    return re.sub(r"</?(?:b|i|u|em|strong|p|span|div|code|sup|sub|br|ans|answer)\s*/?>", "", text, flags=re.IGNORECASE)


def plain_latex(text: str) -> str:
    """One spelling for what is written in many ways; thousands lose their separators, spaces become single."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda run: "_{" + run[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub(r"(\d)([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", r"\1 \2", text)
    text = re.sub(r"∛\s*(\d+|[a-zA-Z]|\([^()]*\))", lambda m: r"\sqrt[3]{" + m[1].strip("()") + "}", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[a-zA-Z]|\([^()]*\))", lambda m: r"\sqrt{" + m[1].strip("()") + "}", text)
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("−", "-")
    for pattern, spelling in _SPELLINGS:
        text = re.sub(pattern, spelling, text)
    text = _THOUSANDS.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = text.replace("{,}", ",")
    return _SPACES.sub(" ", text).strip()
