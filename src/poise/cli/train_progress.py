"""How does a training run look while it goes on: a bar in a terminal, a line now and then in a log file."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from poise.cli.terminal import clock, console

if TYPE_CHECKING:
    from poise.train.recorder import Progress


@contextmanager
def shown_progress() -> Iterator[Any]:
    """A function that shows a `Progress`: a bar in a terminal, a line now and then in a log file."""
    if not console.is_terminal:
        yield PlainLines()
        return
    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("steps, left"),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task("", total=None)
    status = Text()
    with Live(Group(bar, status), console=console, refresh_per_second=4):

        def watch(progress: "Progress") -> None:
            bar.update(task, description=progress.activity, completed=progress.step, total=progress.steps)
            status.plain = status_text(progress)

        yield watch


class PlainLines:
    """Prints a line whenever a twentieth of the steps is done, or something else happens than before."""

    def __init__(self) -> None:
        self._shown: tuple[str, int] | None = None

    def __call__(self, progress: "Progress") -> None:
        """Print a line if one is due."""
        every = max(1, progress.steps // 20)
        due = (progress.activity, progress.step // every if progress.activity == "training" else 0)
        if due == self._shown:
            return
        self._shown = due
        if progress.activity != "training":
            console.print(progress.activity)
        elif progress.step:
            left = progress.seconds / progress.step * (progress.steps - progress.step)
            console.print(
                f"step {progress.step}/{progress.steps}  {status_text(progress)}  {clock(left)} left", soft_wrap=True
            )


def status_text(progress: "Progress") -> str:
    """Reward, held-out accuracy, share of the ceiling and evidence in charge, as far as they are known."""
    parts = []
    if progress.reward == progress.reward:
        parts.append(f"reward {progress.reward:.2f}")
    if progress.held_out is not None:
        parts.append(f"held-out {progress.held_out.accuracy:.2f}")
    if progress.ceiling_share == progress.ceiling_share:
        parts.append(f"ceiling share {progress.ceiling_share:.2f}")
    if progress.skipped_steps:
        parts.append(f"skipped {progress.skipped_steps}")
    if progress.in_charge:
        counts = Counter(text.split()[0] for text in progress.in_charge.values())
        parts.append("evidence " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    return "  ".join(parts)
