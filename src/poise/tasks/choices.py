"""Multiple choice: the options of a row, the letter of a gold answer, and which option a text chooses."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.tasks.answer_text import answer_text, plain_latex

LETTERS = "ABCDEFGHIJ"
_CHOOSING = re.compile(
    r"^(?:(?:so|thus|hence|therefore),?\s+)?(?:it(?:'s|\s+is)|i(?:'d|\s+would)?\s+(?:choose|pick|select|go\s+with))\s+(?=\W*[A-J]\b)",
    re.IGNORECASE,
)
_WRAPPED = r"\\(?:text|textbf|mathrm|mathbf|mathsf|textrm)\s*"


@dataclass(frozen=True)
class Options:
    """The options of a question, in the order of their letters; `labels` are what the data set calls them."""

    texts: list[str]
    labels: list[str]

    def letter_of(self, answer: Any) -> str | None:
        """The letter of a gold answer that is a label, a letter, the text of an option, or its index from 0."""
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if isinstance(answer, bool) or answer is None:
            return None
        if isinstance(answer, (int, float)):
            return LETTERS[int(answer)] if answer in range(len(self.texts)) else None
        text = str(answer).strip()
        if text in self.labels:
            return LETTERS[self.labels.index(text)]
        letter = option_letter(text)
        if letter is not None and LETTERS.index(letter) < len(self.texts):
            return letter
        if text in self.texts:
            return LETTERS[self.texts.index(text)]
        return LETTERS[int(text)] if text.isdigit() and int(text) < len(self.texts) else None


def options_of(value: Any) -> Options | None:
    """The options that a cell holds: a list of texts, texts with labels, or a mapping of letters; None where none."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, Mapping):
        if "text" in value and "label" in value:
            labels, texts = list(value["label"]), list(value["text"])
        else:
            labels, texts = list(value), list(value.values())
    elif isinstance(value, (list, tuple)):
        labels, texts = list(LETTERS[: len(value)]), list(value)
    else:
        return None
    if not 2 <= len(texts) <= len(LETTERS):
        return None
    return Options([_unlettered(str(text), at) for at, text in enumerate(texts)], [str(label) for label in labels])


def with_options(prompt: str, options: Options) -> str:
    """A question followed by its options, one a line behind its letter; as it is where it holds them already."""
    if all(text in prompt for text in options.texts) and re.search(r"(?m)^\s*\(?A[).:]", prompt):
        return prompt
    lines = [f"{LETTERS[at]}. {text}" for at, text in enumerate(options.texts)]
    return "\n".join([prompt, *lines])


def _unlettered(text: str, at: int) -> str:
    """An option without the letter in front of it."""
    return re.sub(rf"^\(?{LETTERS[at]}[).:]\s+", "", text.strip()) if at < len(LETTERS) else text.strip()


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
        plain = _CHOOSING.sub("", _plain(candidate))
        letter = re.match(
            rf"\(?(?:option|choice)?\s*\(?([{LETTERS}])(?:\)|[.:,]|$|\s*[-–]|\s(?![a-z]))", plain, re.IGNORECASE
        )
        if (
            letter
            and (letter[1].isupper() or len(plain) <= 3)
            and not _names_another(plain[letter.end() :], letter[1].upper())
        ):
            return letter[1].upper()
        called_right = re.search(rf"\(?\b([{LETTERS}])\)?\s+is\s+(?:the\s+)?(?:correct|right)\b", plain)
        if called_right and not letter:
            return called_right[1]
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
    return plain_latex(text.strip().strip("$*`_\"' []【】「」")).strip("$ ")
