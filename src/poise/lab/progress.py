"""What long work tells of itself."""

from collections.abc import Callable

Watch = Callable[[str, float | int, float | int], None]
"""Told what goes on, how much is done, and of how much; the last is 0 where that is not known."""


def silent(what: str, done: float | int, total: float | int) -> None:
    """Tell nobody."""
