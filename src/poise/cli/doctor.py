"""`poise doctor`: what is wrong with a run, before it begins or while it goes on.

It prints a table with one sentence a check; exit code 1 if one fails, 2 if the run could not begin at all.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from poise.cli.given_settings import config_file, extra_options
from poise.cli.terminal import console, quiet_hosts, said

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class DoctorCommand(TyperCommand):
    """A command that takes options beyond its own."""

    context_class = typer.Context  # what `doctor` says it takes; typer itself hands over the parent class


def add_to(app: typer.Typer) -> None:
    """Add the command `doctor`."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("doctor", cls=DoctorCommand, context_settings=settings)(doctor)


def doctor(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="The folder of all runs, for its disk.")] = Path("runs"),
) -> None:
    """Examine a run before it begins: sampling, tokens, updates, rewards, memory, disk, versions.

    poise doctor [RUN] [OPTIONS OF poise train]
    poise doctor OPTION=VALUE ...

    RUN is a yaml file of settings, or the folder of a run, whose metrics are read too. Default: the embedded model.
    The second form takes the options of poise-verl.
    """
    # Not declared as an argument: of options that it does not know, typer would take the first for it.
    given = list(context.args)
    table = Table("check", "", "finding", box=None, padding=(0, 1))
    failed = False
    with quiet_hosts():
        try:
            for finding in _findings(given, output):
                if console.is_terminal:
                    console.print(f"checked {finding.check}", style="dim")
                table.add_row(finding.check, Text(finding.level, style=COLOURS[finding.level]), finding.sentence)
                failed = failed or finding.level == "fail"
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise said("doctor", error, code=2) from error
    console.print(table)
    if failed:
        raise typer.Exit(1)


def _findings(given: list[str], output: Path) -> Any:
    """Of the options of one command or the other, and of the metrics where a run has some."""
    if given and (given[0].startswith("--config-dir") or re.match(r"[+~]*[\w.@/]+=", given[0])):
        from poise.doctor.verl_run import findings as verl_findings

        yield from verl_findings(given)
        return
    from poise.doctor.checks import Finding
    from poise.doctor.examination import findings
    from poise.report.alarms import alarms
    from poise.storage.run_directory import RunDirectory
    from poise.train.config import run_settings

    run = Path(given.pop(0)) if given and not given[0].startswith("--") else None
    folder = RunDirectory(run) if run is not None and run.is_dir() else None
    config = folder.config if folder is not None else run
    settings = run_settings(config_file(config) if config is not None else {}, extra_options(given))
    yield from findings(settings, output)
    if folder is not None and folder.metrics.is_file():
        lines = folder.read_metrics()
        found = alarms(lines)
        yield from (Finding(alarm.name, "fail" if alarm.stops else "warn", alarm.sentence) for alarm in found)
        if not found:
            yield Finding("metrics", "ok", f"{len(lines)} lines, and no alarm")
