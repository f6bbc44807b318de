"""TRL's documented examples run as they are, but for the import and `num_generations=2`.

The hub's names stand for folders of the working directory, which hold a tiny policy and a few prompts. TRL's default
precision, bf16, is left on.
"""

import json
import runpy
from pathlib import Path

import datasets
import pytest
import torch
from conformance import character_tokenizer, random_policy
from recording import HOST_CHATTER
from test_trl_options import CHAT_TEMPLATE

from poise.engines.trl import PoiseTrainer

pytestmark = [
    *HOST_CHATTER,
    pytest.mark.filterwarnings("ignore:.*[Rr]eshard|.*torch.cpu.amp|.*unclosed:Warning"),
]

EXAMPLES = sorted((Path(__file__).parent / "trl_examples").glob("*.py"))
PROMPTS = [f"{i}+{i % 3}=" for i in range(8)]


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the names of the examples are paths."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = character_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    for each in (random_policy(layers=2), tokenizer):
        each.save_pretrained(folder / "Qwen" / "Qwen2-0.5B-Instruct")
    texts = [{"prompt": each} for each in PROMPTS]
    for name, rows in {
        "trl-lib/tldr": texts,
        "trl-lib/ultrafeedback-prompt": [{"prompt": [{"role": "user", "content": each}]} for each in PROMPTS],
        "math": [{**each, "ground_truth": "1"} for each in texts],
    }.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_trl_runs_with_poise(hub, monkeypatch, example):
    monkeypatch.chdir(hub)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub / "cache")
    # The only thing that these machines lack of the examples' one: a GPU that knows bf16.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    trainer = runpy.run_path(str(example))["trainer"]
    assert isinstance(trainer, PoiseTrainer)
    assert trainer.state.global_step == trainer.state.max_steps > 0
    rollouts = trainer.last_rollouts
    assert len(rollouts["prompts"]) == 2 * len(set(rollouts["prompts"]))
    gradable = [reward for reward in rollouts["rewards"] if reward == reward]
    assert len(gradable) == len(rollouts["rewards"])
    expected = [r - b for r, b in zip(rollouts["rewards"], rollouts["baselines"], strict=True)]
    torch.testing.assert_close(torch.tensor(rollouts["advantages"]), torch.tensor(expected))


def test_the_examples_differ_from_trl_s_only_in_the_import():
    for example in EXAMPLES:
        ours = [line for line in example.read_text().splitlines() if "poise" in line]
        assert ours == [
            "from poise.engines.trl import PoiseConfig as GRPOConfig",
            "from poise.engines.trl import PoiseTrainer as GRPOTrainer",
        ]
