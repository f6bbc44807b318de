"""The command `poise compare`: arms, seeds, and what came out.

The plan is said before anything is run, and the same command goes on where it was.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from poise.cli.given_settings import extra_options, numbers
from poise.cli.terminal import console, quiet_hosts, said, shown_progress

if TYPE_CHECKING:
    from poise.lab.compare.plan import Comparison
    from poise.lab.compare.schedule import Schedule


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
    completions: Annotated[
        int, typer.Option(help="Of each held-out problem at the end of a run, for pass@k and distinct answers.")
    ] = 16,
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
        from poise.lab.compare.run import check_conditions

        try:
            conditions = {
                "rollouts": rollouts,
                "batch_rollouts": batch_rollouts,
                "batch_updates": batch_updates,
                "evaluations": evaluations,
                "eval_prompts": eval_prompts,
                "completions": completions,
                "settings": extra_options(context.args),
            }
            rates = numbers(learning_rates, name="--learning-rates", such_as="1e-4,3e-4,1e-3")
            comparison = _comparison(conditions, arms, seeds, rates, tuning_seeds, twin)
            if jobs < 1:
                raise ValueError(f"jobs must be 1 or more, got {jobs}")
            check_conditions(comparison.conditions, output)
            schedule = _announced(comparison, output, jobs=jobs)
        except (ValueError, OSError) as error:
            raise said("compare", error, code=2) from error
        print_results(_carried_out(schedule, jobs=jobs), output)


def _comparison(
    conditions: Mapping[str, Any],
    arms: str | None,
    num_seeds: int,
    learning_rates: tuple[float, ...],
    num_tuning_seeds: int,
    twin: str | None,
) -> "Comparison":
    """What the options ask for.

    Raises:
        ValueError: If something is unknown, contradicts itself or cannot be compared.
    """
    from poise.lab.compare.plan import DEFAULT_ARMS, Comparison, Conditions

    names = DEFAULT_ARMS if arms is None else tuple(name.strip() for name in arms.split(",") if name.strip())
    return Comparison(Conditions(**conditions), names, num_seeds, learning_rates, num_tuning_seeds, twin)


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
    )
    return schedule


def _carried_out(schedule: "Schedule", *, jobs: int) -> Mapping[str, Any]:
    """Run what is missing, write the results, and return them."""
    from poise.lab.compare.pages import write_results
    from poise.lab.compare.schedule import RunFailed

    try:
        with shown_progress() as watch:
            schedule.carry_out(jobs=jobs, watch=watch)
    except RunFailed as error:
        raise said("compare", f"{error}; complete runs are kept, the same command goes on", code=1) from error
    except KeyboardInterrupt as error:
        raise said("compare", "interrupted; complete runs are kept, the same command goes on", code=130) from error
    return write_results(schedule)


def print_results(results: Mapping[str, Any], folder: Path) -> None:
    """Final accuracy and time to the reference's, and where the rest is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from poise.lab.compare.pages import shown

    reference = results["reference"]
    table = Table(
        "arm", "final accuracy", f"minus {reference}", "", f"tokens to {results['target']:.2f}", "", box=SIMPLE_HEAD
    )
    for name, arm in results["arms"].items():
        tokens = arm["time_to_target"]["tokens"]
        is_reference = name == reference
        table.add_row(
            name,
            shown(arm["final_accuracy"]),
            "" if is_reference else shown(arm["difference"]),
            arm["verdict"],
            "1" if is_reference else f"{shown(tokens['ratio'])} of {reference}'s",
            f"{tokens['reached']} of {tokens['runs']} reach it",
        )
    console.print(table)
    console.print(
        f"chance alone: {results['twice']['accuracy_floor']:.3f} between two runs of {results['twice']['arm']}",
        f"files: {folder}/compare.md, compare.json, accuracy.svg, runs/",
        sep="\n",
        soft_wrap=True,
    )


def print_arms() -> None:
    """Every arm and what it is."""
    from poise.lab.compare.arms import ARMS

    for arm in ARMS.values():
        console.print(f"{arm.name}: {arm.about}", soft_wrap=True)
