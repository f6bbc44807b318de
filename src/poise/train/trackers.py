"""Experiment trackers of a run: those that `report_to` names, with everything that stands in `metrics.jsonl`.

The callbacks are the host's own. They are put behind the run's recorder, so that they see the held-out numbers too and
numbers alone; those with tables (wandb, trackio, MLflow) get one of rollouts wherever held-out problems were solved.
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

TABLE = "rollouts"
MOST_ROWS = 64
"""Rollouts in a table, at most."""
COLUMNS = ("prompts", "completions", "domains", "rewards", "values", "baselines", "advantages")
"""Of `PoiseTrainer.last_rollouts`."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        ValueError: With the line to type.
    """
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"report_to needs none, all or names out of {', '.join(INTEGRATION_TO_CALLBACK)}, got {name!r}"
            )
        if name not in installed:
            raise ValueError(f"report_to needs {name}, which is not installed: pip install {name}")


class Trackers(TrainerCallback):  # type: ignore[misc]
    """The trackers of a trainer, moved behind its other callbacks.

    Args:
        trainer: Whose callbacks are looked at.
        folder: Of the run; TensorBoard writes there.
        measured: The held-out numbers that the run began with.
    """

    def __init__(self, trainer: Any, folder: Path, measured: Callable[[], Mapping[str, Any]]) -> None:
        self._trainer, self._folder, self._measured = trainer, folder, measured
        classes = {each: name for name, each in INTEGRATION_TO_CALLBACK.items()}
        found = [each for each in trainer.callback_handler.callbacks if type(each) in classes]
        self.callbacks = {classes[type(each)]: each for each in found}
        if not found:
            return
        trainer.args.run_name = trainer.args.run_name or folder.name
        if "tensorboard" in self.callbacks and "TENSORBOARD_LOGGING_DIR" not in os.environ:
            self.callbacks["tensorboard"].logging_dir = str(folder / "tensorboard")
        trainer.callback_handler.callbacks = [
            each for each in trainer.callback_handler.callbacks if type(each) not in classes
        ] + found
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Tell the trackers what was measured before the first step."""
        if state.global_step == 0:
            for each in self.callbacks.values():
                each.on_log(args, state, control, model=named.get("model"), logs=dict(self._measured()))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **named: Any,
    ) -> None:
        """Give a table of rollouts to those that take one, where something was measured."""
        rollouts = self._trainer.last_rollouts
        if rollouts is None or not logs or "held_out/prompts" not in logs:
            return
        rows = {"step": [rollouts["step"] + 1] * len(rollouts["rewards"])}
        rows |= {name[:-1]: rollouts[name] for name in COLUMNS}
        rows = {name: column[:MOST_ROWS] for name, column in rows.items()}
        for name in self.callbacks:
            if name in TABLES:
                TABLES[name](rows, state.global_step)

    def places(self) -> list[str]:
        """For each tracker, where it has put the run and how to look at it."""
        return [
            f"{name}: {PLACES[name](callback, self._trainer.args)}"
            for name, callback in self.callbacks.items()
            if name in PLACES
        ]


def _logged_table(module: Any, rows: Mapping[str, list[Any]]) -> None:
    import pandas

    module.log({TABLE: module.Table(dataframe=pandas.DataFrame(rows))})


TABLES: dict[str, Callable[[Mapping[str, list[Any]], int], None]] = {
    "wandb": lambda rows, step: _logged_table(sys.modules["wandb"], rows),
    "trackio": lambda rows, step: _logged_table(sys.modules["trackio"], rows),
    "mlflow": lambda rows, step: sys.modules["mlflow"].log_table(dict(rows), f"{TABLE}/step-{step:06d}.json"),
}

PLACES: dict[str, Callable[[Any, Any], str]] = {
    "tensorboard": lambda callback, args: (
        f"{callback.logging_dir}; tensorboard --logdir {shlex.quote(callback.logging_dir)}"
    ),
    "trackio": lambda callback, args: (
        f"{sys.modules['trackio.utils'].TRACKIO_DIR}; trackio show --project {shlex.quote(args.project)}"
    ),
    "wandb": lambda callback, args: str(callback._wandb.run and (callback._wandb.run.url or callback._wandb.run.dir)),
    "mlflow": lambda callback, args: f"{sys.modules['mlflow'].get_tracking_uri()}",
}
