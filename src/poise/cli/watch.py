"""`poise watch`: the page of a run in the browser, while the run goes on.

It ends with Ctrl-C. What is wrong with the input is one sentence and exit code 2.
"""

import os
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from poise.cli.terminal import said


def add_to(app: typer.Typer) -> None:
    """Add the command `watch`."""
    app.command("watch")(watch)


def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a run, going on or not.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1. Default: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open a browser.")] = True,
) -> None:
    """Show the page of a run while it goes on, to a browser on this machine.

    The address holds a random token: whoever does not know it sees nothing.
    """
    from poise.report.watching import WatchServer
    from poise.storage.run_directory import RunDirectory

    os.nice(10)  # training comes first
    try:
        server = WatchServer(RunDirectory(run), port)
    except (ValueError, OSError) as error:
        raise said("watch", error, code=2) from error
    typer.echo(f"{server.address}  (Ctrl-C to end)")
    sys.stdout.flush()
    if browser:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
    finally:
        server.server_close()


@contextmanager
def watched(run: Path, *, wanted: bool) -> Iterator[None]:
    """Watch a run in a process of its own as long as the block lasts, where it is wanted."""
    if not wanted:
        yield
        return
    command = [sys.executable, "-m", "poise", "watch", str(run)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2)  # with the words, not with the numbers
    try:
        yield
    finally:
        process.terminate()
        process.wait()
