"""What is a training run? A policy, a task, a trainer, held-out accuracy before, during and after, and a run directory.

The rule: whatever is measured leaves the training as it would have been, and whatever happened so far is on disk. So a
run that is stopped early ends as one that was short, and one that is started again, with the same settings in the same
folder, goes on from its newest whole checkpoint and ends as if it had never been stopped.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from poise.doctor.watch import RunWatch
from poise.engines.trl import PoiseConfig, PoiseTrainer
from poise.engines.trl.checkpoints import checkpoint_step, newest_whole_checkpoint, read_beside
from poise.evaluate import HeldOutAccuracy, Sampling, accuracy_of_rewards, sampled_completions
from poise.models.named import named_model, named_tokenizer
from poise.report.learning_curve import write_learning_curve
from poise.report.page import write_report
from poise.rewards.graded_task import HELD_OUT_SEED, GradedTask
from poise.run_directory import RunDirectory
from poise.settings import RunSettings
from poise.tasks.problem import Problem, prompt_text

MOST_TRAINING_PROMPTS = 100_000
"""Longer runs see problems again."""


@dataclass
class Progress:
    """Where a run stands. One object a run, changed as the run goes on."""

    steps: int
    """Steps that the run will take."""
    activity: str = ""
    step: int = 0
    rollouts: int = 0
    generated_tokens: int = 0
    skipped_steps: int = 0
    """Steps whose numbers were not finite."""
    seconds: float = 0.0
    """Since the first step began, without the time in which the run was stopped."""
    earlier_seconds: float = 0.0
    """Those of them that were spent in earlier sittings."""
    reward: float = float("nan")
    """Mean of the newest generation batch."""
    ceiling_share: float = float("nan")
    """Share of the variance that any baseline could remove, removed so far."""
    in_charge: dict[str, str] = field(default_factory=dict)
    """For each domain, the evidence in charge of its baselines; empty for presets that do not choose."""
    before: HeldOutAccuracy | None = None
    held_out: HeldOutAccuracy | None = None
    """The newest; `before` until the first step."""


KEPT = ("step", "rollouts", "generated_tokens", "skipped_steps", "seconds", "reward", "ceiling_share", "in_charge")
"""Fields of `Progress` that a run goes on with."""

Watch = Callable[[Progress], None]
Stop = Callable[[], bool]


class TrainingRun:
    """A run that is ready to start, or to go on: policy and problems are loaded, `config.yaml` is written.

    Args:
        settings: What to train, on what, how.
        directory: A new run directory, or one with a run of the same settings.

    Attributes:
        checkpoint: What it goes on from; None where it begins.

    Raises:
        ValueError: If settings contradict each other, differ from those of the run in the directory, or ask for what
            the task or the model does not have.
        FileExistsError: If the directory holds something else.
        FileNotFoundError: If the file of a task is not there.
    """

    def __init__(self, settings: RunSettings, directory: RunDirectory) -> None:
        self.settings, self.directory = settings, directory
        self._created = time.monotonic()
        config = settings.poise_config(directory.checkpoints)
        directory.take(settings.resolved(config))
        tokenizer, self.graded_task = tokenizer_and_task(settings, config, ungradable=directory.ungradable)
        self.graded_task.check_gold_answers()
        self.trainer = policy_trainer(settings, config, tokenizer, self.graded_task)
        self.checkpoint = newest_whole_checkpoint(directory.checkpoints)

    def train(self, *, watch: Watch = lambda progress: None, stop: Stop = lambda: False) -> dict[str, Any]:
        """Train the policy and leave all of the run in its directory.

        Args:
            watch: Called whenever there is something new to see.
            stop: Asked after every step; when it says True, the run ends, as if that step had been the last, as soon as
                all sampled rollouts are trained on: its checkpoint is one that it can go on from exactly.

        Returns:
            What is written to `summary.json`.

        Raises:
            CheckpointError: If the checkpoint is of another model, or not whole.
            BlockingIOError: If another process is training in the directory.
            OSError: If something cannot be written; the last checkpoint is whole.
            FloatingPointError: If many steps in a row had numbers that are not finite.
        """
        with self.directory.held():
            return self._train(watch, stop)

    def _train(self, watch: Watch, stop: Stop) -> dict[str, Any]:
        progress = Progress(steps=self.settings.steps)
        alarms = RunWatch()
        self.trainer.add_callback(alarms)

        def stopped() -> bool:
            return stop() or bool(alarms.reason)

        recorder = RunRecorder(self.trainer, self.graded_task, self.settings, self.directory, progress, watch, stopped)
        self.trainer.add_callback(recorder)
        self.trainer.saved_beside = recorder.state
        self.trainer.finite_steps.file = self.directory.first_bad_step
        self.directory.cut_back(checkpoint_step(self.checkpoint) if self.checkpoint else -1)
        with torch_threads(self.settings.torch_threads), closing(self.graded_task):
            if self.checkpoint:
                recorder.restore(read_beside(self.checkpoint))
            else:
                recorder.measure_before()
            if progress.step < progress.steps:
                self.trainer.train(self.checkpoint or self.trainer.args.resume_from_checkpoint)
            after = recorder.accuracy_after()
        assert progress.before is not None
        summary = {
            "accuracy_before": progress.before.accuracy,
            "accuracy_after": after.accuracy,
            "accuracy_before_by_domain": progress.before.by_domain,
            "accuracy_after_by_domain": after.by_domain,
            "held_out_prompts": after.num_prompts,
            "preset": self.trainer.args.preset,
            "seed": self.settings.seed,
            "steps": progress.step,
            "stopped_early": progress.step < self.settings.steps,
            "skipped_steps": progress.skipped_steps,
            "stopped_because": alarms.reason or None,
            "rollouts": progress.rollouts,
            "generated_tokens": progress.generated_tokens,
            "grading": dict(self.graded_task.grader.counts),
            "seconds": round(progress.earlier_seconds + time.monotonic() - self._created, 2),
            "training_seconds": round(progress.seconds, 2),
            "versions": versions(),
        }
        self.directory.write_summary(summary)
        write_learning_curve(self.directory)
        write_report(self.directory)  # the last: with it the run is done
        return summary


@contextmanager
def torch_threads(num: int | None) -> Iterator[None]:
    """Let torch use that many threads inside; None changes nothing."""
    earlier = torch.get_num_threads()
    torch.set_num_threads(earlier if num is None else num)
    try:
        yield
    finally:
        torch.set_num_threads(earlier)


def tokenizer_and_task(
    settings: RunSettings, config: GRPOConfig, *, ungradable: Path | None = None
) -> tuple[Any, GradedTask]:
    """What a run asks by and what it asks and grades, as its settings have it; the task is to be closed.

    Args:
        settings: Of the run.
        config: Of its trainer.
        ungradable: File for what cannot be graded in training; None for none.
    """
    tokenizer = named_tokenizer(settings.model, chat=settings.chat)
    task = GradedTask(
        settings.task_spec,
        tokenizer=tokenizer,
        rewards=settings.reward or (),
        weights=config.reward_weights,
        seconds_a_rollout=settings.seconds_a_rollout,
        mebibytes_a_rollout=settings.mebibytes_a_rollout,
        on_verifier_timeout=settings.on_verifier_timeout,
        chat_options=config.chat_template_kwargs,
        ungradable=ungradable,
    )
    return tokenizer, task


def policy_accuracy(
    trainer: GRPOTrainer, graded_task: GradedTask, problems: list[Problem], *, batch_size: int = 256
) -> HeldOutAccuracy:
    """How often a trainer's policy is right, sampled as in training: one completion a problem, always the same draw.

    Args:
        trainer: Whose policy.
        graded_task: Asks and grades.
        problems: What to solve.
        batch_size: Prompts that are completed side by side.
    """
    args = trainer.args
    sampling = Sampling(
        max_completion_length=args.max_completion_length,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
    )
    completions = sampled_completions(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        graded_task.texts(problems),
        sampling=sampling,
        seed=HELD_OUT_SEED,
        batch_size=batch_size,
    )
    rewards = graded_task.held_out_rewards(completions, problems)
    return accuracy_of_rewards(rewards, domains=[problem.domain for problem in problems])


def policy_trainer(settings: RunSettings, config: PoiseConfig, tokenizer: Any, graded_task: GradedTask) -> PoiseTrainer:
    """The trainer of a run: its policy, problems and rewards."""
    problems = training_problems(settings, config, graded_task)
    options = dict(config.model_init_kwargs or {})
    config.model_init_kwargs = None  # they are spent here: TRL takes them with a path only
    trainer = PoiseTrainer(
        named_model(settings.model, **options),
        graded_task.reward_functions,
        config,
        train_dataset=problems,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_problems(settings: RunSettings, config: PoiseConfig, graded_task: GradedTask) -> Dataset:
    """As many problems as the run has use for, or as the task has.

    Raises:
        ValueError: If they do not fill one generation batch.
    """
    batches = -(-settings.steps * config.gradient_accumulation_steps // config.steps_per_generation)
    of_batch = config.generation_batch_size // config.num_generations
    problems = graded_task.training_data(min(batches * of_batch, MOST_TRAINING_PROMPTS), seed=settings.seed)
    if len(problems) < of_batch:
        raise ValueError(
            f"a generation batch takes {of_batch} prompts and the task has {len(problems)} to train on: lower "
            "per_device_train_batch_size or steps_per_generation"
        )
    return problems


def versions() -> dict[str, str]:
    """Of what the numbers of a run depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "numpy")}
    return {"poise": version("poise-rlvr"), "python": platform.python_version()} | packages


class RunRecorder(TrainerCallback):  # type: ignore[misc]
    """Measures and writes while a trainer trains.

    Order within a step: the host's update; then `on_step_end` writes the rollouts of a new generation batch and
    measures held-out accuracy where it is due; then `on_log` writes the line of metrics, with that accuracy in it.
    """

    def __init__(
        self,
        trainer: PoiseTrainer,
        graded_task: GradedTask,
        settings: RunSettings,
        directory: RunDirectory,
        progress: Progress,
        watch: Watch,
        stop: Stop,
    ) -> None:
        self.trainer, self.graded_task, self.settings, self.directory = trainer, graded_task, settings, directory
        self.progress, self.watch, self.stop = progress, watch, stop
        self.problems = graded_task.held_out(max(settings.eval_prompts, settings.check_prompts))
        self._seen: dict[str, Any] | None = None
        self._measured: dict[str, Any] = {}
        self._final: HeldOutAccuracy | None = None
        self._stopping = False
        self._started = time.monotonic()

    def state(self) -> dict[str, Any]:
        """All that the rest of the run needs to know of it so far, in plain values."""
        known = {name: getattr(self.progress, name) for name in ("before", "held_out")} | {"after": self._final}
        plain = {name: getattr(self.progress, name) for name in KEPT}
        grading = dict(self.graded_task.grader.counts)
        return plain | {name: each and asdict(each) for name, each in known.items()} | {"grading": grading}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name in KEPT:
            setattr(self.progress, name, state[name])
        self.progress.earlier_seconds = state["seconds"]
        before, held_out, after = (
            HeldOutAccuracy(**state[name]) if state[name] else None for name in ("before", "held_out", "after")
        )
        self.progress.before, self.progress.held_out, self._final = before, held_out, after
        self.graded_task.grader.counts.update(state["grading"])

    def measure_before(self) -> None:
        """Held-out accuracy of the untrained policy, as the line of step 0."""
        self.progress.before = self._measure(self.problems[: self.settings.eval_prompts], "measuring before training")
        self.directory.append_metrics({"step": 0, "rollouts": 0, "seconds": 0.0} | self._measured)
        self._measured = {}

    def accuracy_after(self) -> HeldOutAccuracy:
        """Held-out accuracy after the last step; measured now if the training ended without one."""
        if self._final is None:
            self._final = self._measure(self.problems[: self.settings.eval_prompts], "measuring after training")
        return self._final

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        self._started = time.monotonic() - self.progress.earlier_seconds
        self.progress.activity = "training"
        self.watch(self.progress)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> TrainerControl:
        progress = self.progress
        progress.step = state.global_step
        progress.skipped_steps += self.trainer.finite_steps.skipped
        progress.seconds = time.monotonic() - self._started
        if self.trainer.last_rollouts is not self._seen:
            self._take_rollouts()
        every = self.settings.steps_between_checks
        done = progress.step >= progress.steps
        if done:
            self.accuracy_after()
        elif every and progress.step % every == 0:
            self._measure(self.problems[: self.settings.check_prompts], "training")
        if done:
            control.should_training_stop = control.should_save = True
        elif self.stop() and progress.step % self.trainer.args.steps_between_generations == 0:
            self._stopping = control.should_save = True
        self.watch(progress)
        return self._with_line(control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> TrainerControl:
        # Only now: a checkpoint holds the control, and is the same whether or not the run is stopped there.
        control.should_training_stop = control.should_training_stop or self._stopping
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> TrainerControl:
        return self._with_line(control)

    def _with_line(self, control: TrainerControl) -> TrainerControl:
        """Whatever a checkpoint follows on is logged before it is made: a checkpoint holds no half-made averages."""
        control.should_log = control.should_log or control.should_save
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **named: Any,
    ) -> None:
        progress = self.progress
        if not logs or "train_runtime" in logs:  # the host's own summary
            return
        line: dict[str, Any] = {"step": state.global_step, "rollouts": progress.rollouts}
        line["seconds"] = round(progress.seconds, 3)
        if progress.in_charge:
            line["in_charge"] = dict(progress.in_charge)
        self.directory.append_metrics(line | logs | self._measured)
        self._measured = {}

    def _take_rollouts(self) -> None:
        rollouts = self._seen = self.trainer.last_rollouts
        assert rollouts is not None
        progress, step = self.progress, self.trainer.last_step
        self.directory.write_rollouts(
            rollouts["step"] + 1,
            prompts=[prompt_text(prompt) for prompt in rollouts["prompts"]],
            **{
                name: rollouts[name]
                for name in ("completions", "domains", "rewards", "values", "baselines", "advantages")
            },
        )
        gradable = [reward for reward in rollouts["rewards"] if reward == reward]
        progress.rollouts += len(rollouts["rewards"])
        progress.generated_tokens += int(sum(rollouts["completion_lengths"]))
        progress.reward = sum(gradable) / len(gradable) if gradable else float("nan")
        if step is not None:
            progress.ceiling_share = step.metrics.get("poise/ceiling_share", float("nan"))
            progress.in_charge = step.in_charge

    def _measure(self, held_out: list[Problem], activity: str) -> HeldOutAccuracy:
        progress = self.progress
        progress.activity = activity
        self.watch(progress)
        progress.held_out = policy_accuracy(self.trainer, self.graded_task, held_out)
        self._measured = {
            "held_out/accuracy": progress.held_out.accuracy,
            "held_out/prompts": progress.held_out.num_prompts,
        } | {f"held_out/accuracy/{domain}": share for domain, share in progress.held_out.by_domain.items()}
        return progress.held_out
