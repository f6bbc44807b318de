"""`poise report`: the page of a run.

What is wrong with the input is one sentence and exit code 2.
"""

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.terminal import print_text, said


def add_to(app: typer.Typer) -> None:
    """Add the command `report`."""
    app.command("report")(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN [OTHER...]", help="A run's folder, finished or not; others are drawn over it."),
    ],
    output: Annotated[Path | None, typer.Option(help="Where to write. Default: report.html in the run.")] = None,
) -> None:
    """Write the page of a run: does it learn, what does the baseline save, is anything wrong, and its rollouts.

    The page is one file that needs no network.
    """
    from poise.report.page import write_report
    from poise.storage.run_directory import RunDirectory

    try:
        run, *others = map(RunDirectory, runs)
        written = write_report(run, output, others)
    except (ValueError, OSError) as error:
        raise said("report", error, code=2) from error
    print_text(written)
