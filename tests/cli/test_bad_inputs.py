"""A catalogue of bad input to the commands: one sentence, exit code 2, and nothing lost or left behind.

What single functions refuse is tested beside them; this is what somebody at a terminal sees.
"""

import hashlib
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from poise.cli import app

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


def rows(**columns: str) -> str:
    """Forty lines of JSON; `{n}` stands for the number of the line."""
    return "\n".join(
        json.dumps({name: text.replace("{n}", str(n)) for name, text in columns.items()}) for n in range(40)
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good and bad files in it."""
    texts = {
        "good.jsonl": rows(prompt="say {n}", answer="{n}"),
        "empty.jsonl": "",
        "cut.jsonl": '{"prompt": "a", "answer": "1"}\n{"prompt": "b", "ans',
        "list.jsonl": "[1, 2]\n",
        "no-gold.jsonl": rows(prompt="say {n}", answer=""),
        "bad-gold.jsonl": rows(prompt="say {n}", answer=r"\boxed{}"),
        "bad-tests.jsonl": rows(prompt="say {n}", tests="f(1) should be 2"),
        "same.jsonl": rows(prompt="say it", answer="{n}"),
        "list.yaml": "- 1\n",
        "cut.yaml": "steps: [1\n",
        "unknown.yaml": "stepz: 1\n",
        "bad_inputs_rewards.py": (
            "def raises(completions, **columns): raise KeyError('x')\ndef few(completions, **columns): return [1.0]\n"
        ),
        "file": "x",
        "odd.jsonl": rows(prompt="say {n}", answer="{n}", verifier="exakt"),
        "topics.jsonl": rows(prompt="say {n}", answer="{n}", domain="x" * 300),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "no-model").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        # Data.
        ("train --task empty.jsonl", "empty.jsonl holds no problems"),
        ("train --task cut.jsonl", "cut.jsonl line 2 is not JSON: "),
        ("train --task list.jsonl", "list.jsonl line 1 must be an object with named columns, got a list"),
        ("train --task binary.jsonl", "binary.jsonl is not text in UTF-8: invalid start byte at byte 0"),
        ("train --task bad.parquet", "bad.parquet is not parquet: "),
        ("train --task gone.jsonl", "there is no file gone.jsonl"),
        ("train --task good.jsonl?answer=reply", "good.jsonl has no column 'reply'"),
        ("train --task good.jsonl?verifier=magic", "verifier needs math, exact, choice, python, got 'magic'"),
        ("train --task good.jsonl?verifier=python", "good.jsonl needs a column tests, test_list, "),
        ("train --task same.jsonl", "same.jsonl holds no problems"),
        # Gold answers and tests that no verifier can use.
        ("train --task no-gold.jsonl?verifier=exact", "the verifier 'exact' does not accept 32 of 32 gold answers"),
        (
            "train --task bad-tests.jsonl?verifier=python",
            "the verifier 'python' does not accept 32 of 32 .*no readable tests",
        ),
        # Rewards.
        ("train --reward bad_inputs_rewards:raises", "reward .* raised KeyError on gold answers: 'x'"),
        ("train --reward bad_inputs_rewards:few", "reward .* must return a list with one number or None for each of 2"),
        (
            "train --reward bad_inputs_rewards:gone",
            "module bad_inputs_rewards has no function 'gone': it has raises, few",
        ),
        ("train --reward bad_inputs_rewards", "a reward needs the form package.module:function or path.py:function"),
        ("train --reward-weight 2 --reward-weight 3", "every reward needs one weight"),
        ("train --on-verifier-timeout right", "on_verifier_timeout needs wrong or ungradable, got 'right'"),
        ("train --seconds-a-rollout 0", "seconds_a_rollout must be more than 0, got 0.0"),
        ("train --seconds-a-rollout nan", "seconds_a_rollout must be more than 0, got nan"),
        ("train --mebibytes-a-rollout 0", "mebibytes_a_rollout must be 1 or more, got 0"),
        # Settings.
        ("train --config list.yaml", "list.yaml must map names of settings to values, got a list"),
        ("train --config cut.yaml", "cut.yaml is not yaml: "),
        ("train --config unknown.yaml", "there is no setting stepz; the closest is steps"),
        ("train --steps -3", "steps must be 1 or more, got -3"),
        ("train --save-steps -1", r"save_steps must be more than 0, got -1"),
        ("train --top-p 2", "top_p must be greater than 0 and at most 1, got 2"),
        ("train --num-generations 1", "num_generations must be at least 2, got 1"),
        ("train --learning-rate -1", "learning_rate must not be below 0, and finite, got -1"),
        ("train --learning-rate inf", "learning_rate must not be below 0, and finite, got inf"),
        ("train --temperature 0", "temperature must be greater than 0: sampling needs it, got 0"),
        ("train --layers -1", r"layers are counted from 0, got \[-1\]"),
        ("train --lora-r 4", "lora_r does nothing without use_peft: give --use-peft too"),
        ("train --use-peft --lora-r 0", "lora_r and lora_alpha must be 1 or more, got 0 and 32"),
        ("train --load-in-4bit", "weights of 4 or 8 bits cannot be trained, only an adapter on them"),
        ("train --loss-type x", "loss_type must be one of "),
        ("train --pool-tokens 0", "hidden states are pooled over 1 token or more, got pool_tokens=0"),
        ("train --poise-feature-pass never", "poise_feature_pass must be 'auto' or 'require_free', got 'never'"),
        ("train --preset-options {windw:1}", "preset 'poise' has the fields .*; got 'windw:1'"),
        ("train --layers 99", "layer 99 is out of range"),
        ("train --model no-model", "the folder no-model is no model: it holds no config.json"),
        ("train --model no/model", "model 'no/model' cannot be loaded: "),
        # Names, files and lines that cannot be read.
        ("train --name ../out", r"--name needs the name of a folder inside runs, got '\.\./out'"),
        ("train --name a/b", "--name needs the name of a folder inside runs, got 'a/b'"),
        ("train --name .", r"--name needs the name of a folder inside runs, got '\.'"),
        ("train --config binary.yaml", "binary.yaml is not text in UTF-8: invalid start byte at byte 0"),
        ("train --steps 1.5", "steps needs a whole number, got '1.5'"),
        ("train --task odd.jsonl", "odd.jsonl line 1 names a verifier 'exakt', which does not exist: there are math,"),
        (
            "train --task topics.jsonl",
            "line 1: a domain has a name of 200 characters at most, and the column 'domain' ",
        ),
        ("train --task good.jsonl?verifer=exact", "options of a data set are prompt, .*, got verifer"),
        ("train --task reasoning-gym:nosuch", "reasoning-gym has no data set 'nosuch'"),
        ("train --reward gone.py:f", "reward 'gone.py:f' cannot be imported: FileNotFoundError: there is no file gone"),
        ("train --reward bad_inputs_rewards.py:gone", "module bad_inputs_rewards.py has no function 'gone': it has "),
        ("train --reward-weight x", r"reward_weights needs a list such as 1,2, got \['x'\]"),
        ("train --lr-scheduler-type nosuch", "lr_scheduler_type needs one of linear, .*, got 'nosuch'"),
        ("eval --task good.jsonl --reward gone.py:f", "reward 'gone.py:f' cannot be imported: "),
        ("eval --top-p 2", "top_p must be greater than 0 and at most 1, got 2"),
        ("eval --top-k -1", r"top_k must be 0 \(all tokens\) or more, got -1"),
        ("eval --task aime24", "--data-dir needs a folder with the files of math sets, got data"),
        ("eval --k many", "Invalid value for '--k': "),
        ("eval --bogus", "No such option: --bogus; --help says more"),
        # Other commands.
        ("eval no-model", "there is no file no-model/config.yaml"),
        ("eval no-model --model embedded", "the run no-model and --model embedded are two models"),
        ("eval --k 0", "k must be 1 or more, got 0"),
        ("eval --prompts 0", "prompts must be 1 or more, got 0"),
        ("eval --model no-model", "the folder no-model is no model: it holds no config.json"),
        ("eval --split middle", "split needs 'train' or 'heldout', got 'middle'"),
        ("eval --temperature 0", "temperature must be greater than 0, got 0"),
        ("eval --chat-template-kwargs x", "--chat-template-kwargs needs a mapping such as "),
        ("eval --task empty.jsonl", "empty.jsonl holds no problems"),
        ("report gone", "gone holds no run: a run has a file metrics.jsonl"),
        ("report file", "file holds no run: a run has a file metrics.jsonl"),
        ("report no-model", "no-model holds no run: a run has a file metrics.jsonl"),
        ("study --task gone.jsonl", "there is no file gone.jsonl"),
        ("study --temperature 0", "temperature must be greater than 0, got 0"),
        ("study --max-completion-length 0", "max_completion_length must be 1 or more, got 0"),
        ("study --rollouts bad.parquet", "bad.parquet is no parquet file: "),
        ("study --k 2", "k must be at least 3, got 2"),
        ("compare --task gone.jsonl", "there is no file gone.jsonl"),
        ("compare --arms nosuch", "nosuch"),
        ("compare --jobs 0", "jobs must be 1 or more, got 0"),
        ("data good.jsonl out.txt", "the file to write must end with .parquet, got out.txt"),
        ("data good.jsonl out.parquet --num 0", "--num must be 1 or more, got 0"),
        ("data embedded out.parquet", "a task that is generated has no end: --num says how many"),
        ("doctor --task cut.jsonl", "cut.jsonl line 2 is not JSON: "),
        ("doctor list.yaml", "list.yaml must map names of settings to values, got a list"),
        ("doctor no-model", "there is no file no-model/config.yaml"),
        ("doctor --steps 0", "steps must be 1 or more, got 0"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_lost(folder: Path, arguments: str, sentence: str):
    before = digests(folder)
    command, *rest = arguments.split()
    name = ["--name", "bad"] if command == "train" and "--name" not in rest else []
    result = CliRunner().invoke(app, [command, *rest, *name], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert re.match(f"poise {command}: .*({sentence})", line), line
    assert digests(folder) == before
    assert not (folder / "runs" / "bad").exists()
