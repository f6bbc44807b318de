"""What is a training run? A policy, a task, a trainer, held-out accuracy before, during and after, and a run directory.

The rule: whatever is measured leaves the training as it would have been, and whatever happened so far is on disk, so
that a run that is stopped early ends as one that was short.
"""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from poise.engines.trl import PoiseConfig, PoiseTrainer
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
    seconds: float = 0.0
    """Since the first step began."""
    reward: float = float("nan")
    """Mean of the newest generation batch."""
    ceiling_share: float = float("nan")
    """Share of the variance that any baseline could remove, removed so far."""
    in_charge: dict[str, str] = field(default_factory=dict)
    """For each domain, the evidence in charge of its baselines; empty for presets that do not choose."""
    before: HeldOutAccuracy | None = None
    held_out: HeldOutAccuracy | None = None
    """The newest; `before` until the first step."""


Watch = Callable[[Progress], None]
Stop = Callable[[], bool]


class TrainingRun:
    """A run that is ready to start: policy and problems are loaded, `config.yaml` is written.

    Args:
        settings: What to train, on what, how.
        directory: An empty run directory.

    Raises:
        ValueError: If settings contradict each other, or ask for what the task or the model does not have.
        FileNotFoundError: If the file of a task is not there.
    """

    def __init__(self, settings: RunSettings, directory: RunDirectory) -> None:
        self.settings, self.directory = settings, directory
        self._created = time.monotonic()
        config = settings.poise_config(directory.checkpoints)
        resolved = settings.resolved(config)
        tokenizer = named_tokenizer(settings.model, chat=settings.chat)
        self.graded_task = GradedTask(
            settings.task_spec,
            tokenizer=tokenizer,
            rewards=settings.reward or (),
            weights=config.reward_weights,
            seconds_a_rollout=settings.seconds_a_rollout,
            chat_options=config.chat_template_kwargs,
        )
        self.trainer = policy_trainer(settings, config, tokenizer, self.graded_task)
        directory.write_config(resolved)

    def train(self, *, watch: Watch = lambda progress: None, stop: Stop = lambda: False) -> dict[str, Any]:
        """Train the policy and leave all of the run in its directory.

        Args:
            watch: Called whenever there is something new to see.
            stop: Asked after every step; when it says True, the run ends as if that step had been the last.

        Returns:
            What is written to `summary.json`.
        """
        progress = Progress(steps=self.settings.steps)
        recorder = RunRecorder(self.trainer, self.graded_task, self.settings, self.directory, progress, watch, stop)
        self.trainer.add_callback(recorder)
        with torch_threads(self.settings.torch_threads), closing(self.graded_task):
            recorder.measure_before()
            self.trainer.train(resume_from_checkpoint=self.trainer.args.resume_from_checkpoint)
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
            "rollouts": progress.rollouts,
            "generated_tokens": progress.generated_tokens,
            "grading": dict(self.graded_task.grader.counts),
            "seconds": round(time.monotonic() - self._created, 2),
            "training_seconds": round(progress.seconds, 2),
            "versions": versions(),
        }
        self.directory.write_summary(summary)
        write_learning_curve(self.directory)
        write_report(self.directory)
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
        self._started = time.monotonic()

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
        self._started = time.monotonic()
        self.progress.activity = "training"
        self.watch(self.progress)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> TrainerControl:
        progress = self.progress
        progress.step = state.global_step
        progress.seconds = time.monotonic() - self._started
        if self.trainer.last_rollouts is not self._seen:
            self._take_rollouts()
        stopping = self.stop()
        every = self.settings.steps_between_checks
        if stopping or progress.step >= progress.steps:
            self.accuracy_after()
            control.should_training_stop = True
            control.should_save = control.should_log = True
        elif every and progress.step % every == 0:
            self._measure(self.problems[: self.settings.check_prompts], "training")
        self.watch(progress)
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
        progress, args = self.progress, self.trainer.args
        progress.activity = activity
        self.watch(progress)
        sampling = Sampling(
            max_completion_length=args.max_completion_length,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
        )
        completions = sampled_completions(
            self.trainer.accelerator.unwrap_model(self.trainer.model),
            self.trainer.processing_class,
            self.graded_task.texts(held_out),
            sampling=sampling,
            seed=HELD_OUT_SEED,
        )
        progress.held_out = accuracy_of_rewards(
            self.graded_task.held_out_rewards(completions, held_out), domains=[problem.domain for problem in held_out]
        )
        self._measured = {
            "held_out/accuracy": progress.held_out.accuracy,
            "held_out/prompts": progress.held_out.num_prompts,
        } | {f"held_out/accuracy/{domain}": share for domain, share in progress.held_out.by_domain.items()}
        return progress.held_out
