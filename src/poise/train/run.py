"""One training run: a policy, a task, a trainer, held-out accuracy before, during and after, and a run directory.

A run that is stopped early ends as one that was short, and one that is started again, with the same settings in the
same folder, goes on from its newest whole checkpoint and ends as if it had never been stopped. Its folder is locked
before anything in it is looked at.
"""

import logging
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import PrinterCallback
from trl import GRPOConfig, get_peft_config, get_quantization_config

from poise.engines.trl import PoiseConfig, PoiseTrainer
from poise.engines.trl.checkpoints import checkpoint_step, newest_whole_checkpoint, read_beside
from poise.models.named import check_trainable, named_model, named_tokenizer
from poise.report.learning_curve import write_learning_curve
from poise.report.page import write_report
from poise.storage.rollouts import finite
from poise.storage.run_directory import RunDirectory
from poise.tasks.embedded import END_OF_THINKING
from poise.tasks.graded_task import GradedTask
from poise.train.alarms import RunWatch
from poise.train.config import RunSettings
from poise.train.recorder import Progress, RunRecorder, Stop, Watch
from poise.train.trackers import Trackers, check_trackers

logger = logging.getLogger(__name__)

MOST_TRAINING_PROMPTS = 100_000
"""Longer runs see problems again."""


class TrainingRun:
    """A run that is ready to start, or to go on: policy and problems are loaded, `config.yaml` is written.

    Args:
        settings: What to train, on what, how.
        directory: A new run directory, or one with a run of the same settings.

    Attributes:
        checkpoint: What it goes on from; None where it begins.
        trackers: Of the run that was trained; None before.

    Raises:
        ValueError: If settings contradict each other, differ from those of the run in the directory, or ask for what
            the task or the model does not have.
        FileExistsError: If the directory holds something else.
        FileNotFoundError: If the file of a task is not there.
        BlockingIOError: If another process is training in the directory.
    """

    def __init__(self, settings: RunSettings, directory: RunDirectory, config: PoiseConfig | None = None) -> None:
        self.settings, self.directory = settings, directory
        self._created = time.monotonic()
        self.config = settings.poise_config(directory.checkpoints) if config is None else config
        self.config.output_dir = str(directory.checkpoints)
        self.checkpoint: Path | None = None
        self.trackers: Trackers | None = None
        with ExitStack() as stack:
            stack.enter_context(directory.held())
            try:
                directory.take(settings.resolved(self.config))
                self.is_done = directory.is_done and directory.read_summary()["steps"] >= settings.steps
                if not self.is_done:
                    self._load()
            except (ValueError, OSError):
                directory.discard_if_unused()  # a run that cannot start leaves no folder
                raise
            self._hold = stack.pop_all()

    def _load(self) -> None:
        directory = self.directory
        check_trackers(self.config.report_to)
        tokenizer, self.graded_task = tokenizer_and_task(self.settings, self.config, ungradable=directory.ungradable)
        self.graded_task.check_gold_answers()
        self.trainer = policy_trainer(self.settings, self.config, tokenizer, self.graded_task)
        check_trainable(self.trainer.model)
        self.checkpoint = newest_whole_checkpoint(directory.checkpoints)
        self._beside = read_beside(self.checkpoint) if self.checkpoint else {}
        if self.checkpoint is None and directory.metrics.stat().st_size:
            logger.warning("%s has no whole checkpoint to go on from: the run starts over", directory.checkpoints)

    def train(self, *, watch: Watch = lambda progress: None, stop: Stop = lambda: False) -> dict[str, Any]:
        """Train the policy and leave all of the run in its directory.

        Args:
            watch: Called whenever there is something new to see.
            stop: Asked after every step; when it says True, the run ends, as if that step had been the last, as soon as
                all sampled rollouts are trained on: its checkpoint is one that it can go on from exactly.

        Returns:
            What is written to `summary.json`; of a run that is done, what stands there.

        Raises:
            CheckpointError: If the checkpoint is of another model, or not whole.
            OSError: If something cannot be written; the last checkpoint is whole.
            FloatingPointError: If many steps in a row had numbers that are not finite.
        """
        with self._hold:
            return self.directory.read_summary() if self.is_done else self._train(watch, stop)

    def _train(self, watch: Watch, stop: Stop) -> dict[str, Any]:
        progress = Progress(steps=self.settings.steps)
        alarms = RunWatch()
        self.trainer.add_callback(alarms)

        def stopped() -> bool:
            return stop() or bool(alarms.reason)

        recorder = RunRecorder(self.trainer, self.graded_task, self.settings, self.directory, progress, watch, stopped)
        self.trainer.add_callback(recorder)
        self.trackers = Trackers(
            self.trainer, self.directory.path, lambda: progress.before.metrics() if progress.before else {}
        )
        self.trainer.saved_beside = recorder.state
        self.trainer.finite_steps.file = self.directory.first_bad_step
        self.directory.cut_back(checkpoint_step(self.checkpoint) if self.checkpoint else -1)
        with torch_threads(self.settings.torch_threads), closing(self.graded_task):
            if self.checkpoint:
                recorder.restore(self._beside)
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
            "reward_before": progress.before.reward,
            "reward_after": after.reward,
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
        summary = finite(summary)  # what stands in the file
        self.directory.write_summary(summary)
        for write in (write_learning_curve, write_report):  # the last: with it the run is done
            try:
                write(self.directory)
            except Exception as error:  # a picture ends no run
                logger.warning("%s failed, and the run is whole without: %s", write.__name__, error)
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
    tokenizer = named_tokenizer(settings.model, chat=settings.chat, trust_remote_code=config.trust_remote_code)
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
        end_of_thinking=getattr(config, "end_of_thinking", END_OF_THINKING),
    )
    return tokenizer, task


def policy_trainer(settings: RunSettings, config: PoiseConfig, tokenizer: Any, graded_task: GradedTask) -> PoiseTrainer:
    """The trainer of a run: its policy, problems and rewards."""
    problems = training_problems(settings, config, graded_task)
    model, adapter = loaded_policy(settings, config)
    trainer = PoiseTrainer(
        model,
        graded_task.reward_functions,
        config,
        train_dataset=problems,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def loaded_policy(settings: RunSettings, config: GRPOConfig) -> tuple[Any, Any]:
    """The model to train, and the configuration of the adapter to train on it; None to train the model itself."""
    chosen = settings.model_options()
    options = {"dtype": getattr(torch, str(chosen.dtype), chosen.dtype), "revision": chosen.model_revision}
    options |= {"attn_implementation": chosen.attn_implementation} if chosen.attn_implementation else {}
    quantization = get_quantization_config(chosen)
    options |= {"quantization_config": quantization} if quantization is not None else {}
    options |= {"trust_remote_code": config.trust_remote_code} | (config.model_init_kwargs or {})
    config.model_init_kwargs = None  # they are spent here: TRL takes them with a path only
    return named_model(settings.model, **options), get_peft_config(chosen)


def training_problems(settings: RunSettings, config: PoiseConfig, graded_task: GradedTask) -> Dataset:
    """As many problems as the run has use for, or as the task has.

    Fewer than fill one generation batch are asked again and again.
    """
    batches = -(-settings.steps * config.gradient_accumulation_steps // config.steps_per_generation)
    of_batch = config.generation_batch_size // config.num_generations
    problems = graded_task.training_data(min(batches * of_batch, MOST_TRAINING_PROMPTS), seed=settings.seed)
    if len(problems) < of_batch:
        logger.warning(
            "the task has %d problems to train on and a generation batch takes %d prompts: they are repeated",
            len(problems),
            of_batch,
        )
        problems = concatenate_datasets([problems] * -(-of_batch // len(problems)))
    return problems


def versions() -> dict[str, str]:
    """Of what the numbers of a run depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "numpy")}
    return {"poise": version("poise-rlvr"), "python": platform.python_version()} | packages
