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
    run: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="Where to write. Default: report.html in the run.")] = None,
) -> None:
    """Write the page of a run: curves, quality of its values, and rollouts to look at.

    The page is one file that needs no network.
    """
    from poise.report.page import write_report
    from poise.storage.run_directory import RunDirectory

    try:
        written = write_report(RunDirectory(run), output)
    except (ValueError, OSError) as error:
        raise said("report", error, code=2) from error
    print_text(written)
