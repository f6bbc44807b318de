"""Text from data, as a terminal or a page can show it."""

import unicodedata


def spelled_out(text: str) -> str:
    """A text with control and direction marks written as \\u1234: nothing in it is invisible or turned around."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else f"\\u{ord(character):04x}"
        for character in text
    )
