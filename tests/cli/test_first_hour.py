"""What a newcomer tries in the first hour, as commands and what they say."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from poise.cli import app
from poise.models.embedded import embedded_model_path
from poise.train.config import LEARNING_RATES, run_settings

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

QUICK = "--steps 2 --eval-prompts 4 --check-every 0 --per-device-train-batch-size 4 --max-completion-length 16"

REWARDS = """
def penalty(completions, **columns):
    return [-float(len(text)) for text in completions]


def half(completions, **columns):
    return [0.5] * len(completions)


def nothing(completions, **columns):
    return [None] * len(completions)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "sum 1+2<think>", "answer": "3"}) + "\n")
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentences"),
    [
        (
            "--task one.jsonl?verifier=exact",
            0,
            [
                "note: the embedded model knows its own six families of problems alone",
                "note: task 'one.jsonl?verifier=exact' has too few problems to hold some out: those it trains on are "
                "measured",
                "note: the task has 1 problems to train on and a generation batch takes 4 prompts: they are repeated",
                "2 steps, 8 rollouts",
            ],
        ),
        ("--reward rewards.py:penalty", 0, ["held_out/reward", r"held-out reward +-\d+\.\d{3} +-\d+\.\d{3}"]),
        ("--reward rewards.py:half", 0, ["note: all rewards so far are the same (0.5)"]),
        ("--reward rewards.py:nothing", 1, ["no rollout so far has a reward"]),
        ("--use-peft --lora-r 2", 0, ["2 steps, 8 rollouts"]),
    ],
)
def test_what_is_odd_about_a_run_is_said_and_it_comes_to_its_end(folder, arguments, exit_code, sentences):
    result = CliRunner().invoke(app, ["train", "--name", "run", *QUICK.split(), *arguments.split()])
    assert result.exit_code == exit_code, result.output
    for sentence in sentences:
        assert sentence in result.output or re.search(sentence, result.output), (sentence, result.output)
    assert (folder / "runs" / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"eval_strategy": "steps"}, "eval_strategy changes nothing in a run: held-out problems are solved every"),
        ({"num_train_epochs": "2"}, "num_train_epochs changes nothing in a run: steps says how long a run is"),
        ({"disable_tqdm": "false"}, "disable_tqdm changes nothing in a run: the command has its own bar"),
    ],
)
def test_an_option_of_trl_that_does_nothing_here_is_refused_with_what_does(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_settings(given)


def test_the_rate_follows_the_size_of_the_model_and_adapters_stand_more():
    path = str(embedded_model_path())  # as any other model
    whole, adapter = (run_settings({"model": path, "use_peft": peft}).trainer for peft in (False, True))
    assert whole["learning_rate"] == LEARNING_RATES[0][1]
    assert adapter["learning_rate"] == pytest.approx(10 * LEARNING_RATES[0][1])
    assert (whole["max_completion_length"], whole["warmup_steps"]) == (512, 10)
    assert run_settings({"model": path, "learning_rate": "3e-6"}).trainer["learning_rate"] == 3e-6


def test_the_page_on_models_has_the_rates_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "models.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in page.splitlines()
        if "SmolLM2-135M)" in line or "Qwen3" in line
    ]
    assert [(float(row[2]), float(row[4].split()[0])) for row in rows] == [
        (rate, pytest.approx(10 * rate)) for _, rate in LEARNING_RATES
    ]
