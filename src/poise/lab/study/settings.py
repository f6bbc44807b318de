"""The settings of a study: model, tasks, how much is drawn, and how it is looked at.

What cannot be studied is refused before anything is loaded.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

PAIR = 2
"""Rollouts of a training prompt that estimators are fitted on."""
HISTORY = 2
"""Rollouts of each prompt that stand for an earlier step."""
FEWEST_TRAINING_PROMPTS = 32
FEWEST_HELD_OUT_PROMPTS = 16
TABLES = ("estimators", "features", "layers", "pools", "probes", "sizes")
"""What is compared; with an older model, the age of the window too."""


@dataclass(frozen=True)
class StudySettings:
    """What is studied: everything that the drawn rollouts depend on, and how they are looked at."""

    model: str
    tasks: tuple[str, ...]
    older_model: str | None = None
    prompts: int = 256
    """Training prompts of each task."""
    held_out_prompts: int = 128
    k: int = 8
    """Rollouts of a held-out prompt that judge."""
    evidence: int = 4
    """Rollouts of a held-out prompt that are evidence, one at a time; the first of the k."""
    chat: bool = True
    """Ask by the tokenizer's chat template, if it has one."""
    temperature: float = 1.0
    max_completion_length: int = 64
    layers: tuple[int, ...] | None = None
    """None: all."""
    pools: tuple[int, ...] = (1, 5, 10, 20)
    pool_tokens: int = 10
    """Of all tables but the one that compares pooling windows."""
    seed: int = 0
    batch_size: int = 128
    critics: bool = True
    critic_epochs: int = 10
    """At most."""
    critic_learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """To try."""
    critic_hindsight: bool = False
    """Judge every epoch of every rate as well."""
    resamples: int = 500
    """Of held-out prompts, for intervals."""
    tables: tuple[str, ...] = TABLES
    trust_remote_code: bool = False
    """Run code that the models bring along."""

    def __post_init__(self) -> None:
        if self.k < 3:
            raise ValueError(
                f"an estimate is made from one rollout and judged by two others or more: k must be at least 3, "
                f"got {self.k}"
            )
        if not 1 <= self.evidence <= self.k:
            raise ValueError(f"evidence must lie between 1 and k = {self.k}, got {self.evidence}")
        if self.prompts < FEWEST_TRAINING_PROMPTS or self.held_out_prompts < FEWEST_HELD_OUT_PROMPTS:
            raise ValueError(
                f"a study needs at least {FEWEST_TRAINING_PROMPTS} training prompts and {FEWEST_HELD_OUT_PROMPTS} held "
                f"out, got {self.prompts} and {self.held_out_prompts}"
            )
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"a study needs one task or more, each once, got {', '.join(self.tasks) or 'none'}")
        for name, lowest in (
            ("critic_epochs", 1),
            ("resamples", 1),
            ("pool_tokens", 1),
            ("max_completion_length", 1),
        ):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be {lowest} or more, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {self.temperature}")
        if not self.critic_learning_rates or min(self.critic_learning_rates) <= 0:
            raise ValueError(f"critic_learning_rates must be positive, got {self.critic_learning_rates}")
        unknown = [name for name in self.tables if name not in TABLES]
        if unknown or not self.tables:
            raise ValueError(f"tables are {', '.join(TABLES)}; got {', '.join(unknown) or 'none'}")
        if self.layers is not None and not self.layers:
            raise ValueError("a study reads at least 1 layer, got none")
        if min(self.pools, default=0) < 1:
            raise ValueError(f"pools must be numbers of tokens from 1 on, got {self.pools}")

        if len({folder_name(task) for task in self.tasks}) < len(self.tasks):
            raise ValueError(f"tasks need names that differ in letters or digits, got {', '.join(self.tasks)}")

    @property
    def drawn(self) -> dict[str, Any]:
        """What files in the folder depend on."""
        afterwards = {name for name in self.__dataclass_fields__ if name.startswith("critic")} | {"resamples", "tables"}
        afterwards |= {"trust_remote_code"}
        by_weights = {"model", "older_model"}  # told apart by their fingerprints, wherever they lie
        return {name: each for name, each in dataclasses.asdict(self).items() if name not in afterwards | by_weights}


def folder_name(text: str) -> str:
    """A name for a task's folder."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-.") or "task"
