"""Files that are whole or absent, also after a power cut.

A file is written beside its place, synced to the disk and then renamed. What a program that was killed leaves behind
ends in `.unfinished`.
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
    sync(unfinished(path))
    os.replace(unfinished(path), path)
    sync(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in UTF-8."""
    with written_whole(path) as place:
        place.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Wait until a folder with all that lies in it is on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
