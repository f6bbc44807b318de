"""The page of a run: one file that stands alone, made of a hand-written page and the run's numbers and rollouts.

It loads nothing, and nothing that a model wrote is ever part of its HTML: all of it is compressed data, which the
page's own script shows as text.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from poise.report.page_data import metric_lines, page_head, page_rollouts
from poise.report.rollout_files import RolloutReader
from poise.storage.run_directory import RunDirectory
from poise.storage.whole_files import write_whole

SCRIPTS = ("uPlot.iife.min.js", "charts.js", "sections.js", "rollouts.js", "page.js")
STYLES = ("uPlot.min.css", "page.css")


def write_report(directory: RunDirectory, path: Path | None = None, others: Sequence[RunDirectory] = ()) -> Path:
    """Write the page of a run, which may be unfinished, and return where it is.

    Args:
        directory: The run.
        path: Where to write. Default: `report.html` in the run's folder.
        others: Runs whose lines are drawn over those of the run.

    Raises:
        FileNotFoundError: If a folder holds no run.
    """
    for each in (directory, *others):
        metric_lines(each)
    path = path or directory.path / "report.html"
    write_whole(path, report_page(directory, others))
    return path


def report_page(directory: RunDirectory, others: Sequence[RunDirectory] = ()) -> str:
    """The page of a run as HTML, with all that it shows."""
    reader = RolloutReader(directory)
    return page(head=packed(page_head(reader, others)), rollouts=packed(page_rollouts(reader)))


def page(head: bytes = b"", rollouts: bytes = b"") -> str:
    """The page as HTML with data in it; without, it asks for `head` and `rollouts` beside it, again and again."""
    parts = {
        "STYLE": _joined(STYLES),
        "SCRIPT": _joined(SCRIPTS),
        "POLICY": content_policy(live=not head),
        "HEAD": base64.b64encode(head).decode(),
        "ROLLOUTS": base64.b64encode(rollouts).decode(),
    }
    html = _joined(("page.html",))
    for name, text in parts.items():
        html = html.replace(f"<!-- {name} -->", text)
    return html


def content_policy(*, live: bool) -> str:
    """What a browser may do on the page: run its own script, and ask where it came from if it is live; nothing else."""
    digest = base64.b64encode(hashlib.sha256(_joined(SCRIPTS).encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        f"connect-src {'self' if live else 'none'!r}; base-uri 'none'; form-action 'none'"
    )


@cache
def _joined(names: tuple[str, ...]) -> str:
    """Files of the page one after another."""
    folder = files("poise.report") / "page"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def packed(data: Any) -> bytes:
    """Data as compressed JSON, the same bytes for the same data."""
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), compresslevel=6, mtime=0)
