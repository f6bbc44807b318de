"""`poise compare`: which arms, on how many seeds, and what came out?

The rule: the plan is said before anything is run, the same command goes on where it was, and what is wrong with the
input is one sentence and exit code 2.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from poise.cli.given_settings import extra_options
from poise.cli.terminal import clock, console, quiet_hosts

if TYPE_CHECKING:
    from poise.lab.compare.plan import Comparison
    from poise.lab.compare.schedule import RunProgress, Schedule


class CompareCommand(TyperCommand):
    """A command that takes options beyond its own."""

    context_class = typer.Context  # what `compare` says it takes; typer itself hands over the parent class


def add_to(app: typer.Typer) -> None:
    """Add the command `compare`."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("compare", cls=CompareCommand, context_settings=settings)(compare)


def compare(
    context: typer.Context,
    arms: Annotated[
        str | None, typer.Option(help="Names, such as poise,rloo,grpo. Default: the six of the study.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="On which arms are compared; 2 or more.")] = 5,
    rollouts: Annotated[int, typer.Option(help="Sampled by each run, refills included.")] = 10_240,
    batch_rollouts: Annotated[int, typer.Option(help="Of a generation batch; whole groups of every arm.")] = 128,
    batch_updates: Annotated[int, typer.Option(help="Updates made from a generation batch.")] = 2,
    evaluations: Annotated[int, typer.Option(help="Of held-out accuracy, after the first one.")] = 20,
    eval_prompts: Annotated[int, typer.Option(help="Held-out problems, the same ones each time.")] = 300,
    learning_rates: Annotated[str, typer.Option(help="To choose from, for each arm.")] = "1e-4,3e-4,1e-3",
    tuning_seeds: Annotated[
        int, typer.Option(help="Seeds on which learning rates are chosen; 0 with a single rate.")
    ] = 2,
    twin: Annotated[str | None, typer.Option(help="Arm that is run twice, to see chance. Default: the first.")] = None,
    gradient_every: Annotated[
        int, typer.Option(help="Evaluations from one measurement of the gradient's variance to the next; 0 for none.")
    ] = 0,
    gradient_prompts: Annotated[int, typer.Option(help="Prompts that gradients are taken of.")] = 64,
    jobs: Annotated[int, typer.Option(help="Runs side by side. They disturb each other's times.")] = 1,
    output: Annotated[Path, typer.Option(help="The folder of the comparison.")] = Path("runs/compare"),
    list_arms: Annotated[bool, typer.Option("--list-arms", help="List every arm and leave.")] = False,
) -> None:
    """Train several arms on the same prompts, rollouts and updates a step, and say what may be concluded.

    Other options are those of `poise train` (--model, --task, --temperature, ...) and hold for all arms. After an
    interruption the same command goes on; more arms or seeds may be added to a folder.
    """
    with quiet_hosts():
        if list_arms:
            return print_arms()
        try:
            shared = extra_options(context.args)
            comparison = _comparison(
                arms,
                seeds=seeds,
                learning_rates=learning_rates,
                tuning_seeds=tuning_seeds,
                twin=twin,
                rollouts=rollouts,
                batch_rollouts=batch_rollouts,
                batch_updates=batch_updates,
                evaluations=evaluations,
                eval_prompts=eval_prompts,
                gradient_every=gradient_every,
                gradient_prompts=gradient_prompts,
                settings=shared,
            )
            if jobs < 1:
                raise ValueError(f"jobs must be 1 or more, got {jobs}")
            schedule = _announced(comparison, output, jobs=jobs)
        except (ValueError, FileExistsError, FileNotFoundError) as error:
            typer.echo(f"poise compare: {error}", err=True)
            raise typer.Exit(2) from error
        results = _carried_out(schedule, jobs=jobs)
        print_results(results, output)


def _comparison(arms: str | None, *, learning_rates: str, **given: Any) -> "Comparison":
    """What the options ask for.

    Raises:
        ValueError: If something is unknown, contradicts itself or cannot be compared.
    """
    from poise.lab.compare.plan import DEFAULT_ARMS, Comparison, Conditions

    seeds, tuning_seeds, twin = (given.pop(name) for name in ("seeds", "tuning_seeds", "twin"))
    names = DEFAULT_ARMS if arms is None else tuple(name.strip() for name in arms.split(",") if name.strip())
    try:
        rates = tuple(float(rate) for rate in learning_rates.split(","))
    except ValueError as error:
        raise ValueError(f"learning rates are numbers such as 1e-4,3e-4,1e-3, got {learning_rates!r}") from error
    return Comparison(
        Conditions(**given), names, num_seeds=seeds, learning_rates=rates, num_tuning_seeds=tuning_seeds, twin=twin
    )


def _announced(comparison: "Comparison", folder: Path, *, jobs: int) -> "Schedule":
    """The schedule, after its plan was printed."""
    from poise.lab.compare.schedule import Schedule

    schedule = Schedule(folder, comparison)
    conditions = comparison.conditions
    tuning = len(comparison.arms) * len(comparison.learning_rates) * comparison.num_tuning_seeds
    compared = (len(comparison.arms) + 1) * comparison.num_seeds
    order = "one after another" if jobs == 1 else f"{jobs} side by side, which disturbs their times"
    console.print(
        f"poise: comparison of {', '.join(comparison.arms)}",
        f"{conditions.rollouts} rollouts a run, {conditions.batch_rollouts} in a generation batch, "
        f"{conditions.batch_updates} updates each; {conditions.evaluations} evaluations on "
        f"{conditions.eval_prompts} prompts",
        f"{tuning} runs to choose learning rates (more where the best one lies at an edge), then {compared} on "
        f"{comparison.num_seeds} seeds, {comparison.twin_arm} twice",
        f"{len(schedule.missing())} are still to do, {order}",
        f"results go to {folder}; the same command goes on after an interruption",
        sep="\n",
        soft_wrap=True,
        markup=False,
    )
    return schedule


def _carried_out(schedule: "Schedule", *, jobs: int) -> Mapping[str, Any]:
    """Run what is missing, write the results, and return them."""
    from poise.lab.compare.record import write_results
    from poise.lab.compare.schedule import RunFailed

    try:
        schedule.carry_out(jobs=jobs, watch=ProgressLines())
    except RunFailed as error:
        typer.echo(f"poise compare: {error}; complete runs are kept, the same command goes on", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("poise compare: interrupted; complete runs are kept, the same command goes on", err=True)
        raise typer.Exit(130) from error
    return write_results(schedule)


class ProgressLines:
    """Prints a line at every quarter of a run and when it is complete."""

    def __init__(self) -> None:
        self._shown: dict[str, int] = {}

    def __call__(self, progress: "RunProgress") -> None:
        """Print a line if one is due."""
        part = 5 if progress.finished else int(4 * progress.share)
        if self._shown.get(progress.run.name) == part:
            return
        self._shown[progress.run.name] = part
        where = "complete, final" if progress.finished else f"{progress.share:.0%},"
        left = "" if progress.seconds_left is None else f", about {clock(progress.seconds_left)} left"
        console.print(
            f"{progress.done} of {progress.least} runs complete{left}  {progress.run.name}: "
            f"{where} held-out {progress.accuracy:.2f}",
            soft_wrap=True,
            markup=False,
        )


def print_results(results: Mapping[str, Any], folder: Path) -> None:
    """Final accuracy and time to the reference's, and where the rest is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    reference = results["reference"]
    table = Table(
        "arm", "final accuracy", f"minus {reference}", "", f"tokens to {results['target']:.2f}", "", box=SIMPLE_HEAD
    )
    for name, arm in results["arms"].items():
        tokens = arm["time_to_target"]["tokens"]
        is_reference = name == reference
        table.add_row(
            name,
            _shown(arm["final_accuracy"]),
            "" if is_reference else _shown(arm["difference"]),
            arm["verdict"],
            "1" if is_reference else f"{_shown(tokens['ratio'])} of {reference}'s",
            f"{tokens['reached']} of {tokens['runs']} reach it",
        )
    console.print(table)
    console.print(
        f"chance alone: {results['twice']['accuracy_floor']:.3f} between two runs of {results['twice']['arm']}",
        f"files: {folder}/compare.md, compare.json, accuracy.svg, runs/",
        sep="\n",
        soft_wrap=True,
        markup=False,
    )


def _shown(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def print_arms() -> None:
    """Every arm and what it is."""
    from poise.lab.compare.arms import ARMS

    for arm in ARMS.values():
        console.print(f"{arm.name}: {arm.about}", markup=False, soft_wrap=True)
