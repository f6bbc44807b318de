"""One page of a run: its curves, the quality of its values, and rollouts to look at.

The page stands alone. It loads nothing, runs nothing, and shows what models wrote as text; what a run did not
leave behind is said where it would stand.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from poise.report.figures import (
    Metrics,
    calibration_chart,
    domain_bias,
    domain_figures,
    domains_before_and_after,
    evidence_figure,
    health_figures,
    newest,
    reward_figure,
    value_calibration,
    value_figures,
)
from poise.report.learning_curve import standard_error
from poise.report.rollout_files import pair_choices, read_rollouts
from poise.storage.run_directory import RunDirectory, readable_lines
from poise.storage.shown_text import spelled_out
from poise.storage.whole_files import write_whole

LONGEST_TEXT = 4000
"""Characters of a prompt or completion that are shown; of longer ones the beginning and the end."""


def write_report(directory: RunDirectory, path: Path | None = None) -> Path:
    """Write the page of a run, which may be unfinished, and return where it is.

    Args:
        directory: The run.
        path: Where to write. Default: `report.html` in the run's folder.

    Raises:
        FileNotFoundError: If the folder holds no run.
    """
    if not directory.metrics.is_file():
        raise FileNotFoundError(f"{directory.path} holds no run: a run has a file metrics.jsonl")
    path = path or directory.path / "report.html"
    text = report_page(directory)
    write_whole(path, text)
    return path


def report_page(directory: RunDirectory) -> str:
    """The page of a run as HTML."""
    metrics, broken = readable_lines(directory.metrics)
    summary = directory.read_summary()
    batches, notes = read_rollouts(directory)
    metrics = [plain_line(line) for line in metrics]
    if broken:
        notes.append(f"{broken} lines of metrics.jsonl cannot be read, and are left out.")
    if not summary:
        notes.insert(0, "There is no summary.json: the run is still going, or it ended before its last step.")
    elif summary.get("stopped_early"):
        notes.insert(0, f"The run was stopped after {summary.get('steps')} steps, before its last one.")
    if not batches:
        notes.append("There are no rollout files: calibration and pairs of rollouts cannot be shown.")
    environment = Environment(
        loader=PackageLoader("poise.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown_text, "number": shown_number, "signed": shown_signed}
    curve = value_calibration(batches)
    page = environment.get_template("page.html.jinja").render(
        name=directory.path.name,
        notes=notes,
        config=directory.config.read_text(encoding="utf-8", errors="replace") if directory.config.is_file() else None,
        versions=summary.get("versions") or {},
        tiles=tiles(metrics, summary),
        by_domain=domains_before_and_after(metrics),
        learning=[reward_figure(metrics)],
        domain_figures=domain_figures(metrics),
        value_figures=value_figures(metrics, batches),
        calibration=curve,
        calibration_chart=calibration_chart(curve),
        domain_bias=domain_bias(batches),
        evidence=evidence_figure(metrics),
        health=health_figures(metrics),
        choices=pair_choices(batches),
    )
    return spelled_out(page)  # names of domains stand in pictures, too


# Texts and numbers.


def plain_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics with numbers alone, but for the evidence in charge: whatever else stands there is no metric."""
    kept = {key: number for key, number in line.items() if type(number) in (int, float) and math.isfinite(number)}
    return kept | {"in_charge": line["in_charge"]} if isinstance(line.get("in_charge"), dict) else kept


def shown_text(text: str | None) -> str:
    """A text as it can be put on a page: the middle of a long one is left out, its marks are spelled out."""
    text = text or ""
    if len(text) > LONGEST_TEXT:
        half = LONGEST_TEXT // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
    return spelled_out(text)


def shown_number(number: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if number is None or not math.isfinite(number) else f"{number:.{digits}f}"


def shown_signed(number: float | None, digits: int = 3) -> str:
    """The same with its sign."""
    return "–" if number is None or not math.isfinite(number) else f"{number:+.{digits}f}".replace("-", "−")


def tiles(metrics: Metrics, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The numbers at the top: name, number, and what it is."""
    held_out = [line for line in metrics if line.get("held_out/accuracy") is not None]
    shown: list[tuple[str, str, str]] = []
    if held_out:
        first, last = held_out[0], held_out[-1]
        errors = [
            standard_error(p, n)
            for p, n in ((line["held_out/accuracy"], line.get("held_out/prompts")) for line in (first, last))
        ]
        change = last["held_out/accuracy"] - first["held_out/accuracy"]
        reach = 1.96 * math.hypot(*errors)
        shown.append(
            (
                "held-out accuracy",
                f"{first['held_out/accuracy']:.3f} → {last['held_out/accuracy']:.3f}",
                f"{shown_signed(change)} ± {reach:.3f} (95 %), {last.get('held_out/prompts', '?')} problems",
            )
        )
    last_line = metrics[-1] if metrics else {}
    steps = summary.get("steps", last_line.get("step", 0))
    rollouts = summary.get("rollouts", last_line.get("rollouts", 0))
    shown.append(("steps", f"{steps:,}", f"{rollouts:,} rollouts"))
    if (share := newest(metrics, "poise/ceiling_share")) is not None:
        ceiling = newest(metrics, "poise/noise_ceiling")
        shown.append(("share captured", shown_number(share, 2), f"of a noise ceiling of {shown_number(ceiling, 2)}"))
    if (error := newest(metrics, "poise/value_error")) is not None:
        shown.append(("value error", shown_number(error, 4), "mean squared error of v to V(x)"))
    seconds = summary.get("seconds", last_line.get("seconds"))
    if seconds is not None:
        tokens = summary.get("generated_tokens")
        shown.append(
            ("time", f"{int(seconds) // 60}:{int(seconds) % 60:02d}", f"{tokens:,} tokens drawn" if tokens else "min:s")
        )
    if summary.get("preset"):
        shown.append(("baseline", str(summary["preset"]), f"seed {summary.get('seed', '?')}"))
    return shown
