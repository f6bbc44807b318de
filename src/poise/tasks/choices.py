"""Letters of multiple-choice answers: which option a text chooses."""

import re
from collections.abc import Sequence

from poise.tasks.answer_text import answer_text, plain_latex

LETTERS = "ABCDEFGHIJ"
_WRAPPED = r"\\(?:text|textbf|mathrm|mathbf|mathsf|textrm)\s*"


def option_letter(gold: str) -> str | None:
    """The letter of a gold answer that is nothing but an option: "B", "(B)", "B."; None for any other."""
    found = re.fullmatch(rf"\(?([{LETTERS}])\)?\.?", _plain(gold))
    return found[1] if found else None


def chosen_letter(completion: str, options: Sequence[str] = ()) -> str | None:
    """The option that a completion (behind its thinking) chooses; None where it chooses none, or several.

    Args:
        completion: "B", "Answer: B", "\\boxed{(B)}", "\\textbf{(B)}\\ 12", or the text of an option.
        options: The options' texts in the order of their letters, where they are known.
    """
    text = answer_text(completion)
    candidates = [text] if text is not None else [completion] if len(completion) < 200 else []
    for candidate in candidates:
        plain = _plain(candidate)
        letter = re.match(
            rf"\(?(?:option|choice)?\s*\(?([{LETTERS}])(?:\)|[.:,]|$|\s*[-–]|\s(?![a-z]))", plain, re.IGNORECASE
        )
        if (
            letter
            and (letter[1].isupper() or len(plain) <= 3)
            and not _names_another(plain[letter.end() :], letter[1].upper())
        ):
            return letter[1].upper()
        texts = [at for at, option in enumerate(options) if _plain(option).casefold() == plain.casefold()]
        if len(texts) == 1:
            return LETTERS[texts[0]]
    return None


def _names_another(rest: str, letter: str) -> bool:
    """Whether a second letter is offered beside the first: "B or C", "A, B"."""
    others = re.match(rf"\s*(?:or|and|/|,|&|\\text\s*\{{\s*(?:or|and)\s*\}})?\s*\(?([{LETTERS}])(?:\)|[.,]|$|\s)", rest)
    return bool(others and others[1] != letter) or bool(re.search(rf"\b(?:or|and)\s+\(?[{LETTERS}]\b", rest))


def _plain(text: str) -> str:
    text = re.sub(rf"{_WRAPPED}\{{([^{{}}]*)\}}", r"\1", text)
    return plain_latex(text.strip().strip("$*`_\"' ")).strip("$ ")
