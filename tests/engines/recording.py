"""A trainer that keeps what crossed the seam between TRL and poise, and what it is run on in tests."""

from typing import Any

import pytest
from datasets import Dataset

import poise
from poise.engines.trl import PoiseTrainer

HOST_CHATTER = [
    # The hosts talk among themselves about their own deprecations.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


def share_of_digits(completions: list[str], **columns: Any) -> list[float]:
    return [sum(character.isdigit() for character in each) / max(1, len(each)) for each in completions]


def addition_prompts(count: int = 64) -> Dataset:
    return Dataset.from_list([{"prompt": f"{i}+{i % 7}=", "domain": "odd" if i % 2 else "even"} for i in range(count)])


class Recorder:
    """Stands before a baseline and keeps what its steps were given and gave back."""

    def __init__(self, baseline: poise.OnlineBaseline) -> None:
        self.baseline = baseline
        self.given: list[dict[str, Any]] = []
        self.gave: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.baseline, name)

    def step(self, features: Any, rewards: Any, **named: Any) -> Any:
        self.given.append({"features": features, "rewards": rewards, **named})
        self.gave.append(self.baseline.step(features, rewards, **named))
        return self.gave[-1]


class RecordedTrainer(PoiseTrainer):
    """Keeps every scored generation batch; the baseline is behind a recorder."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.baseline = Recorder(self.baseline)
        self.scored: list[dict[str, Any]] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored = super()._generate_and_score_completions(inputs)
        self.scored.append(scored)
        return scored


def metric(trainer: RecordedTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
