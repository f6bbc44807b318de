"""verl's actor workers, with poise's engine in them.

verl chooses an engine by an environment variable of the process. It is set only while the actor's engine is
made, so that a reference policy in the same process keeps verl's own.
"""

import os
from typing import Any

from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from poise.engines.verl.engine import VENDOR, PoiseFSDPEngine
from poise.engines.verl.isolation import leak_sentence

CHOICE = "VERL_ENGINE_VENDOR"


class PoiseTrainingWorker(TrainingWorker):  # type: ignore[misc]
    """A training worker whose engine reads features.

    Raises:
        RuntimeError: If verl gave it another engine.
    """

    def __init__(self, config: Any) -> None:
        before = os.environ.get(CHOICE)
        os.environ[CHOICE] = VENDOR
        try:
            super().__init__(config)
        finally:
            if before is None:
                del os.environ[CHOICE]
            else:
                os.environ[CHOICE] = before
        if not isinstance(self.engine, PoiseFSDPEngine):
            raise RuntimeError(
                f"the actor needs an engine with poise's plug-in, verl made a {type(self.engine).__name__} for "
                f"strategy {self.engine_config.strategy!r}"
            )


class RowIsolationWorker:
    """What poise's actor workers can be asked for beside what verl's can."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def leak_sentence(self) -> str | None:
        """What to say where a row of a batch sees its neighbour (`isolation.leak_sentence`)."""
        actor: Any = self.actor  # type: ignore[attr-defined]
        return leak_sentence(actor, actor.model_config)


class PoiseActorRolloutRefWorker(RowIsolationWorker, ActorRolloutRefWorker):  # type: ignore[misc]
    """verl's hybrid worker, whose actor reads features."""

    actor_worker_cls = PoiseTrainingWorker


class PoiseDetachActorWorker(RowIsolationWorker, DetachActorWorker):  # type: ignore[misc]
    """The same of the worker whose weights can be laid aside, for the trainer mode `separate_async`."""

    actor_worker_cls = PoiseTrainingWorker
