"""`poise train`: the run that is asked for, and how it ends.

What is wrong with the input is one sentence and exit code 2, a disk that cannot be written to is one and exit
code 1. Ctrl-C ends the run where it can go on exactly, with everything written. However a run ended, the same command
goes on with it.
"""

import errno
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from typer.core import TyperCommand

from poise.cli.given_settings import config_file, extra_options
from poise.cli.terminal import clock, console, json_lines, print_note, quiet_hosts, said, stop_on_interrupt
from poise.cli.train_progress import shown_progress
from poise.cli.watch import watched

if TYPE_CHECKING:
    from poise.engines.trl import PoiseConfig
    from poise.storage.run_directory import RunDirectory
    from poise.train.config import RunSettings
    from poise.train.run import TrainingRun

USEFUL_OPTIONS = {
    "preset": "the baseline: poise, poise-value, paper, rloo, group-mean, none, ...",
    "learning-rate": "of AdamW",
    "num-generations": "rollouts per prompt, 2 or more",
    "per-device-train-batch-size": "rollouts a minibatch",
    "steps-per-generation": "minibatches a generation batch",
    "temperature": "of sampling, in training and evaluation",
    "max-completion-length": "tokens",
    "loss-type": "dr_grpo leaves the gradient unbiased",
    "use-peft": "train a LoRA adapter; --lora-r, --lora-alpha, --dtype, --load-in-4bit as in TRL",
    "trust-remote-code": "run code that a model brings along; without it such a model is refused",
    "beta": "KL penalty against the starting policy",
    "save-steps": "steps from one checkpoint to the next; below 1: share of all steps",
}
"""What `poise train --help` shows of the options of `PoiseConfig`."""


class TrainCommand(TyperCommand):
    """A command whose help ends with a table of options that it takes beyond its own."""

    context_class = typer.Context  # what `train` says it takes; typer itself hands over the parent class

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        super().format_help(ctx, formatter)
        table = Table(box=None, show_header=False, padding=(0, 1))
        console.print("Options of the trainer: any field of PoiseConfig. The most useful are")
        for name, text in USEFUL_OPTIONS.items():
            table.add_row(f"--{name}", text)
        console.print(table)
        console.print("All of them, with their defaults: poise train --list-options")


def add_to(app: typer.Typer) -> None:
    """Add the command `train`."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("train", cls=TrainCommand, context_settings=settings)(train)


def train(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="A yaml file of settings, such as a run's config.yaml.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run. Default: date, time and task.")] = None,
    output: Annotated[Path, typer.Option(help="The folder of all runs.")] = Path("runs"),
    model: Annotated[
        str | None, typer.Option(help="'embedded' (default), 'smollm2', a folder with a checkpoint, or a hub name.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="'embedded' (default), 'reasoning-gym:NAME', a .jsonl file, a data set, 'A + B'.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Or package.module:function, options as in ?scale=2; may come again. Default: the task's verifier.",
        ),
    ] = None,
    reward_weight: Annotated[
        list[str] | None, typer.Option(metavar="<float>", help="One for each --reward. Default: 1.")
    ] = None,
    families: Annotated[str | None, typer.Option(help="Families of problems, such as sum,sort. Default: all.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="<int>", help="Updates of the policy.")] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="<int>", help="Of problems, sampling and training. Default: 0.")
    ] = None,
    eval_prompts: Annotated[
        str | None, typer.Option(metavar="<int>", help="Held-out problems before and after. Default: 500.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on standard output; words go to standard error.")
    ] = False,
    watch_page: Annotated[
        bool, typer.Option("--watch", help="Open the run's page in a browser while it trains, as poise watch does.")
    ] = False,
    list_options: Annotated[bool, typer.Option("--list-options", help="List every setting and leave.")] = False,
) -> None:
    """Train a language model with a baseline read from its own hidden states.

    Without options: the small model of the package learns its six families of problems, in minutes on two CPU cores.
    """
    from poise.tasks.reward_functions import RewardError

    named = {"model": model, "task": task, "reward": reward or None, "reward_weights": reward_weight or None}
    named |= {"families": families, "steps": steps, "seed": seed, "eval_prompts": eval_prompts}
    with json_lines(as_json) as tell, quiet_hosts():
        if list_options:
            return print_options()
        try:
            of_file = config_file(config) if config else {}
            of_line = {key: value for key, value in named.items() if value is not None} | extra_options(context.args)
            ready = announced_run(of_file, of_line, config=config, output=output, name=name)
        except (ValueError, OSError) as error:
            raise said("train", error, code=2) from error
        if ready is None:
            return None
        from poise.engines.trl.checkpoints import CheckpointError

        of_run = {name: getattr(ready.settings, name) for name in ("model", "task", "steps", "seed")}
        tell("start", folder=str(ready.directory.path), **of_run, preset=ready.config.preset)
        try:
            with (
                watched(ready.directory.path, wanted=watch_page),
                stop_on_interrupt() as asked,
                shown_progress(tell if as_json else None) as watch,
            ):
                summary = ready.train(watch=watch, stop=lambda: bool(asked))
        except (CheckpointError, BlockingIOError) as error:
            raise said("train", error, code=2) from error
        except RewardError as error:
            raise said("train", error, code=1, then=command_to_go_on(ready.directory.path)) from error
        except (OSError, FloatingPointError) as error:
            if isinstance(error, OSError) and not is_about_the_disk(error):  # of a reward function, say
                raise
            raise said("train", error, code=1, then=command_to_go_on(ready.directory.path)) from error
        except KeyboardInterrupt as error:
            raise said("train", "stopped at once", code=130, then=command_to_go_on(ready.directory.path)) from error
        folder = ready.directory
        places = ready.trackers.places() if ready.trackers else []
        then = next_command(summary, folder.path)
        tell("end", summary=summary, report=str(folder.report), next=then, trackers=places)
        print_summary(summary, folder.path, places)
        if summary["stopped_because"]:
            print_ungradable(ready.directory.ungradable)
            raise said("train", f"stopped: {summary['stopped_because']}", code=1)


def is_about_the_disk(error: OSError) -> bool:
    """Whether something could not be written, and there is something to do about it outside the program."""
    from poise.engines.trl.checkpoints import CheckpointNotWrittenError

    of_disk = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    return isinstance(error, CheckpointNotWrittenError) or error.errno in of_disk


def command_to_go_on(path: Path) -> str:
    """What to say of the command that goes on with the run in a folder."""
    return f"to go on: poise train --config {shlex.quote(f'{path}/config.yaml')}"


def next_command(summary: Mapping[str, Any], path: Path) -> str:
    """The command to give after a run: to go on with one that was stopped, to measure one that is done."""
    if summary["stopped_early"]:
        return command_to_go_on(path).removeprefix("to go on: ")
    return f"poise eval {shlex.quote(str(path))}"


def announced_run(
    of_file: Mapping[str, Any], of_line: Mapping[str, Any], *, config: Path | None, output: Path, name: str | None
) -> "TrainingRun | None":
    """The run that the settings of a file and, before them, of the command line ask for; says what and where it is.

    None where that run is done.

    Raises:
        ValueError: If settings are unknown, wrong or contradict each other, the task or the model is not there, or the
            folder holds a run of other settings.
        OSError: If the folder is in use by something else or cannot be written to, or the file of a task is not there.
    """
    from poise.train.config import run_settings
    from poise.train.run import TrainingRun

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"poise train runs in one process, and {os.environ['WORLD_SIZE']} were started: for several, write a "
            "script with a PoiseTrainer"
        )
    settings = run_settings(of_file, of_line)
    built = settings.poise_config(output)  # contradictions are found before a folder is made
    resolved = settings.resolved(built)
    directory = run_folder(settings, resolved, config=config, output=output, name=name)
    done = directory.is_done and directory.read_summary()["steps"] >= settings.steps
    done = done and not directory.differences(resolved)  # of other settings: refused below
    shown = settings.families or ["all families" if settings.task == "embedded" else settings.task]
    console.print(
        f"poise: {settings.model} model on {', '.join(shown)}; "
        f"baseline {resolved['preset']!r}, {settings.steps} steps, seed {settings.seed}",
        soft_wrap=True,
    )
    if settings.model == "embedded" and not settings.task_spec.startswith("embedded"):
        print_note(
            "the embedded model knows its own six families of problems alone, in 48 characters: for other tasks give "
            "--model, such as a folder or a name on the hub"
        )
    if done:
        console.print(
            f"this run is done, and its results are in {directory.path}: to train once more, give another --name",
            soft_wrap=True,
        )
        return None
    console.print(f"results go to {directory.path}", soft_wrap=True)
    run = TrainingRun(settings, directory, built)
    if not run.is_done:  # another process may have finished it meanwhile
        console.print(run.graded_task.what_is_measured, soft_wrap=True)
        console.print(generation_batch_sentence(run.config), soft_wrap=True)
    if run.checkpoint:
        console.print(f"goes on from {run.checkpoint.name}")
    return run


def generation_batch_sentence(config: "PoiseConfig") -> str:
    """What a generation batch is, and that a line of metrics belongs to it."""
    rollouts, every = config.generation_batch_size, config.steps_between_generations
    return (
        f"a generation batch: {rollouts // config.num_generations} prompts, {rollouts} rollouts, {every} "
        f"step{'s' * (every > 1)}; one line of metrics "
        + ("each" if config.logging_steps == every else f"every {config.logging_steps:g} steps")
    )


def run_folder(
    settings: "RunSettings", resolved: Mapping[str, Any], *, config: Path | None, output: Path, name: str | None
) -> "RunDirectory":
    """The folder of the run: by its name; without one that of `config`, if it is a run's own; else a new one.

    Raises:
        ValueError: If it holds a run of other settings.
        OSError: If it holds something else, or cannot be written to.
    """
    from poise.storage.run_directory import RunDirectory

    if name is None and config is not None:
        own = RunDirectory(config.parent)
        if config.name == own.config.name and own.metrics.is_file() and made_longer(own, resolved):
            own.write_config(resolved)
        if config.name == own.config.name and own.metrics.is_file() and not own.differences(resolved):
            return own
    task = re.sub(r"\W+", "-", settings.task.removeprefix("reasoning-gym:").partition("?")[0]).strip("-")[-40:]
    task = "-".join(settings.families or [task])
    directory = RunDirectory.new(output, name or f"{datetime.now():%Y%m%d-%H%M%S}-{task}", numbered=name is None)
    if directory.config.is_file() and made_longer(directory, resolved):
        directory.write_config(resolved)
    return directory


def made_longer(directory: "RunDirectory", resolved: Mapping[str, Any]) -> bool:
    """Whether the run in a folder is to be the same with more steps; says what that means."""
    theirs = config_file(directory.config)
    of_steps = ("steps", "check_every", "save_steps", "warmup_steps")
    same = directory.differences({**resolved, **{name: theirs.get(name) for name in of_steps}}) == []
    if not same or not isinstance(theirs.get("steps"), int) or theirs["steps"] >= resolved["steps"]:
        return False
    print_note(
        f"the run has {resolved['steps']} steps in place of {theirs['steps']}, and goes on at the learning rate that a "
        "run of so many steps would have by now"
    )
    return True


def print_summary(summary: Mapping[str, Any], path: Path, trackers: Sequence[str] = ()) -> None:
    """What the run did, where its files are, and what to do next."""
    table = Table("held-out accuracy", "before", "after", "change", box=SIMPLE_HEAD)
    rows = {
        domain: (share, summary["accuracy_after_by_domain"][domain])
        for domain, share in summary["accuracy_before_by_domain"].items()
    } | {"all": (summary["accuracy_before"], summary["accuracy_after"])}
    rows |= {"held-out reward": (summary.get("reward_before"), summary.get("reward_after"))}
    for label, (before, after) in rows.items():
        if before == before and after == after and before is not None and after is not None:  # else not measured
            style = "bold" if label == "all" else None
            table.add_row(label, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}", style=style)
    console.print(table)
    early = " (stopped early)" if summary["stopped_early"] else ""
    console.print(
        f"{summary['steps']} steps{early}, {summary['rollouts']} rollouts, {summary['generated_tokens']} tokens, "
        f"{clock(summary['seconds'])} minutes",
        f"look at {path}/report.html; other files: summary.json, metrics.jsonl, learning_curve.png, rollouts/, "
        "checkpoints/",
        *trackers,
        f"next: {next_command(summary, path)}",
        f"again: poise train --config {shlex.quote(f'{path}/config.yaml')} --name NAME",
        sep="\n",
        soft_wrap=True,
    )


def print_ungradable(path: Path, num: int = 3) -> None:
    """The first rollouts that could not be graded, in a line each."""
    for line in path.read_text().splitlines()[:num] if path.exists() else []:
        case = json.loads(line)
        shown = {name: case[name] for name in ("prompt", "completion", "answer")}
        parts = ", ".join(f"{name} {text!r:.100}" for name, text in shown.items())
        console.print(f"ungradable at step {case['step']}: {case['cause']}: {parts}", soft_wrap=True)


def print_options() -> None:
    """Every setting with its default and what it does."""
    from dataclasses import MISSING, fields

    from trl import ModelConfig

    from poise.engines.trl import PoiseConfig
    from poise.train.config import (
        DECIDED_BY_RUN,
        EMBEDDED_DEFAULTS,
        OTHER_NAMES,
        WITHOUT_EFFECT,
        RunSettings,
        loading_types,
        own_types,
    )

    hidden = {"trainer", "seed", *DECIDED_BY_RUN, *OTHER_NAMES, *WITHOUT_EFFECT}
    own = [each for each in fields(RunSettings) if each.name in own_types()]
    own += [each for each in fields(ModelConfig) if each.name in loading_types()]
    for each in [*own, *(each for each in fields(PoiseConfig) if each.init and each.name not in hidden)]:
        default = each.default if each.default_factory is MISSING else each.default_factory()
        default = (EMBEDDED_DEFAULTS | {"logging_steps": "a generation batch"}).get(
            each.name, getattr(default, "value", default)
        )
        sentence = " ".join(str(each.metadata.get("help", "")).split()).split(". ")[0]
        console.print(f"--{each.name.replace('_', '-')} ({default})  {sentence}", soft_wrap=True)
