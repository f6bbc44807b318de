"""The tutorial: every command and snippet of the page, one after another, with fewer steps."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from poise.cli import app

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
FEWER = {
    "--steps 60": "--steps 2",
    "--steps 64": "--steps 4",
    "checkpoint-60": "checkpoint-2",
    "--prompts 50": "--prompts 4",
}
FEWER |= {"--eval-prompts 100": "--eval-prompts 8", "--eval-prompts 50": "--eval-prompts 8"}
QUICK = " --per-device-train-batch-size 8 --check-every 0"
SAID = {
    "poise doctor": "the reward of gold answers is that of right ones",
    "poise train": "look at runs/",
    "poise report": "runs/sums/report.html",
    "poise eval": "pass@4",
}


def test_every_command_of_the_tutorial_runs_in_its_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    for many, few in FEWER.items():
        assert many in text
        text = text.replace(many, few)
    seen, made = set(), {}
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL):
        if language == "python":
            (tmp_path / "snippet.py").write_text(block)
            made |= runpy.run_path(str(tmp_path / "snippet.py"))
            continue
        for line in block.splitlines():
            command = " ".join(line.split()[:2])
            if command == "pip install":
                continue
            arguments = shlex.split(line + QUICK * (command == "poise train"))[1:]
            result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
            assert result.exit_code == 0, (line, result.output)
            assert SAID[command] in result.output
            seen.add(command)
    assert seen == set(SAID)
    assert "</think>" in made["text"]  # what the adapter wrote
    assert (tmp_path / "runs" / "sums" / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors").is_file()
