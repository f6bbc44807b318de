"""What do all commands share on the terminal?

The rule: standard output is for people and stays readable in a log file. Hosts are silent; poise's warnings are notes.
"""

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

console = Console(highlight=False)


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
    console.print(f"note: {sentence}", soft_wrap=True, markup=False)


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


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
