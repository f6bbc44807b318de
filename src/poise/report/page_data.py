"""What the page of a run shows, as plain data: a head for all above the rollouts, and the rollouts as columns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from poise.report.alarms import alarms
from poise.report.answers import answers, comparison_sentence, far_from_value, notes_of
from poise.report.baseline_gain import noise, ratios
from poise.report.calibration import Calibration, calibration
from poise.report.charts import (
    LOWEST_CEILING,
    OtherRun,
    domains_before_and_after,
    evidence_strips,
    health_charts,
    learning_charts,
    newest,
    noise_chart,
    value_charts,
)
from poise.report.rollout_files import RolloutBatch, RolloutReader, ungradable_causes
from poise.storage.run_directory import RunDirectory, readable_lines

TEXT_LIMITS = (200_000, 50_000, 20_000, 8_000, 4_000, 2_000, 1_000)
"""Characters of a text that are shown: the first of these with which all texts have room."""
MOST_CHARACTERS = 24_000_000
"""Of all texts on a page."""
MOST_TOKENS = 2_000_000
"""Whose entropies are on a page, of the newest rollouts."""
ENTROPY_LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""The root of an entropy in nats, in twelfths: fine where it is small."""


def page_head(reader: RolloutReader, others: Sequence[RunDirectory] = ()) -> dict[str, Any]:
    """Everything above the rollouts.

    Args:
        reader: Of the run.
        others: Runs that are drawn over it.
    """
    directory = reader.directory
    metrics, broken = metric_lines(directory)
    summary = directory.read_summary()
    batches, notes = reader.batches()
    if broken:
        notes.append(f"{broken} lines of metrics.jsonl cannot be read, and are left out.")
    found = noise(batches)
    gains, given = ratios(found), alarms(metrics)
    config = directory.config.read_text(encoding="utf-8", errors="replace") if directory.config.is_file() else None
    preset = summary.get("preset") or config_value(config, "preset")
    overlaid = []
    for other in others:
        other_batches, _ = RolloutReader(other).batches()
        overlaid.append(OtherRun(other.path.resolve().name, metric_lines(other)[0], noise(other_batches)))
    curve = value_calibration(batches)
    ceiling = newest(metrics, "poise/noise_ceiling")
    charts = [*learning_charts(metrics, overlaid), noise_chart(found, metrics, overlaid)]
    charts += value_charts(metrics, batches, curve) + health_charts(metrics, batches)
    finished = bool(summary) and not summary.get("stopped_early")
    last = metrics[-1] if metrics else {}
    example = far_from_value(batches)
    facts = {
        "steps": summary.get("steps", last.get("step", 0)),
        "rollouts": summary.get("rollouts", last.get("rollouts", 0)),
        "tokens": summary.get("generated_tokens"),
        "seconds": summary.get("seconds", last.get("seconds")),
        "model": config_value(config, "model"),
        "task": config_value(config, "task"),
        "preset": preset,
        "seed": summary.get("seed", config_value(config, "seed")),
    }
    told: dict[str, Any] = {
        "name": directory.path.resolve().name,
        "finished": finished,
        "facts": facts,
        "notes": notes_of(summary, batches) + notes,
        "answers": [
            asdict(each)
            for each in answers(
                preset=preset,
                metrics=metrics,
                batches=batches,
                gains=gains,
                alarms=given,
                path=str(directory.path),
                finished=finished,
            )
        ],
        "alarms": [asdict(alarm) for alarm in given],
        "gains": [asdict(gain) | {"sentence": comparison_sentence(gain)} for gain in gains],
        "example": None if example is None else asdict(example),
        "little_to_know": ceiling is None or ceiling < LOWEST_CEILING,
        "charts": [asdict(chart) for chart in charts],
        "domains": domains_before_and_after(metrics),
        "evidence": evidence_strips(metrics),
        "config": config,
        "again": f"poise train --config {directory.path}/config.yaml --name NAME" if config else None,
        "versions": summary.get("versions") or {},
    }
    return rounded(told)


def page_rollouts(reader: RolloutReader) -> dict[str, Any]:
    """The rollouts as columns: texts that come again and again once, entropies of tokens a character each."""
    batches, _ = reader.batches()
    causes = ungradable_causes(reader.directory)
    columns: dict[str, list[Any]] = {
        name: [each for batch in batches for each in batch.columns[name]]
        for name in (batches[0].columns if batches else ())
    }
    if not columns:
        return {"rows": 0}
    texts = columns["prompt"] + columns["completion"] + [each or "" for each in columns["answer"]]
    lengths = [len(text) for text in texts]
    limit = next(
        (each for each in TEXT_LIMITS if sum(min(each, n) for n in lengths) <= MOST_CHARACTERS), TEXT_LIMITS[-1]
    )
    rows = [row for batch in batches for row in range(len(batch))]
    places = [start for start, batch in _starts(batches) for _ in range(len(batch))]
    told: dict[str, Any] = {
        "rows": len(rows),
        "step": columns["step"],
        "row": rows,
        "sibling": [
            None if sibling is None else place + sibling
            for place, sibling in zip(places, columns["sibling"], strict=True)
        ],
        "completion": [shortened(text, limit) for text in columns["completion"]],
        "truncated": [None if each is None else int(each) for each in columns["truncated"]],
        "parts": listed([rounded(dict(each)) if each and len(each) > 1 else None for each in columns["parts"]], str),
        "tokens": token_strings(columns),
    }
    for name in ("prompt", "domain", "answer"):
        told[name] = listed([None if each is None else shortened(str(each), limit) for each in columns[name]])
    for name in ("reward", "value", "baseline", "advantage"):
        told[name] = rounded(columns[name])
    told["cause"] = listed(
        [
            causes.get((step, completion[:1000])) if reward is None else None
            for step, completion, reward in zip(columns["step"], columns["completion"], columns["reward"], strict=True)
        ]
    )
    return told


def _starts(batches: Sequence[RolloutBatch]) -> list[tuple[int, RolloutBatch]]:
    starts, total = [], 0
    for batch in batches:
        starts.append((total, batch))
        total += len(batch)
    return starts


def token_strings(columns: Mapping[str, list[Any]]) -> list[str | None]:
    """Two characters a token: its length (as a code point from 48 on) and its entropy; None where it is not kept."""
    strings: list[str | None] = [None] * len(columns["step"])
    room = MOST_TOKENS
    for row in reversed(range(len(strings))):
        lengths, entropies = columns["token_lengths"][row], columns["token_entropies"][row]
        if lengths is None or entropies is None or len(columns["completion"][row]) > TEXT_LIMITS[-3]:
            continue
        room -= len(lengths)
        if room < 0:
            break
        levels = [ENTROPY_LEVELS[min(len(ENTROPY_LEVELS) - 1, round(12 * max(0.0, h) ** 0.5))] for h in entropies]
        strings[row] = "".join(chr(48 + n) + level for n, level in zip(lengths, levels, strict=True))
    return strings


def listed(column: Sequence[Any], key: Callable[[Any], Any] = lambda each: each) -> dict[str, list[Any]]:
    """A column as its distinct entries and, for each row, the place of its own; -1 for None."""
    places: dict[Any, int] = {}
    distinct: list[Any] = []
    at = []
    for each in column:
        if each is None:
            at.append(-1)
            continue
        name = key(each)
        if name not in places:
            places[name] = len(distinct)
            distinct.append(each)
        at.append(places[name])
    return {"distinct": distinct, "at": at}


def shortened(text: str, limit: int) -> str:
    """A text with its middle left out where it is longer than the limit."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def value_calibration(batches: Sequence[RolloutBatch]) -> Calibration | None:
    """Values against rewards over all rollouts; None where there are none."""
    rows = [
        (value, reward, (step, prompt))
        for batch in batches
        for value, reward, step, prompt in zip(
            *(batch.columns[name] for name in ("value", "reward", "step", "prompt")), strict=True
        )
        if value is not None and reward is not None
    ]
    return calibration(*zip(*rows, strict=True)) if rows else None


def metric_lines(directory: RunDirectory) -> tuple[list[dict[str, Any]], int]:
    """Lines of metrics with numbers alone, but for the evidence in charge; and how many cannot be read.

    Raises:
        FileNotFoundError: If the folder holds no run.
    """
    if not directory.metrics.is_file():
        raise FileNotFoundError(f"{directory.path} holds no run: a run has a file metrics.jsonl")
    lines, broken = readable_lines(directory.metrics)
    told = []
    for line in lines:
        kept = {key: number for key, number in line.items() if type(number) in (int, float) and math.isfinite(number)}
        kept.setdefault("step", 0)
        told.append(kept | ({"in_charge": line["in_charge"]} if isinstance(line.get("in_charge"), dict) else {}))
    return told, broken


def config_value(config: str | None, name: str) -> Any:
    """One setting of a run's `config.yaml`; None where there is none or the file is damaged."""
    try:
        settings = yaml.safe_load(config or "")
    except yaml.YAMLError:
        return None
    found = settings.get(name) if isinstance(settings, dict) else None
    return found if isinstance(found, str | int) else None


def rounded(value: Any) -> Any:
    """The same with five digits a number, and None for what JSON cannot hold."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value
