"""A training run while it goes on: a bar in a terminal, lines in a log file, JSON lines for machines.

Each way of showing is a function that is given the run's `Progress` whenever something is new.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from poise.cli.terminal import clock, console
from poise.storage.shown_text import spelled_out

if TYPE_CHECKING:
    from poise.train.recorder import Progress

LINES, SAMPLES = 20, 10
"""Of a whole run, at most, in a log file; one is due whenever another such part of the steps is done."""
SECONDS_BETWEEN = 10.0
"""Between two lines about one measurement, at least."""
LONGEST_PROMPT, LONGEST_COMPLETION = 300, 600
"""Characters that are shown of a sample."""


@contextmanager
def shown_progress(tell: Callable[..., None] | None) -> Iterator[Callable[["Progress"], None]]:
    """A function that shows a `Progress`.

    Args:
        tell: Prints an event as a JSON line; None for people.
    """
    if tell is not None:
        yield JsonLines(tell)
    elif console.is_terminal and not console.is_dumb_terminal:
        screen = Screen()
        with Live(Group(screen.bar, screen.status), console=console, refresh_per_second=4):
            yield screen
    else:
        yield PlainLines()


class Due:
    """Tells when the next part of a run's steps is done: once for each of `parts`."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._last = 0

    def __call__(self, progress: "Progress") -> bool:
        """Whether a part has been finished since the last time that one had been."""
        part = progress.step * self.parts // progress.steps
        due, self._last = part > self._last, part
        return due


class Screen:
    """A bar, what is known of the run below it, and above both a sample now and then."""

    def __init__(self) -> None:
        self.bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self.status = Text()
        self._task = self.bar.add_task("", total=None, left="")
        self._sample_is_due = Due(SAMPLES)

    def __call__(self, progress: "Progress") -> None:
        """Show the newest."""
        if progress.is_measuring:
            done, total, left = progress.measured_prompts, progress.prompts_to_measure, "problems"
        else:
            done, total = progress.step, progress.steps
            left = f"steps, {clock(seconds_left(progress))} left" if progress.step else "steps"
        self.bar.update(self._task, description=progress.activity, completed=done, total=total, left=left)
        self.status.plain = status_text(progress)
        if progress.sample and self._sample_is_due(progress):
            console.print(sample_text(progress.sample))


class PlainLines:
    """Prints a line whenever a twentieth of the steps is done, something else happens than before, or it takes long."""

    def __init__(self) -> None:
        self._activity = ""
        self._line: Mapping[str, Any] | None = None
        self._told = -math.inf
        self._line_is_due, self._sample_is_due = Due(LINES), Due(SAMPLES)

    def __call__(self, progress: "Progress") -> None:
        """Print a line if one is due."""
        if progress.is_measuring:
            self._tell_measuring(progress)
        self._activity = progress.activity
        if progress.line is self._line or not progress.line:
            return
        self._line = progress.line
        if self._line_is_due(progress):
            left = clock(seconds_left(progress))
            text = f"step {progress.step}/{progress.steps}  {status_text(progress)}  {left} left"
            console.print(text, soft_wrap=True)
        if progress.sample and self._sample_is_due(progress):
            parts = {name: _one_line(progress.sample[name]) for name in ("prompt", "completion")}
            told = f"prompt {parts['prompt']} completion {parts['completion']}"
            console.print(f"sample at {_reward(progress.sample)}: {told}", soft_wrap=True)

    def _tell_measuring(self, progress: "Progress") -> None:
        now, done, total = time.monotonic(), progress.measured_prompts, progress.prompts_to_measure
        begins = progress.activity != self._activity
        if begins and progress.step in (0, progress.steps):
            console.print(f"{progress.activity}: {total} held-out problems", soft_wrap=True)
        elif not begins and 0 < done < total and now - self._told >= SECONDS_BETWEEN:
            console.print(f"{progress.activity}: {done}/{total} problems", soft_wrap=True)
        elif not begins:
            return
        self._told = now


class JsonLines:
    """Tells of every line of metrics, of the samples that go with them, and of what is measured."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._line: Mapping[str, Any] | None = None
        self._activity = ""

    def __call__(self, progress: "Progress") -> None:
        """Print what is new."""
        if progress.is_measuring and progress.activity != self._activity:
            self._tell("measuring", step=progress.step, what=progress.activity, problems=progress.prompts_to_measure)
        self._activity = progress.activity
        if progress.line is not self._line and progress.line:
            self._line = progress.line
            self._tell("metrics", **progress.line)
            if progress.sample and progress.line.get("reward") is not None:
                self._tell("sample", **progress.sample)


def seconds_left(progress: "Progress") -> float:
    """Seconds until the last step, if the rest takes as long as what is done."""
    return progress.seconds / progress.step * (progress.steps - progress.step) if progress.step else math.nan


def status_text(progress: "Progress") -> str:
    """Loss, reward, held-out numbers, entropy, length, share that was cut off and speed, as far as they are known."""
    numbers: dict[str, Any] = dict(progress.line) | {"reward": progress.reward, "tokens": progress.tokens_a_second}
    if progress.held_out is not None:
        numbers |= {"held-out": progress.held_out.accuracy, "held-out reward": progress.held_out.reward}
    shown = (
        ("loss", "loss {:.2g}"),
        ("reward", "reward {:.2f}"),
        ("held-out reward", "held-out reward {:.2f}"),
        ("held-out", "held-out accuracy {:.2f}"),
        ("entropy", "entropy {:.2f}"),
        ("completions/mean_length", "length {:.0f}"),
        ("completions/clipped_ratio", "cut off {:.0%}"),
        ("tokens", "{:.0f} tokens/s"),
    )
    parts = [form.format(numbers[name]) for name, form in shown if _is_known(numbers.get(name))]
    parts += [f"skipped {progress.skipped_steps}"] if progress.skipped_steps else []
    return "  ".join(parts)


def sample_text(sample: Mapping[str, Any]) -> Text:
    """A rollout as it is shown in a terminal: what was asked, what was written, what it earned."""
    parts: list[tuple[str, str]] = [(f"sample at {_reward(sample)}", "bold")]
    for name, longest, style in (("prompt", LONGEST_PROMPT, "dim"), ("completion", LONGEST_COMPLETION, "")):
        lines = spelled_out(_cut(sample[name], longest)).splitlines()
        parts.append(("".join(f"\n  {line}" for line in lines), style))
    return Text.assemble(*parts)


def _reward(sample: Mapping[str, Any]) -> str:
    reward = sample["reward"]
    return f"step {sample['step']}, " + (f"reward {reward:.2f}" if _is_known(reward) else "ungradable")


def _one_line(text: str) -> str:
    return json.dumps(_cut(text, LONGEST_PROMPT), ensure_ascii=False)


def _cut(text: str, longest: int) -> str:
    """The text, or its beginning and its end where it is too long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} … {text[-longest // 2 :]}"


def _is_known(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)
