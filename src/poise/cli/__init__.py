"""The command `poise`: one file a subcommand, which parses and prints and nothing else."""

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from poise.cli import compare, data, doctor, eval, report, study, train, watch
from poise.cli.terminal import said


class PoiseGroup(TyperGroup):
    """The commands, to which a line that cannot be read is one sentence, as other wrong input is."""

    def main(self, *positional: Any, **named: Any) -> Any:
        """Run a command and leave."""
        try:
            code = super().main(*positional, **(named | {"standalone_mode": False}))
        except typer.BadParameter.__bases__ as error:  # type: ignore[misc]  # of usage, which typer does not name
            context: Any = getattr(error, "ctx", None)
            if not error.format_message():  # nothing was asked for, and the help is the answer
                print(context.get_help())
                sys.exit(2)
            command = context.info_name if context is not None and context.parent else ""
            code = said(command, f"{error.format_message().rstrip('.')}; --help says more", code=2).exit_code
        sys.exit(code)


app = typer.Typer(
    cls=PoiseGroup,
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
watch.add_to(app)
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
