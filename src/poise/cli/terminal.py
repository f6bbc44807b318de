"""The terminal, as all commands use it.

Standard output is for people and stays readable in a log file. Hosts are silent; poise's warnings are notes.
"""

import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from poise.storage.shown_text import shortened, spelled_out

LONGEST_TEXT = 4000
"""Characters that are shown of a sentence or a cell."""


class PlainConsole(Console):
    """A console to which text is text: no markup, no emoji, no escape sequences of whoever wrote it.

    Text is handed to it as `str`: a `rich.text.Text` is shown as it is.
    """

    def render_str(self, text: str, **named: Any) -> Text:
        """A string, or a cell of a table, as it stands there."""
        return super().render_str(
            spelled_out(shortened(text, LONGEST_TEXT)), **(named | {"markup": False, "emoji": False})
        )


console = PlainConsole(highlight=False, markup=False, emoji=False)


@contextmanager
def quiet_hosts() -> Iterator[None]:
    """Silence what transformers, TRL and data sets say among themselves; warnings of poise are still printed."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bar of whatever reads GGUF
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=".*poise")
        warnings.showwarning = lambda message, *rest: print_note(str(message))
        import datasets
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        datasets.utils.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        for host in ("trl", "accelerate"):
            logging.getLogger(host).setLevel(logging.ERROR)
        shown = SentenceHandler()
        logging.getLogger("poise").addHandler(shown)
        try:
            yield
        finally:
            logging.getLogger("poise").removeHandler(shown)


class SentenceHandler(logging.Handler):
    """Prints what poise logs as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one sentence."""
        print_note(record.getMessage())


def print_note(sentence: str) -> None:
    """Say something that matters and is no error."""
    console.print(f"note: {sentence}", soft_wrap=True)


def print_text(text: object) -> None:
    """Print lines as they are, for whoever reads them on: pages of results, names of files."""
    typer.echo(spelled_out(str(text)))


def said(command: str, trouble: object, *, code: int, then: str | None = None) -> typer.Exit:
    """Print to standard error what went wrong, as one line, and what to do then; the exit to raise.

    Args:
        command: The subcommand.
        trouble: A sentence, or an error with one.
        code: Of the exit: 2 for wrong input, 1 for what went wrong later.
        then: Another line.
    """
    line = " ".join(part.strip() for part in f"{f'poise {command}'.strip()}: {trouble}".split("\n"))
    for each in (shortened(line, LONGEST_TEXT), then):
        if each:
            typer.echo(spelled_out(each), err=True)
    return typer.Exit(code)


@contextmanager
def json_lines(wanted: bool) -> Iterator[Callable[..., None]]:
    """A function that prints an event and named values as one JSON object in a line of standard output.

    Whatever else is printed inside, by anybody, goes to standard error, so that machines can read standard output.
    Without it being wanted, nothing changes and the function prints nothing.
    """
    if not wanted:
        yield lambda event, **named: None
        return
    from poise.storage.rollouts import finite  # with pyarrow, which the help does not wait for

    output = sys.stdout

    def tell(event: str, **named: Any) -> None:
        print(json.dumps(finite({"event": event} | named), allow_nan=False), file=output, flush=True)

    with redirect_stdout(sys.stderr):
        yield tell


@contextmanager
def stop_on_interrupt() -> Iterator[list[int]]:
    """A list that the first Ctrl-C puts something in; the second one interrupts at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print("stopping when all sampled rollouts are trained on; Ctrl-C again to leave at once")

    earlier = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, earlier)


@contextmanager
def shown_progress(*, every: float = 10.0) -> Iterator[Callable[[str, float | int, float | int], None]]:
    """A function that shows what goes on: a bar in a terminal, a line now and then in a log file.

    It is told what goes on, how much is done, and of how much (0 where that is not known).

    Args:
        every: Seconds at least between lines of one piece of work.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not console.is_terminal:
        began: dict[float, tuple[float, float]] = {}  # by the whole: time and what was done
        last = -math.inf

        def tell(what: str, done: float | int, total: float | int) -> None:
            nonlocal last
            now = time.monotonic()
            since, first = began.setdefault(total, (now, done))
            if now - last < every and total and 0 < done < total:
                return
            last = now
            left = f", about {clock((now - since) / (done - first) * (total - done))} left" if done > first else ""
            console.print(f"{what} {done:.4g}/{total:.4g}{left}" if total else what, soft_wrap=True)

        yield tell
        return
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn(), console=console
    ) as bar:
        shown = bar.add_task("")
        whole = 0.0

        def show(what: str, done: float | int, total: float | int) -> None:
            nonlocal whole
            if total and total != whole:  # the time left is that of this part
                bar.reset(shown)
            whole = total or whole
            bar.update(shown, description=spelled_out(shortened(what)), completed=done, total=total or None)

        yield show


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
