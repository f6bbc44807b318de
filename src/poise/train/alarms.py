"""The watch over a run that goes on: it says each alarm once, and ends the run where going on is of no use."""

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from poise.report.alarms import RECENT, alarms, useless_alarm

logger = logging.getLogger(__name__)


class RunWatch(TrainerCallback):  # type: ignore[misc]
    """Listens to a trainer's log and says each alarm once.

    Attributes:
        reason: The sentence of the alarm for which the run must stop; empty while there is none.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._lines: list[Mapping[str, Any]] = []
        self._said: set[str] = set()

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if 0 < len(self._lines) < RECENT and (alarm := useless_alarm(self._lines)) is not None:
            logger.warning("%s", alarm.sentence)
            self.reason = self.reason or (alarm.sentence if alarm.stops else "")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **named: Any) -> None:
        if not logs or "reward" not in logs:
            return
        self._lines.append(dict(logs))
        for alarm in alarms(self._lines):
            if alarm.name not in self._said:
                self._said.add(alarm.name)
                logger.warning("%s", alarm.sentence)
                self.reason = self.reason or (alarm.sentence if alarm.stops else "")
