"""Fixtures of the engine tests: a policy on disk, and trainers of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance import END_OF_THINKING, POOL_TOKENS, TEMPERATURE, character_tokenizer, random_policy
from datasets import Dataset
from recording import RecordedTrainer, addition_prompts, share_of_digits

from poise.engines.trl import PoiseConfig

collect_ignore = ["verl"]  # run by `make test-verl`, in the environment that verl needs


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    random_policy().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def build(tmp_path: Path, policy_folder: str) -> Callable[..., RecordedTrainer]:
    def trainer(
        *,
        model: Any = policy_folder,
        reward: Any = share_of_digits,
        data: Dataset | None = None,
        named: dict[str, Any] | None = None,
        **options: Any,
    ) -> RecordedTrainer:
        settings = {
            "per_device_train_batch_size": 16,
            "max_completion_length": 12,
            "max_steps": 2,
            "learning_rate": 0.0,
            "temperature": TEMPERATURE,
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "pool_tokens": POOL_TOKENS,
            "end_of_thinking": END_OF_THINKING,
        }
        args = PoiseConfig(**({"output_dir": str(tmp_path / "run")} | settings | options))
        data = addition_prompts() if data is None else data
        arguments = {"train_dataset": data, "processing_class": character_tokenizer()} | (named or {})
        return RecordedTrainer(model, reward, args, **arguments)

    return trainer
