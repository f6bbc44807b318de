"""The command `poise study`: value estimates of a model's prompts, judged on held-out ones.

What is drawn is kept as it comes, and the same command goes on.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.eval import folder_name
from poise.cli.given_settings import numbers
from poise.cli.terminal import console, print_text, quiet_hosts, said, shown_progress

if TYPE_CHECKING:
    from poise.lab.study.settings import StudySettings
    from poise.lab.study.study import StudyResults

OTHER_SIZES: dict[str, Any] = {
    "prompts": 128,
    "held_out_prompts": 64,
    "evidence": 2,
    "critic_epochs": 2,
    "critic_learning_rates": (3e-5,),
}
"""Defaults for models other than the embedded one, which has those of `StudySettings`: minutes on two CPU cores, and
about an hour for 135 M parameters and five short tasks."""


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
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings along.")
    ] = False,
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
                return print_swapped(
                    rollouts, model, layers=layers, temperature=temperature, trust_remote_code=trust_remote_code
                )
            from poise.lab.study.settings import TABLES, StudySettings

            sizes = {} if model in (None, "embedded") else OTHER_SIZES
            given = {
                "prompts": prompts,
                "held_out_prompts": held_out_prompts,
                "evidence": min(sizes.get("evidence", 4), k) if evidence is None else evidence,
                "critic_epochs": critic_epochs,
                "critic_learning_rates": None
                if critic_learning_rates is None
                else numbers(critic_learning_rates, name="--critic-learning-rates", such_as="1e-4,1e-3"),
            }
            settings = StudySettings(
                model or "embedded",
                tuple(task or ["embedded"]),
                older_model=older_model,
                k=k,
                layers=None if layers is None else numbers(layers, name="--layers", such_as="1,2"),
                pools=numbers(pools, name="--pools", such_as="1,2"),
                chat=chat,
                temperature=temperature,
                max_completion_length=max_completion_length,
                seed=seed,
                critics=critic,
                critic_hindsight=critic_hindsight,
                resamples=resamples,
                **(sizes | {name: each for name, each in given.items() if each is not None}),
                trust_remote_code=trust_remote_code,
                tables=TABLES if tables is None else tuple(each.strip() for each in tables.split(",")),
            )
            folder = output or Path("studies") / folder_name(settings.model)
            console.print(f"a study of {settings.model}; everything goes to {folder}", soft_wrap=True)
            _studied(settings, folder)
        except (ValueError, OSError) as error:
            raise said("study", error, code=2) from error
        except KeyboardInterrupt as error:
            raise said("study", "interrupted; the same command goes on from here", code=130) from error


def _studied(settings: "StudySettings", folder: Path) -> None:
    from poise.lab.study.pages import study_markdown, task_markdown, write_study
    from poise.lab.study.study import study

    command = shlex.join(["poise", *sys.argv[1:]])

    def report(results: "StudyResults") -> None:
        write_study(results, folder, command=command)
        print_text(task_markdown(results.tasks[-1]))

    with shown_progress() as watch:
        results = study(settings, folder, watch=watch, report=report)
    for sentence in results.skipped:
        console.print(f"left out: {sentence}", soft_wrap=True)
    if len(results.tasks) > 1 and "estimators" in settings.tables:
        print_text(study_markdown(results, command=command).split("\n## ")[1])
    print_text(f"files: {folder}/study.md, study.json, figures/")


def print_swapped(
    paths: list[Path], model: str | None, *, layers: str | None, temperature: float, trust_remote_code: bool
) -> None:
    """Print every baseline's errors on saved rollouts.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the files are not rollouts of a run, or not of this model.
    """
    from poise.features.hidden_states import checked_layers, decoder_blocks
    from poise.lab.study.rollouts import Reader
    from poise.lab.study.saved import saved_features, saved_rollouts, swapped_baselines, swapped_markdown
    from poise.lab.study.study import loaded_policy

    rollouts = saved_rollouts(paths)
    features = weights = None
    with shown_progress() as watch:
        if model is not None:
            given = None if layers is None else numbers(layers, name="--layers", such_as="1,2")[:1]
            policy, tokenizer = loaded_policy(model, trust_remote_code=trust_remote_code)
            layer = checked_layers(given, depth=len(decoder_blocks(policy)[1]))
            watch("reading rollouts", 0, 0)
            reader = Reader(policy, tokenizer, list(layer), [10], temperature)
            features, weights = saved_features(rollouts, reader, model=model)
        swapped = swapped_baselines(rollouts, features, weights, watch=watch)
    print_text(swapped_markdown(swapped))
