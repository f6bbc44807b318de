"""Folders that belong to one configuration."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from poise.storage.whole_files import write_whole


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], *, ignored: Iterable[str] = ()) -> list[str]:
    """A clause with both sides for each setting of mine that is another one there."""
    names = [name for name in mine if name not in {*ignored} and mine[name] != theirs.get(name)]
    return [f"{name} is {theirs.get(name)!r} there and {mine[name]!r} here" for name in names]


def claim(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    what: str,
    file: str = "config.json",
    ignored: Iterable[str] = (),
) -> None:
    """Write settings into a new folder, or find the same ones there.

    Args:
        folder: Made if it does not exist.
        settings: Anything that JSON can hold.
        what: The folder holds, such as "study"; used in sentences.
        file: Name of the file with the settings.
        ignored: Settings that may be others there.

    Raises:
        ValueError: If the folder belongs to other settings; the sentence has all that differ, of both sides.
        FileExistsError: If it holds something else.
    """
    place = folder / file
    mine = json.loads(json.dumps(settings))
    if not place.is_file():
        if folder.exists() and (folder.is_file() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} already holds something that is no {what}: choose another --output")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps(mine, indent=2) + "\n")
        return
    try:
        theirs = json.loads(place.read_text())
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: choose another --output") from error
    if clauses := differences(mine, theirs, ignored=ignored):
        raise ValueError(f"{folder} holds another {what}: {'; '.join(clauses)}. Choose another --output")
