"""One run of a comparison, and what is measured in it.

    python -m poise.lab.compare.run < SPECIFICATION       in a process of its own, so that its memory is its own

The clock runs while the policy is trained and stands still while anything is measured; what is measured leaves the
training as it would have been. A run's folder is complete when it holds `summary.json`, and is made anew otherwise.
"""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from poise.evaluate.pass_at_k import pass_at_k, sizes_of_subsets
from poise.evaluate.statistics import smoothed
from poise.lab.compare.arms import arm_named
from poise.lab.compare.plan import Conditions, Run
from poise.lab.compare.trainers import Tallied, arm_trainer
from poise.storage.run_directory import RunDirectory
from poise.tasks.embedded import END_OF_THINKING
from poise.tasks.graded_task import HELD_OUT_SEED, GradedTask
from poise.tasks.verifiers import FULL_MARKS
from poise.train.config import RunSettings
from poise.train.held_out import policy_accuracy, policy_completions
from poise.train.run import loaded_policy, tokenizer_and_task, torch_threads, versions

Told = Callable[[float, float], None]
"""Told, at each evaluation, the share of a run's rollouts that is spent and the held-out accuracy."""


class Clock:
    """Seconds of wall-clock and of CPU time of this process, while it runs."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Let it run."""
        self._since = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Let it stand still."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since[0]
            self.cpu_seconds += time.process_time() - self._since[1]
            self._since = None


class Measurements(TrainerCallback):  # type: ignore[misc]
    """Writes a line of metrics whenever another part of the budget is spent, and ends the run when all of it is.

    A line is written between two generation batches: before training, then at each due number of rollouts.
    """

    def __init__(
        self,
        trainer: Tallied,
        graded_task: GradedTask,
        conditions: Conditions,
        directory: RunDirectory,
        told: Told,
    ) -> None:
        self.trainer, self.graded_task, self.conditions = trainer, graded_task, conditions
        self.directory, self.told = directory, told
        self.clock = Clock()
        self.accuracies: list[float] = []
        self.memory_before = 0.0
        self._held_out = graded_task.held_out(conditions.eval_prompts)
        self._logged: dict[str, list[float]] = {"entropy": [], "reward": []}
        self._due = 0.0

    def on_train_begin(self, *positional: Any, **named: Any) -> None:
        """Measure the untrained policy, then start the clock."""
        self.memory_before = memory_mib()
        self._measure(updates=0)
        self.clock.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> TrainerControl:
        """Measure where it is due."""
        if state.global_step % self.conditions.batch_updates:
            return control
        spent = self.trainer.tally.rollouts
        control.should_training_stop |= spent >= self.conditions.rollouts
        if spent >= self._due or control.should_training_stop:
            self.clock.stop()
            self._measure(updates=state.global_step)
            self.clock.start()
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **named: Any,
    ) -> None:
        """Keep what the host says about its batches."""
        for name, numbers in self._logged.items():
            if logs and isinstance(logs.get(name), int | float):
                numbers.append(float(logs[name]))

    def on_train_end(self, *positional: Any, **named: Any) -> None:
        """Stop the clock."""
        self.clock.stop()

    def _measure(self, *, updates: int) -> None:
        tally = self.trainer.tally
        line: dict[str, Any] = {"updates": updates, **asdict(tally)}
        line |= {"seconds": round(self.clock.seconds, 3), "cpu_seconds": round(self.clock.cpu_seconds, 3)}
        line |= {name: sum(each) / len(each) if each else None for name, each in self._logged.items()}
        self._logged = {name: [] for name in self._logged}
        # No more memory than training takes.
        batch_size = self.conditions.batch_rollouts
        found = policy_accuracy(self.trainer, self.graded_task, self._held_out, batch_size=batch_size)
        line |= {"accuracy": found.accuracy, "accuracy_by_domain": found.by_domain}
        line |= {"held_out_prompts": found.num_prompts, "memory_mib": round(memory_mib(), 1)}
        self.accuracies.append(line["accuracy"])
        self.directory.append_metrics(line)
        self.told(min(1.0, tally.rollouts / self.conditions.rollouts), line["accuracy"])
        distance = self.conditions.rollouts / self.conditions.evaluations
        self._due = (tally.rollouts // distance + 1) * distance

    def sharpness(self) -> dict[str, Any]:
        """Pass@k of the policy as it is, and how many different answers a held-out prompt gets.

        An answer is what follows the end of the reasoning. A prompt with an ungradable completion has no pass@k.
        """
        k, problems = self.conditions.completions, self._held_out
        asked = [problem for problem in problems for _ in range(k)]
        drawn = policy_completions(
            self.trainer, self.graded_task, asked, seed=HELD_OUT_SEED + 1, batch_size=self.conditions.batch_rollouts
        )
        rewards = torch.tensor(self.graded_task.held_out_rewards(drawn, asked), dtype=torch.float64).unflatten(
            0, (-1, k)
        )
        right = (rewards[~rewards.isnan().any(dim=1)] >= FULL_MARKS).sum(dim=1).tolist()
        answers = [text.rpartition(END_OF_THINKING)[2].strip() for text in drawn]
        distinct = [len(set(answers[first : first + k])) for first in range(0, len(answers), k)]
        passed = {
            str(size): sum(pass_at_k(each, k, k=size) for each in right) / len(right) if right else None
            for size in sizes_of_subsets(k)
        }
        return {"pass_at": passed, "distinct_answers": sum(distinct) / len(distinct)}


def check_conditions(conditions: Conditions, folder: Path) -> None:
    """Refuse, before a run begins, a model that is none and a task that cannot be read or graded.

    Args:
        conditions: Of the comparison.
        folder: Of the comparison; nothing is written there.

    Raises:
        ValueError: If the task or the model's tokenizer cannot be used.
        FileNotFoundError: If the file of a task is not there.
    """
    settings = conditions.run_settings(seed=0)
    with closing(tokenizer_and_task(settings, settings.poise_config(folder))[1]) as graded_task:
        graded_task.check_gold_answers()


def completed_run(
    conditions: Conditions, run: Run, folder: Path, *, side_by_side: int = 1, told: Told = lambda share, accuracy: None
) -> dict[str, Any]:
    """Train one arm and leave `config.yaml`, `metrics.jsonl` and, at the very end, `summary.json` in a folder.

    What lies there of an earlier attempt is removed first. A run whose policy diverges is complete, too; its final
    accuracy is 0.

    Args:
        conditions: What the run shares with others.
        run: The arm, its learning rate and its seed.
        folder: Where.
        side_by_side: Runs that share the machine with this one, itself included; it is noted in the summary.
        told: See `Told`.

    Returns:
        What is written to `summary.json`.

    Raises:
        ValueError: If settings contradict each other, or ask for what the task or the model does not have.
        FileNotFoundError: If the file of a task is not there.
    """
    shutil.rmtree(folder, ignore_errors=True)
    directory = RunDirectory.create(folder)
    settings = conditions.run_settings(seed=run.seed)
    config = run.config(conditions, str(directory.checkpoints))
    tokenizer, graded_task = tokenizer_and_task(settings, config)
    with torch_threads(settings.torch_threads), closing(graded_task):
        trainer = run_trainer(conditions, run, config, tokenizer, graded_task, settings)
        measured = Measurements(trainer, graded_task, conditions, directory, told)
        trainer.add_callback(measured)
        directory.write_config({"run": asdict(run), "conditions": asdict(conditions), "trainer": config.to_dict()})
        sharpness = {"sharpness_before": measured.sharpness()} if run.twin else {}  # the same in all other runs
        diverged = not _trained(trainer)
        if not (diverged or run.is_tuning):
            sharpness["sharpness"] = measured.sharpness()
    summary = _summary(run, measured, directory.read_metrics()[-1]) | sharpness
    summary |= {"side_by_side": side_by_side, "diverged": diverged}
    if diverged:
        summary["final_accuracy"] = 0.0  # what gives no numbers solves nothing
    directory.write_summary(summary)
    return summary


def run_trainer(
    conditions: Conditions, run: Run, config: Any, tokenizer: Any, graded_task: GradedTask, settings: RunSettings
) -> Tallied:
    """The trainer of a run, at the beginning of its prompt stream.

    Raises:
        ValueError: If the task has fewer prompts than a generation batch takes.
    """
    arm = arm_named(run.arm)
    problems = graded_task.training_data(conditions.num_prompts, seed=run.seed)
    needed = conditions.batch_rollouts // arm.group_size
    if len(problems) < needed:
        raise ValueError(f"a generation batch of {arm.name} takes {needed} prompts, and the task has {len(problems)}")
    model, adapter = loaded_policy(settings, config)
    trainer = arm_trainer(
        arm,
        model,
        graded_task.reward_functions,
        config,
        train_dataset=problems,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trained(trainer: Tallied) -> bool:
    """Train to the end; False where the policy has come to give no finite numbers, as too high a rate makes it."""
    try:
        trainer.train()
    except FloatingPointError:
        return False
    except (RuntimeError, ValueError):
        ids = torch.tensor(trainer.processing_class("1")["input_ids"], device=trainer.accelerator.device)[None]
        with torch.no_grad():
            if trainer.model(ids).logits.isfinite().all():
                raise
        return False
    return True


def _summary(run: Run, measured: Measurements, last: dict[str, Any]) -> dict[str, Any]:
    baseline = getattr(measured.trainer, "baseline", None)
    critic = getattr(baseline and baseline.method, "extra_bytes", 0)
    return {
        "run": asdict(run),
        "accuracy_before": measured.accuracies[0],
        "final_accuracy": smoothed(measured.accuracies)[-1],
        **{name: last[name] for name in ("updates", "rollouts", "tokens", "seconds", "cpu_seconds")},
        "memory_mib_before_training": round(measured.memory_before, 1),
        "memory_mib": last["memory_mib"],
        "critic_mib": round(critic / 2**20, 1),
        "versions": versions(),
    }


def memory_mib() -> float:
    """The most memory that was in use so far: of the GPU where there is one, else of this program."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where `getrusage` hands a parent's peak on to programs that it starts
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(peak.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def specification(conditions: Conditions, run: Run, folder: Path, *, side_by_side: int) -> str:
    """What `python -m poise.lab.compare.run` reads from its standard input."""
    asked = {"conditions": asdict(conditions), "run": asdict(run), "folder": str(folder)}
    return json.dumps(asked | {"side_by_side": side_by_side})


def main() -> None:
    """Carry out the run that standard input asks for; standard output has a line of JSON for each evaluation."""
    asked = json.load(sys.stdin)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever hosts print goes where errors go

    def tell(share: float, accuracy: float) -> None:
        print(json.dumps([share, accuracy]), file=output, flush=True)

    try:
        completed_run(
            Conditions(**asked["conditions"]),
            Run(**asked["run"]),
            Path(asked["folder"]),
            side_by_side=asked["side_by_side"],
            told=tell,
        )
    except (ValueError, OSError) as error:
        print(f"poise compare: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
