"""`poise data`: the problems of a task as a file for a trainer."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from poise.cli.eval import named_task
from poise.cli.terminal import print_text, quiet_hosts, said

FORMATS = ("verl",)
GENERATED = ("embedded", "reasoning-gym:")


def add_to(app: typer.Typer) -> None:
    """Add the command `data`."""
    app.command("data")(data)


def data(
    task: Annotated[
        str,
        typer.Argument(help="A file or data set with ?options, a mixture A + B, or math sets such as aime24,amc23."),
    ],
    output: Annotated[Path, typer.Argument(help="The .parquet file to write.")],
    form: Annotated[str, typer.Option("--format", help="'verl'.")] = "verl",
    split: Annotated[str, typer.Option(help="'all', 'train' or 'heldout'. Math sets: all.")] = "all",
    num: Annotated[int | None, typer.Option(help="At most so many problems. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    data_dir: Annotated[Path, typer.Option(help="Where the files of math sets lie.")] = Path("data"),
    instruction: Annotated[
        str | None, typer.Option(help="What stands after every problem of a math set. Default: as released.")
    ] = None,
) -> None:
    """Write the problems of a task, each once, with the columns that verl reads; rows name their verifier."""
    with quiet_hosts():
        try:
            written = _write(task, output, form, split, num, seed, data_dir, instruction)
        except (ValueError, OSError) as error:
            raise said("data", error, code=2) from error
    print_text(f"{output}: {written} problems")


def _write(
    task: str,
    output: Path,
    form: str,
    split: str,
    num: int | None,
    seed: int,
    data_dir: Path,
    instruction: str | None,
) -> int:
    import pyarrow
    import pyarrow.parquet

    from poise.storage.whole_files import written_whole
    from poise.tasks.exported import verl_rows

    if form not in FORMATS:
        raise ValueError(f"--format needs {', '.join(FORMATS)}, got {form!r}")
    if output.suffix != ".parquet":
        raise ValueError(f"the file to write must end with .parquet, got {output}")
    if num is not None and num < 1:
        raise ValueError(f"--num must be 1 or more, got {num}")
    if num is None and any(name in task for name in GENERATED):
        raise ValueError("a task that is generated has no end: --num says how many problems are written")
    source, source_split = named_task(task, data_dir=data_dir, instruction=instruction, split=split)
    rows = list(verl_rows(source.problems(num or sys.maxsize, seed=seed, split=source_split)))
    if not rows:
        raise ValueError(f"task {task!r} has no problems in its split {source_split!r}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(output) as place:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place)
    return len(rows)
