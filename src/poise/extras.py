"""Extras of the installation: a missing one is named in one sentence, with the line to type."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def required_extra(name: str, what: str) -> Iterator[None]:
    """Say which extra brings a module that an import inside this context does not find.

    Args:
        name: The extra, as in `pip install 'poise-rlvr[NAME]'`.
        what: Who needs it, the subject of the sentence.

    Raises:
        ModuleNotFoundError: With that sentence, in the place of Python's own.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] == "poise":
            raise
        raise ModuleNotFoundError(
            f"{what} needs {missing.name}, which is not installed: pip install 'poise-rlvr[{name}]'",
            name=missing.name,
        ) from missing
