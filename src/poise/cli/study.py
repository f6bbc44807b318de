"""`poise study`: how well does a probe on this model's own states tell what a prompt is worth?

The rule: what is drawn is kept as it comes, and the same command goes on. What is wrong with the input is one sentence
and exit code 2.
"""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.eval import chat_template_options, folder_name
from poise.cli.terminal import console, quiet_hosts

if TYPE_CHECKING:
    from poise.lab.study.settings import StudySettings
    from poise.lab.study.study import StudyResults
    from poise.lab.study.task_rollouts import Watch


EMBEDDED_SIZES: dict[str, Any] = {
    "prompts": 256,
    "held_out_prompts": 128,
    "evidence": 4,
    "critic_epochs": 10,
    "critic_learning_rates": (1e-4, 3e-4, 1e-3),
}
"""Defaults for the embedded model: minutes on two CPU cores."""

OTHER_SIZES: dict[str, Any] = {
    "prompts": 128,
    "held_out_prompts": 64,
    "evidence": 2,
    "critic_epochs": 2,
    "critic_learning_rates": (3e-5,),
}
"""Defaults for other models: with 135 M parameters and five short tasks about an hour on two CPU cores."""


def add_to(app: typer.Typer) -> None:
    """Add the command `study`."""
    app.command("study")(study)


def study(
    model: Annotated[
        str | None, typer.Option(help="'embedded' (default), 'smollm2', a folder with a checkpoint, or a name.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="embedded, reasoning-gym:NAME, a file or data set; may come again.")
    ] = None,
    rollouts: Annotated[
        list[Path] | None,
        typer.Option(
            help="A rollout file of a run, runs/NAME/rollouts/step-000123.parquet; may come again. Draws nothing: "
            "compares baselines on what is there, with --model those that read features."
        ),
    ] = None,
    older_model: Annotated[
        str | None, typer.Option(help="A checkpoint from earlier in training: how fast does a probe go stale?")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="Training prompts of each task, two rollouts each. Default: 256, see below.")
    ] = None,
    held_out_prompts: Annotated[int | None, typer.Option(help="Prompts that judge. Default: 128, see below.")] = None,
    k: Annotated[int, typer.Option("--k", help="Rollouts of a held-out prompt.")] = 8,
    evidence: Annotated[
        int | None, typer.Option(help="Of those, how many are evidence, one at a time. Default: 4, see below.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Such as 0,4,8. Default: all.")] = None,
    pools: Annotated[str, typer.Option(help="Numbers of last tokens whose states are averaged.")] = "1,5,10,20",
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    max_completion_length: Annotated[int, typer.Option(help="Tokens.")] = 64,
    seed: Annotated[int, typer.Option(help="Of problems, sampling and critics.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Completions drawn side by side.")] = 128,
    critic: Annotated[bool, typer.Option(help="Fine-tune critics of the model's size, the dear part.")] = True,
    critic_epochs: Annotated[int | None, typer.Option(help="At most. Default: 10, see below.")] = None,
    critic_learning_rates: Annotated[
        str | None, typer.Option(help="To try. Default: 1e-4,3e-4,1e-3, see below.")
    ] = None,
    critic_hindsight: Annotated[
        bool, typer.Option(help="Judge every epoch of every rate: a bound on any choice among them.")
    ] = False,
    resamples: Annotated[int, typer.Option(help="Of held-out prompts, for intervals.")] = 500,
    chat: Annotated[bool, typer.Option(help="Ask by the tokenizer's chat template, if it has one.")] = True,
    tables: Annotated[
        str | None, typer.Option(help="Of estimators,features,layers,pools,probes,sizes. Default: all.")
    ] = None,
    chat_template_kwargs: Annotated[str, typer.Option(help="Options of the chat template.")] = "{}",
    output: Annotated[Path | None, typer.Option(help="Folder of this study. Default: studies/MODEL.")] = None,
) -> None:
    """Compare value estimates on held-out prompts: probes, presets, critics; features, layers, pooling, training size.

    Everything drawn is kept as it comes: after an interruption the same command goes on where it was. For models other
    than the embedded one, half as many prompts and rollouts that are evidence, and critics that are fitted for 2 epochs
    at a learning rate of 3e-5, are the default: the critics are what takes long.
    """
    with quiet_hosts():
        try:
            if rollouts:
                return print_swapped(rollouts, model, layers=layers, temperature=temperature)
            from poise.lab.study.settings import TABLES, StudySettings

            sizes = EMBEDDED_SIZES if model in (None, "embedded") else OTHER_SIZES
            given = {
                "prompts": prompts,
                "held_out_prompts": held_out_prompts,
                "evidence": min(sizes["evidence"], k) if evidence is None else evidence,
                "critic_epochs": critic_epochs,
                "critic_learning_rates": learning_rates(critic_learning_rates) if critic_learning_rates else None,
            }
            settings = StudySettings(
                model or "embedded",
                tuple(task or ["embedded"]),
                older_model=older_model,
                k=k,
                layers=None if layers is None else tuple(whole_numbers(layers, name="--layers")),
                pools=tuple(whole_numbers(pools, name="--pools")),
                chat=chat,
                temperature=temperature,
                max_completion_length=max_completion_length,
                seed=seed,
                batch_size=batch_size,
                critics=critic,
                critic_hindsight=critic_hindsight,
                resamples=resamples,
                **(sizes | {name: each for name, each in given.items() if each is not None}),
                tables=TABLES if tables is None else tuple(each.strip() for each in tables.split(",")),
            )
            folder = output or Path("studies") / folder_name(settings.model)
            console.print(f"a study of {settings.model}; everything goes to {folder}", soft_wrap=True)
            _studied(settings, folder, chat_options=chat_template_options(chat_template_kwargs))
        except (ValueError, OSError) as error:
            typer.echo(f"poise study: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("poise study: interrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from error


def _studied(settings: "StudySettings", folder: Path, *, chat_options: dict[str, Any]) -> None:
    from poise.lab.study.pages import study_markdown, task_markdown
    from poise.lab.study.study import study

    command = shlex.join(["poise", *sys.argv[1:]])

    def report(results: "StudyResults") -> None:
        write_study(results, folder, command=command)
        typer.echo(task_markdown(results.tasks[-1]))

    with shown_work() as watch:
        results = study(settings, folder, chat_options=chat_options, watch=watch, report=report)
    for sentence in results.skipped:
        console.print(f"left out: {sentence}", soft_wrap=True)
    if len(results.tasks) > 1 and "estimators" in settings.tables:
        typer.echo(study_markdown(results, command=command).split("\n## ")[1])
    typer.echo(f"files: {folder}/study.md, study.json, figures/")


def print_swapped(paths: list[Path], model: str | None, *, layers: str | None, temperature: float) -> None:
    """Print every baseline's errors on saved rollouts.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the files are not rollouts of a run, or not of this model.
    """
    from poise.lab.study.saved import saved_features, saved_rollouts
    from poise.lab.study.study import loaded_policy
    from poise.lab.study.swapping import swapped_baselines, swapped_markdown

    rollouts = saved_rollouts(paths)
    features = weights = None
    with shown_work() as watch:
        if model is not None:
            layer = None if layers is None else whole_numbers(layers, name="--layers")[0]
            total = len(rollouts.prompts)
            policy, tokenizer = loaded_policy(model)
            features, weights = saved_features(
                rollouts,
                policy,
                tokenizer,
                model=model,
                layer=layer,
                temperature=temperature,
                watch=lambda done: watch("reading rollouts", done, total),
            )
        swapped = swapped_baselines(rollouts, features, weights, watch=lambda name: watch(f"making {name}", 0, 0))
    typer.echo(swapped_markdown(swapped))


def write_study(results: "StudyResults", folder: Path, *, command: str) -> None:
    """Write the page, the numbers and the figures of a study."""
    from poise.lab.study.figures import write_figures
    from poise.lab.study.pages import study_json, study_markdown

    (folder / "study.md").write_text(study_markdown(results, command=command), encoding="utf-8")
    (folder / "study.json").write_text(study_json(results, command=command), encoding="utf-8")
    write_figures(results, folder / "figures")


def whole_numbers(text: str, *, name: str) -> list[int]:
    """Numbers out of `1,2,3`.

    Raises:
        ValueError: If one is none.
    """
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} needs whole numbers such as 1,2, got {text!r}") from None


def learning_rates(text: str) -> tuple[float, ...]:
    """Numbers out of `1e-4,1e-3`.

    Raises:
        ValueError: If one is none.
    """
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise ValueError(f"--critic-learning-rates needs numbers such as 1e-4,1e-3, got {text!r}") from None


@contextmanager
def shown_work() -> "Iterator[Watch]":
    """A function that shows what goes on: a bar in a terminal, a line now and then in a log file."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not console.is_terminal:

        def watch_lines(what: str, done: int, total: int) -> None:
            every = max(1, total // 10)
            if total == 0 or done in (0, total) or done % every == 0:
                console.print(f"{what} {done}/{total}" if total else what, soft_wrap=True)

        yield watch_lines
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console) as bar:
        shown = bar.add_task("")
        last = ""

        def watch_bar(what: str, done: int, total: int) -> None:
            nonlocal last
            if total and what != last:  # the time left is that of this part
                bar.reset(shown)
            last = what
            bar.update(shown, description=what, completed=done, total=total or None)

        yield watch_bar
