"""How is a file written so that nobody ever finds half of it?

The rule: it is written beside its place and then renamed. What a program that was killed leaves behind ends in
`.unfinished`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def unfinished(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(path.name + ".unfinished")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """The place to write a file to inside the `with` block; it is moved to `path` at its end."""
    yield unfinished(path)
    os.replace(unfinished(path), path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in UTF-8."""
    with written_whole(path) as place:
        place.write_text(text, encoding="utf-8")
