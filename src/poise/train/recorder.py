"""What of a run is measured and written down while it trains.

Whatever is measured leaves the training as it would have been, and whatever happened so far is on disk.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from poise.engines.trl import PoiseTrainer
from poise.evaluate import HeldOutAccuracy
from poise.storage.run_directory import RunDirectory
from poise.tasks.graded_task import GradedTask
from poise.tasks.problem import Problem
from poise.train.config import RunSettings
from poise.train.held_out import policy_accuracy


@dataclass
class Progress:
    """Where a run stands. One object a run, changed as the run goes on."""

    steps: int
    """Steps that the run will take."""
    activity: str = ""
    is_measuring: bool = False
    measured_prompts: int = 0
    prompts_to_measure: int = 0
    step: int = 0
    rollouts: int = 0
    generated_tokens: int = 0
    skipped_steps: int = 0
    """Steps whose numbers were not finite."""
    seconds: float = 0.0
    """Since the first step began, without the time in which the run was stopped."""
    earlier_seconds: float = 0.0
    """Those of them that were spent in earlier sittings."""
    measuring_seconds: float = 0.0
    """Those in which held-out problems were solved, in this sitting."""
    earlier_tokens: int = 0
    """Of `generated_tokens`, those of earlier sittings."""
    tokens_a_second: float = float("nan")
    """Sampled in training, by the seconds of training without measuring, in this sitting."""
    reward: float = float("nan")
    """Mean of the newest generation batch."""
    line: Mapping[str, Any] = field(default_factory=dict)
    """The newest line of metrics."""
    sample: Mapping[str, Any] = field(default_factory=dict)
    """A rollout of the newest generation batch: step, prompt, completion, reward."""
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
        self.progress.earlier_tokens = state["generated_tokens"]
        before, held_out, after = (
            HeldOutAccuracy(**state[name]) if state[name] else None for name in ("before", "held_out", "after")
        )
        self.progress.before, self.progress.held_out = before, held_out
        self._final = after if self.progress.step >= self.progress.steps else None  # else the run was made longer
        self.graded_task.grader.counts.update(state["grading"])

    def measure_before(self) -> None:
        """Held-out accuracy of the untrained policy, as the line of step 0."""
        self.progress.before = self._measure(self.problems[: self.settings.eval_prompts], "measuring before training")
        self._write({"step": 0, "rollouts": 0, "seconds": 0.0})

    def accuracy_after(self) -> HeldOutAccuracy:
        """Held-out accuracy after the last step; measured now if the training ended without one."""
        if self._final is None:
            self._final = self._measure(self.problems[: self.settings.eval_prompts], "measuring after training")
        return self._final

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        self._started = time.monotonic() - self.progress.earlier_seconds
        self.progress.measuring_seconds = 0.0  # before the first step no second is counted
        self._tell("training")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> TrainerControl:
        progress = self.progress
        progress.step = state.global_step
        progress.skipped_steps += self.trainer.finite_steps.skipped
        progress.seconds = time.monotonic() - self._started
        if self.trainer.last_rollouts is not self._seen:
            self._take_rollouts()
        spent = progress.seconds - progress.earlier_seconds - progress.measuring_seconds
        progress.tokens_a_second = (progress.generated_tokens - progress.earlier_tokens) / spent
        every = self.settings.steps_between_checks(self.trainer.args)
        done = progress.step >= progress.steps
        if done:
            self.accuracy_after()
        elif every and progress.step % every == 0:
            self._measure(self.problems[: self.settings.check_prompts], "measuring")
            control.should_log = True  # the numbers belong to this step
        if done:
            control.should_training_stop = control.should_save = True
        elif self.stop() and progress.step % self.trainer.args.steps_between_generations == 0:
            self._stopping = control.should_save = True
        self._tell("training")
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
        told = self._write(line | logs)
        for name in [name for name in logs if logs[name] is None]:
            del logs[name]
        logs |= {name: told[name] for name in told if name.startswith("held_out/")}  # for trackers, which come next

    def _write(self, line: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write a line of metrics, with what was measured since the last one, and return it."""
        self.progress.line, self._measured = {**line, **self._measured}, {}
        self.directory.append_metrics(self.progress.line)
        self.watch(self.progress)
        return self.progress.line

    def _take_rollouts(self) -> None:
        rollouts = self._seen = self.trainer.last_rollouts
        assert rollouts is not None
        progress, step = self.progress, self.trainer.last_step
        kept = {name: column for name, column in rollouts.items() if name not in ("step", "completion_lengths")}
        self.directory.write_rollouts(rollouts["step"] + 1, **kept)
        gradable = [reward for reward in rollouts["rewards"] if reward == reward]
        progress.rollouts += len(rollouts["rewards"])
        progress.generated_tokens += int(sum(rollouts["completion_lengths"]))
        progress.reward = sum(gradable) / len(gradable) if gradable else float("nan")
        shown = rollouts["step"] % len(rollouts["rewards"])
        progress.sample = {
            "step": rollouts["step"] + 1,
            **{name: rollouts[f"{name}s"][shown] for name in ("prompt", "completion", "reward")},
        }
        if step is not None:
            progress.ceiling_share = step.metrics.get("poise/ceiling_share", float("nan"))
            progress.in_charge = step.in_charge

    def _measure(self, held_out: list[Problem], activity: str) -> HeldOutAccuracy:
        progress, began = self.progress, time.monotonic()

        def tell(measured: int) -> None:
            progress.measured_prompts = measured
            self._tell(activity, measuring=True)

        progress.prompts_to_measure = len(held_out)
        tell(0)
        progress.held_out = policy_accuracy(self.trainer, self.graded_task, held_out, watch=tell)
        self._measured = progress.held_out.metrics()
        progress.measuring_seconds += time.monotonic() - began
        return progress.held_out

    def _tell(self, activity: str, *, measuring: bool = False) -> None:
        self.progress.activity, self.progress.is_measuring = activity, measuring
        self.watch(self.progress)
