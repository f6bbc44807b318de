"""The command `poise`: one file a subcommand, which parses and prints and nothing else."""

from importlib.metadata import version
from typing import Annotated

import typer

from poise.cli import compare, data, doctor, eval, report, study, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reinforcement learning with verifiable rewards whose baseline is read from the policy's own hidden states.",
)
train.add_to(app)
data.add_to(app)
eval.add_to(app)
study.add_to(app)
report.add_to(app)
compare.add_to(app)
doctor.add_to(app)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"poise {version('poise-rlvr')}")
        raise typer.Exit
    return wanted


@app.callback()
def poise(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """See `poise COMMAND --help`."""
