"""Pages of the documentation that are made from the code: commands, settings with their defaults, presets, API.

A hook of mkdocs (`hooks` in mkdocs.yml): the pages exist in the site alone, so that none can be older than the code.
"""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from tabulate import tabulate
from trl import GRPOConfig

import poise
from poise.engines.trl import PoiseConfig
from poise.lab.compare.plan import Comparison, Conditions
from poise.lab.study.settings import StudySettings
from poise.train.config import RunSettings


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    pages = {"commands.md": commands_page(), "settings.md": settings_page(), "api.md": api_page()}
    pages |= {f"tables/{path.name}": path.read_text() for path in sorted(Path("benchmarks/results").glob("*.md"))}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to full tables into the site, and leave those to source files as text."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/results/", f"]({up}tables/", markdown)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?:src|examples|benchmarks|recipes)[^)]*\)", r"\1", markdown)


def commands_page() -> str:
    """What `--help` says, of every command."""
    script = [sys.executable, "-m", "typer", "poise.cli", "utils", "docs", "--name", "poise"]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout.replace(
        "[OPTIONS OF", "\\[OPTIONS OF"
    )


def settings_page() -> str:
    """Tables of every settings class: name, default, meaning."""
    own = [each for each in dataclasses.fields(PoiseConfig) if _is_own(each)]
    parts = [
        "# Settings\n",
        "Names and defaults as they stand in the code. Every option of a command is one of these.\n",
        "## `poise train`\n\nBeside these, every field of `PoiseConfig`.\n",
        _table(dataclasses.fields(RunSettings)),
        "## `PoiseConfig`\n\nFields that poise adds to TRL's `GRPOConfig`, or to which it gives another default.\n",
        _table(own),
        "## `poise study`\n",
        _table(dataclasses.fields(StudySettings)),
        "## `poise compare`\n",
        _table([*dataclasses.fields(Comparison), *dataclasses.fields(Conditions)]),
        "## Presets\n\nEach name with its recipe; `poise.preset(name, field=value)` changes a field.\n",
        *(_preset(poise.preset(name)) for name in poise.PRESETS),
    ]
    return "\n".join(parts)


def api_page() -> str:
    """The public names, from their docstrings."""
    names = [f"::: poise.{name}\n" for name in poise.__all__]
    engine = ["## TRL engine\n", "::: poise.engines.trl.PoiseConfig\n", "::: poise.engines.trl.PoiseTrainer\n"]
    rewards = ["## Rewards\n", "::: poise.rewards.verdict\n", "::: poise.rewards.Grader\n"]
    return "\n".join(["# API\n", *names, *engine, *rewards])


def _is_own(each: "dataclasses.Field[Any]") -> bool:
    hosts = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    return each.name not in hosts or hosts[each.name] != each.default


def _default(each: "dataclasses.Field[Any]") -> str:
    if each.default is not dataclasses.MISSING:
        return f"`{each.default!r}`"
    return "" if each.default_factory is dataclasses.MISSING else f"`{each.default_factory()!r}`"


def _table(fields: Any) -> str:
    rows = [(f"`{each.name}`", _default(each), each.metadata.get("help", "")) for each in fields]
    return (
        tabulate([[cell.replace("|", "\\|") for cell in row] for row in rows], ["name", "default", ""], "pipe") + "\n"
    )


def _preset(preset: Any) -> str:
    rows = [
        (f"`{each.name}`", f"`{getattr(preset.recipe, each.name)!r}`") for each in dataclasses.fields(preset.recipe)
    ]
    return f"### `{preset.name}`\n\n" + tabulate(rows, ["field", "value"], "pipe") + "\n"
