"""Text from data, as a terminal or a page can show it."""

import re
import unicodedata

MOST_MARKS = 4
"""Marks on one letter that are shown as such: more of them cover the lines above and below."""
LONGEST_NAME = 200
"""Characters of a name, such as that of a domain."""
UNUSUAL = re.compile(r"[^\x20-\x7e\n\t]+")


def spelled_out(text: str) -> str:
    """A text with control and direction marks, and stacked marks, written as \\u1234.

    Nothing in it is invisible, turned around, or on another line than it belongs to.
    """
    return UNUSUAL.sub(lambda found: _spelled_run(found[0]), text)


def _spelled_run(text: str) -> str:
    shown, stacked = [], 0
    for character in text:
        kind = unicodedata.category(character)
        stacked = stacked + 1 if kind in ("Mn", "Me") else 0
        hidden = kind in ("Cc", "Cf", "Cs", "Zl", "Zp") or stacked > MOST_MARKS
        shown.append(f"\\u{ord(character):04x}" if hidden else character)
    return "".join(shown)


def shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """A text without its middle, if it is longer than that many characters."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}[… {len(text) - 2 * half} left out …]{text[-half:]}"
