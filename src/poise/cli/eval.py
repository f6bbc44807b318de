"""`poise eval`: how good a model is on a task.

What is drawn is kept as it comes, and the same command goes on. What is wrong with the input is one sentence
and exit code 2.
"""

import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.given_settings import config_file
from poise.cli.terminal import print_note, print_text, quiet_hosts, said, shown_progress

if TYPE_CHECKING:
    from poise.tasks.problem import Problem
    from poise.tasks.task import Task


def add_to(app: typer.Typer) -> None:
    """Add the command `eval`."""
    app.command("eval")(evaluate)


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(help="The folder of a run: its newest checkpoint, on its task.", show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="embedded, reasoning-gym:NAME, a file or data set, as in training; or math sets such as aime24,amc23."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="'embedded' (default), a folder with a checkpoint, an adapter or a run, or a name."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:FUNCTION", help="Measure these rewards in place of the task's verifier."),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Completions a problem.")] = 8,
    prompts: Annotated[int, typer.Option(help="Problems; of each math set, at most so many.")] = 200,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Share of probability that is sampled from.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Tokens that are sampled from; 0 for all.")] = 0,
    max_completion_length: Annotated[
        int | None, typer.Option(help="Tokens. Default: 64 for embedded tasks, else 2048.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of problems and sampling.")] = 1,
    split: Annotated[str, typer.Option(help="'heldout', 'train', or 'all' for data sets. Math sets: all.")] = "heldout",
    data_dir: Annotated[Path, typer.Option(help="Where the files of math sets lie.")] = Path("data"),
    instruction: Annotated[
        str | None, typer.Option(help="What stands after every problem of a math set. Default: as released.")
    ] = None,
    chat_template_kwargs: Annotated[
        str, typer.Option(help="Options of the chat template, such as {enable_thinking: false}.")
    ] = "{}",
    end_of_thinking: Annotated[
        str | None, typer.Option(help="The mark that ends reasoning. Default: the run's own, else </think>.")
    ] = None,
    chat: Annotated[bool, typer.Option(help="Ask by the tokenizer's chat template, if it has one.")] = True,
    batch_size: Annotated[int, typer.Option(help="Completions drawn side by side.")] = 256,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings along.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder of this evaluation. Default: evaluations/MODEL/TASK.")
    ] = None,
) -> None:
    """Measure avg@k and pass@k of a model, with 95 % intervals over problems, in all and for each domain.

    Completions are kept as they come: after an interruption the same command goes on where it was.
    """
    with quiet_hosts():
        try:
            folder, results_md = _evaluated(
                *model_and_task(run, model, task),
                reward=reward or [],
                k=k,
                prompts=prompts,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_completion_length=max_completion_length,
                seed=seed,
                split=split,
                data_dir=data_dir,
                instruction=instruction,
                chat_template_kwargs=chat_template_kwargs,
                end_of_thinking=end_of_thinking or _run_mark(run or Path(model or "")),
                chat=chat,
                batch_size=batch_size,
                trust_remote_code=trust_remote_code,
                output=output,
            )
        except (ValueError, OSError) as error:
            raise said("eval", error, code=2) from error
        except KeyboardInterrupt as error:
            raise said("eval", "interrupted; the same command goes on from here", code=130) from error
    print_text(results_md)
    print_text(f"files: {folder}/results.json, results.md, completions/")


def _run_mark(folder: Path) -> str:
    """The end of thinking of the run in a folder; the usual one where there is no run, or none of its own."""
    from poise.tasks.embedded import END_OF_THINKING

    settings = config_file(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    return str(settings.get("end_of_thinking") or END_OF_THINKING)


def model_and_task(run: Path | None, model: str | None, task: str | None) -> tuple[str, str]:
    """The model and the task to measure: those of a run's folder where one is given.

    Raises:
        ValueError: If a run and a model are given, or the run has no whole checkpoint.
        FileNotFoundError: If there is no run in the folder.
    """
    if run is not None and model is not None:
        raise ValueError(f"the run {run} and --model {model} are two models: give one of them")
    folder = run or Path(model or "")
    if run is None and not ((folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()):
        return model or "embedded", task or "embedded"
    from poise.engines.trl.checkpoints import newest_whole_checkpoint

    settings = config_file(folder / "config.yaml")
    checkpoint = newest_whole_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        raise ValueError(f"the run {folder} has no whole checkpoint to measure")
    families = settings.get("families")
    of_run = f"embedded?families={','.join(families)}" if families else str(settings.get("task", "embedded"))
    return str(checkpoint), task or of_run


def _evaluated(model: str, task: str, *, output: Path | None, split: str, **options: Any) -> tuple[Path, str]:
    """The folder of the evaluation and its results as markdown."""
    import torch

    from poise.evaluate.evaluation import (
        Evaluation,
        EvaluationSettings,
        problems_fingerprint,
        weights_fingerprint,
    )
    from poise.evaluate.sampling import SampledCompletion, measured_completions
    from poise.models.generation import changing_options, completion_ends
    from poise.models.named import named_model, named_tokenizer
    from poise.rewards import Grader
    from poise.tasks.embedded import THINK
    from poise.tasks.graded_task import GradedTask
    from poise.tasks.verifiers import opening_mark

    wanted: int = options["prompts"]
    if wanted < 1:
        raise ValueError(f"prompts must be 1 or more, got {wanted}")
    data_dir, instruction = options["data_dir"], options["instruction"]
    drawn_from, source_split = named_task(
        task, data_dir=data_dir, instruction=instruction, split=split, needs_answers=not options["reward"]
    )
    problems = drawn_from.problems(wanted, seed=options["seed"], split=source_split)
    if not problems:
        raise ValueError(f"task {task!r} has no problems in its split {source_split!r}")
    trusted = options["trust_remote_code"]
    tokenizer = named_tokenizer(model, chat=options["chat"], trust_remote_code=trusted)
    policy = named_model(model, trust_remote_code=trusted, **({"dtype": "auto"} if torch.cuda.is_available() else {}))
    chat_options = chat_template_options(options["chat_template_kwargs"])
    prompts = [prompt_text(tokenizer, problem, chat_options=chat_options) for problem in problems]
    length = options["max_completion_length"]
    settings = EvaluationSettings(
        model=model,
        weights=weights_fingerprint(policy),
        task=task,
        problems=problems_fingerprint(problems, prompts),
        num_prompts=len(problems),
        ends=completion_ends(policy, tokenizer),
        max_completion_length=(64 if task.startswith("embedded") else 2048) if length is None else length,
        **{name: options[name] for name in ("k", "temperature", "top_p", "top_k", "seed", "batch_size")},
        reward=list(options["reward"]),
    )
    folder = output or Path("evaluations") / folder_name(model) / folder_name(task)
    rewards = options["reward"]  # refused before anything is written
    graded = GradedTask(task, tokenizer=tokenizer, rewards=rewards, chat_options=chat_options) if rewards else None
    evaluation = Evaluation(folder, settings=settings, problems=problems, prompts=prompts)
    if len(problems) < wanted:
        print_note(f"the task has {len(problems)} problems, not {wanted}")
    if own := changing_options({}, policy.generation_config.to_dict()):
        told = ", ".join(f"{name} {value}" for name, value in own.items())
        print_note(f"the model's generation_config.json asks for {told}, which is not obeyed: options here decide")
    policy = policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def complete(texts: list[str], *, seed: int) -> list[SampledCompletion]:
        return measured_completions(
            policy, tokenizer, texts, sampling=settings.sampling, seed=seed, batch_size=settings.batch_size
        )

    if graded is not None:
        return folder, _rewarded(evaluation, complete, graded)
    end = options["end_of_thinking"]
    opening = THINK if prompts[0].rstrip().endswith((THINK, opening_mark(end))) else ""
    with Grader(opening=opening, end_of_thinking=end) as grader, shown_progress() as show:
        evaluation.run(
            complete, grader.rewards, watch=lambda num_done: show("batches", num_done, evaluation.num_batches)
        )
    return folder, (folder / "results.md").read_text(encoding="utf-8")


def _rewarded(evaluation: Any, complete: Any, graded: Any) -> str:
    """The results of an evaluation by the user's reward functions, as markdown."""
    with closing(graded), shown_progress() as show:
        evaluation.run(
            complete, graded.user_rewards, watch=lambda num_done: show("batches", num_done, evaluation.num_batches)
        )
    return (evaluation.path / "results.md").read_text(encoding="utf-8")


def named_task(
    spec: str, *, data_dir: Path, instruction: str | None, split: str, needs_answers: bool = True
) -> tuple["Task", str]:
    """The task that a text names, among them the math sets, and the split of it to draw from.

    Raises:
        ValueError: If there is no such task.
        FileNotFoundError: If a file is not there.
    """
    from poise.evaluate.math_sets import INSTRUCTION, is_math_set, math_set_task
    from poise.tasks.task import task_named

    if is_math_set(spec):
        after = INSTRUCTION if instruction is None else instruction
        return math_set_task(spec, data_dir=data_dir, instruction=after), "all"
    if instruction is not None:
        raise ValueError("--instruction is for math sets: other tasks take it as ?instruction=TEXT")
    return task_named(spec, needs_answers=needs_answers), split


def prompt_text(tokenizer: Any, problem: "Problem", *, chat_options: Mapping[str, Any]) -> str:
    """What the policy gets to see: the question as a chat where the tokenizer has a template, else the plain text.

    A tokenizer that puts a mark at the beginning of a text does so here too, as in training.
    """
    if not tokenizer.chat_template:
        begins = tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        return (tokenizer.bos_token if begins else "") + problem.prompt
    text: str = tokenizer.apply_chat_template(
        problem.asked(as_chat=True), tokenize=False, add_generation_prompt=True, **chat_options
    )
    return text


def chat_template_options(text: str) -> dict[str, Any]:
    """Options for a chat template, from YAML or JSON.

    Raises:
        ValueError: If the text is no mapping.
    """
    import yaml

    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"--chat-template-kwargs needs a mapping such as {{enable_thinking: false}}, got {text!r}")
    return options


def folder_name(text: str) -> str:
    """A name for a folder: of a checkpoint of a run, the run and the checkpoint."""
    parts = [part for part in text.split("/") if part not in ("", ".", "..", "runs", "checkpoints")]
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", "-".join(parts[-2:])).strip("-.") or "model"
