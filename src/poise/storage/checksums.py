"""Digests of a folder's files, by which damage is seen.

The last file written into a folder holds the SHA-256 digest of every other one, and of its own lines. A byte
that differs, a file that is missing or cut short, and a folder that was never finished are all seen. Files that were
added later are not looked at.

The lines are those of `sha256sum`, which can check them too: `sha256sum --check checksums.sha256`.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

NAME = "checksums.sha256"


def write_checksums(folder: Path) -> None:
    """Write the digests of all files in a folder, and so declare it finished."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / NAME).write_text(_text({name: _digest(folder / name) for name in names if name != NAME}))


def fault(folder: Path) -> str | None:
    """What of a folder is not as it was written, in words that follow the folder's name; None if all of it is."""
    if not (folder / NAME).is_file():
        return f"has no {NAME}: it was not finished"
    written = (folder / NAME).read_bytes().decode(errors="replace")
    listed = dict(line.split("  ", 1)[::-1] for line in written.splitlines()[1:] if "  " in line)
    for name, digest in listed.items():
        if not (folder / name).is_file():
            return f"has no {name}"
        if _digest(folder / name) != digest:
            return f"has another {name} than was written"
    return None if written == _text(listed) else f"has another {NAME} than was written"


def _text(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return f"# {hashlib.sha256(lines.encode()).hexdigest()} of the lines below\n{lines}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
