"""The command: what it prints and refuses, and a whole short run with everything that it leaves on disk."""

import inspect
import json
import logging
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from trl.trainer import grpo_trainer
from typer.testing import CliRunner, Result

from poise.cli import app
from poise.cli.given_settings import extra_options
from poise.cli.terminal import clock, quiet_hosts, stop_on_interrupt
from poise.cli.train import USEFUL_OPTIONS
from poise.cli.train_progress import PlainLines, status_text
from poise.evaluate import HeldOutAccuracy
from poise.storage.run_directory import RunDirectory
from poise.tasks.grading import Grader, Verdict
from poise.train.config import loading_types, run_settings, trainer_types
from poise.train.recorder import Progress
from poise.train.run import TrainingRun

# Hosts warn of their own deprecated options; the command silences them, direct calls here do not.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

ROOT = Path(__file__).parents[2]
SHORT = ["--steps", "4", "--eval-prompts", "24", "--families", "sum,sort", "--per-device-train-batch-size", "8"]


def poise(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


# Parsing and help.


def test_version_is_printed():
    assert re.fullmatch(r"poise \d+\.\d+\S*\n", poise("--version").output)


def test_help_waits_for_no_host_and_runs_as_a_module():
    hosts = "sorted({'torch', 'transformers', 'trl', 'datasets', 'scipy', 'matplotlib'} & set(sys.modules))"
    script = "import sys\nsys.argv = ['poise', '--help']\nfrom poise.__main__ import main\n"
    script += f"try:\n    main()\nfinally:\n    print({hosts})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert " train " in done.stdout


def test_help_is_short_and_its_options_exist():
    text = poise("train", "--help").output
    assert len(text.splitlines()) < 50
    for name in USEFUL_OPTIONS:
        assert f"--{name}" in text
        assert name.replace("-", "_") in trainer_types() | loading_types()
    assert "poise train --list-options" in text


def test_every_setting_is_listed_once_with_its_default():
    text = poise("train", "--list-options").output
    names = re.findall(r"^--(\S+) \(", text, flags=re.MULTILINE)
    assert len(names) == len(set(names)) > 150
    assert "--learning-rate (0." in text
    assert "--seed (0)" in text
    assert "--output-dir" not in text


def test_options_take_values_signs_and_flags():
    arguments = ["--beta", "-1e-3", "--top-k=5", "--use-vllm", "--no-bf16", "--layers", "1,2"]
    assert extra_options(arguments) == {
        "beta": "-1e-3",
        "top_k": "5",
        "use_vllm": True,
        "bf16": False,
        "layers": "1,2",
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--learnin-rate", "1"], "there is no setting learnin_rate; the closest is learning_rate"),
        (["--learning-rate", "fast"], "learning_rate needs a number, got 'fast'"),
        (["--learning-rate"], "learning_rate needs a number, got True"),
        (["stray"], "'stray' belongs to no option"),
        (["--beta", "1", "2"], "'2' belongs to no option"),
        (["--beta", "1", "--beta", "2"], "--beta is given twice"),
        (["--steps", "1", "--max-steps", "2"], "steps and max_steps are the same setting"),
        (["--preset", "posie"], "presets are poise, .*; got 'posie'"),
        (
            ["--scale-rewards", "group"],
            "scale_rewards must be 'none', or 'batch' .*, got 'group'",
        ),
        (["--num-generations", "1"], "num_generations must be at least 2, got 1"),
        (["--families", "hanoi"], "families needs names out of sum"),
        (["--layers", "99"], "layer 99 is out of range: this model has layers 0 to 3"),
        (["--config", "no/such.yaml"], "there is no file no/such.yaml"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path, arguments, sentence):
    result = poise("train", "--output", str(tmp_path / "runs"), *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.match(f"poise train: .*{sentence}", line)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1\n- 2\n", "must map names of settings to values, got a list"),
        ("a: [", "is not yaml: "),
        ("learnin-rate: 1\n", "there is no setting learnin_rate; the closest is learning_rate"),
    ],
)
def test_a_wrong_config_file_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / "config.yaml").write_text(text)
    result = poise("train", "--output", str(tmp_path / "runs"), "--config", str(tmp_path / "config.yaml"))
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not (tmp_path / "runs").exists()


# A whole run.


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the run `first`, and what the command printed."""
    output = tmp_path_factory.mktemp("runs")
    result = poise(
        "train", "--output", str(output), "--name", "first", "--check-every", "2", "--check-prompts", "16", *SHORT
    )
    assert result.exit_code == 0, result.output
    return output, result.output


def test_screen_says_what_runs_where_how_it_goes_and_how_it_ended(runs):
    output, text = runs
    lines = text.splitlines()
    assert lines[0] == "poise: embedded model on sum, sort; baseline 'poise', 4 steps, seed 0"
    assert lines[1] == f"results go to {output / 'first'}"
    assert lines[3] == "a generation batch: 8 prompts, 16 rollouts, 2 steps; one line of metrics each"
    assert lines[4] == "measuring before training: 24 held-out problems"
    numbers = r"loss \S+  reward 0\.\d\d  held-out accuracy 0\.\d\d  entropy \d\.\d\d  length \d+  cut off \d+%"
    assert re.search(rf"^step 2/4  {numbers}  \d+ tokens/s  0:\d\d left$", text, re.MULTILINE)
    assert re.search(r'^sample at step 1, reward [01]\.00: prompt "\S.*" completion ".*"$', text, re.MULTILINE)
    assert re.search(r"^ +all +0\.\d{3} +0\.\d{3} +[+-]0\.\d{3} *$", text, re.MULTILINE)
    assert f"again: poise train --config {output / 'first'}/config.yaml" in text
    for noise in ("Warning", "it/s", "train_runtime", "Loading weights", "{'"):
        assert noise not in text


def test_a_finished_run_can_be_made_longer_and_is_measured_by_its_folder(runs, tmp_path):
    output, _ = runs
    shutil.copytree(output / "first", tmp_path / "first")
    longer = ["--check-every", "2", "--check-prompts", "16", *SHORT, "--steps", "6"]
    longer = [each for place, each in enumerate(longer) if not (each in ("--steps", "4") and place in (4, 5))]
    result = poise("train", "--output", str(tmp_path), "--name", "first", *longer)
    assert result.exit_code == 0, result.output
    assert "the run has 6 steps in place of 4" in result.output.replace("\n", " ")
    assert f"next: poise eval {tmp_path}/first" in result.output
    lines = RunDirectory(tmp_path / "first").read_metrics()
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert lines[:3] == RunDirectory(output / "first").read_metrics()
    result = poise("eval", str(tmp_path / "first"), "--k", "2", "--prompts", "6", "--output", str(tmp_path / "e"))
    assert result.exit_code == 0, result.output
    assert "checkpoint-6 on embedded?families=sum,sort" in result.output


def test_metrics_have_a_line_for_every_generation_batch(runs):
    lines = RunDirectory(runs[0] / "first").read_metrics()
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert [line["rollouts"] for line in lines] == [0, 16, 32]
    assert [line["step"] for line in lines if "held_out/accuracy" in line] == [0, 2, 4]
    assert [line["held_out/prompts"] for line in lines if "held_out/prompts" in line] == [24, 16, 24]
    assert all("loss" in line and line["reward"] >= 0 and line["seconds"] > 0 for line in lines[1:])
    assert "poise/noise_ceiling" in lines[1]
    assert lines[1]["poise/extra_forward"] == 0


def test_every_logged_metric_has_its_line_in_the_docs_and_every_line_its_metric(runs):
    page = (ROOT / "docs" / "metrics.md").read_text()
    cells = re.findall(r"^\| (`[^|]*`) \|", page, flags=re.MULTILINE)
    documented = [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]
    assert len(documented) == len(set(documented))
    patterns = {key: re.compile(re.sub(r"<\w+>", ".+", key)) for key in documented}
    logged = {key for line in RunDirectory(runs[0] / "first").read_metrics() for key in line}
    assert [key for key in logged if not any(each.fullmatch(key) for each in patterns.values())] == []
    # A short run does not log everything: of the rest, a part between variables stands in poise or in TRL.
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py")) + inspect.getsource(grpo_trainer)
    others = [key for key, each in patterns.items() if not any(map(each.fullmatch, logged))]
    assert [key for key in others if key.partition("<")[0] not in sources] == []


def test_summary_agrees_with_metrics_and_rollouts(runs):
    directory = RunDirectory(runs[0] / "first")
    summary = json.loads(directory.summary.read_text())
    lines = directory.read_metrics()
    assert summary["accuracy_before"] == lines[0]["held_out/accuracy"]
    assert summary["accuracy_after"] == lines[-1]["held_out/accuracy"]
    assert set(summary["accuracy_before_by_domain"]) == set(summary["accuracy_after_by_domain"]) == {"sum", "sort"}
    assert (summary["steps"], summary["rollouts"], summary["stopped_early"]) == (4, 32, False)
    assert summary["held_out_prompts"] == 24
    tables = [pyarrow.parquet.read_table(path).to_pydict() for path in sorted(directory.rollouts.iterdir())]
    characters = sum(len(text.replace("</think>", "#")) for table in tables for text in table["completion"])
    # One token a character, and one for the end where there was room for it.
    assert characters <= summary["generated_tokens"] <= characters + 32
    assert {"poise", "python", "torch", "transformers", "trl", "numpy"} == set(summary["versions"])


def test_rollouts_are_pairs_with_the_advantages_of_their_baselines(runs):
    directory = RunDirectory(runs[0] / "first")
    assert sorted(path.name for path in directory.rollouts.iterdir()) == ["step-000001.parquet", "step-000003.parquet"]
    rows = pyarrow.parquet.read_table(directory.rollouts / "step-000003.parquet").to_pylist()
    lines = directory.read_metrics()
    assert len(rows) == 16
    assert sum(row["reward"] for row in rows) / 16 == pytest.approx(lines[2]["reward"])
    for number, row in enumerate(rows):
        assert row["step"] == 3
        assert row["advantage"] == pytest.approx(row["reward"] - row["baseline"])
        assert row["sibling"] != number
        assert rows[row["sibling"]]["prompt"] == row["prompt"]
        assert row["prompt"].startswith(row["domain"])
        assert 0 <= row["value"] <= 1 or abs(row["value"]) < 2


def test_checkpoint_holds_policy_and_baseline(runs):
    checkpoints = RunDirectory(runs[0] / "first").checkpoints
    names = {path.name for path in (checkpoints / "checkpoint-4").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "poise.safetensors", "poise.json"} <= names


def test_learning_curve_is_drawn(runs):
    assert (runs[0] / "first" / "learning_curve.png").stat().st_size > 5_000
    assert "<svg" in (runs[0] / "first" / "learning_curve.svg").read_text()


def test_config_is_that_of_the_run(runs):
    settings = yaml.safe_load((runs[0] / "first" / "config.yaml").read_text())
    assert settings["families"] == ["sum", "sort"]
    assert (settings["steps"], settings["check_every"], settings["per_device_train_batch_size"]) == (4, 2, 8)
    assert settings["preset"] == "poise"


def test_a_run_s_config_makes_the_same_rollouts_whether_or_not_it_is_measured(runs):
    output, _ = runs
    config = str(output / "first" / "config.yaml")
    for name, changes in {"again": ["--check-every", "0"], "other": ["--seed", "1"]}.items():
        result = poise("train", "--output", str(output), "--name", name, "--config", config, *changes)
        assert result.exit_code == 0, result.output

    def rollouts(name: str) -> dict[str, list]:
        return pyarrow.parquet.read_table(output / name / "rollouts" / "step-000003.parquet").to_pydict()

    # The second generation batch comes after two updates; between them and it the first run was measured.
    assert rollouts("again") == rollouts("first")
    assert rollouts("other") != rollouts("first")
    first, again = (yaml.safe_load((output / name / "config.yaml").read_text()) for name in ("first", "again"))
    assert again == first | {"check_every": 0}
    last = [RunDirectory(output / name).read_metrics()[-1] for name in ("first", "again")]
    assert last[0]["loss"] == last[1]["loss"]
    assert last[0]["held_out/accuracy"] == last[1]["held_out/accuracy"]


def test_the_name_of_a_run_with_other_settings_is_refused_with_both_sides_and_nothing_is_lost(runs):
    output, _ = runs
    before = (output / "first" / "metrics.jsonl").read_text()
    result = poise("train", "--output", str(output), "--name", "first", *SHORT)
    assert result.exit_code == 2
    assert "holds another run: check_prompts is 16 there and 256 here. Choose another --name" in result.stderr
    assert (output / "first" / "metrics.jsonl").read_text() == before


def test_a_run_that_is_stopped_ends_as_a_short_one(tmp_path):
    given = {"steps": 50, "eval_prompts": 4, "families": "sum", "per_device_train_batch_size": 4, "preset": "rloo"}
    run = TrainingRun(run_settings(given), RunDirectory.create(tmp_path / "run"))
    seen: list[int] = []
    summary = run.train(watch=lambda progress: seen.append(progress.step), stop=lambda: seen[-1] >= 1)
    assert (summary["steps"], summary["stopped_early"], summary["rollouts"]) == (2, True, 8)
    assert json.loads(run.directory.summary.read_text()) == summary
    assert [line["step"] for line in run.directory.read_metrics()] == [0, 2]
    assert (run.directory.checkpoints / "checkpoint-2" / "poise.json").exists()
    rows = pyarrow.parquet.read_table(run.directory.rollouts / "step-000001.parquet").to_pylist()
    assert {row["value"] for row in rows} == {None}


def test_a_run_that_cannot_grade_what_it_samples_is_stopped_and_shows_what_it_could_not_grade(tmp_path, monkeypatch):
    verdicts = Grader.verdicts

    def lost_where_wrong(grader, completions, problems):
        found = verdicts(grader, completions, problems)
        return [Verdict(math.nan, "worker lost") if each.reward == 0 else each for each in found]

    monkeypatch.setattr(Grader, "verdicts", lost_where_wrong)
    options = ["--steps", "40", "--eval-prompts", "8", "--families", "sum", "--per-device-train-batch-size", "4"]
    result = poise("train", *options, "--output", str(tmp_path), "--name", "run")
    assert result.exit_code == 1
    assert re.search(
        r"^poise train: stopped: \d\d% of the rollouts of the last 5 batches could not be graded \(.*worker lost.*\): "
        r"look at ungradable\.jsonl, and mend the data or the verifier$",
        result.stderr,
        flags=re.MULTILINE,
    )
    assert result.stdout.count(": worker lost: prompt 'sum ") == 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] < 40
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{summary['steps']}").is_dir()


# The screen.


def test_the_first_interrupt_asks_and_the_second_interrupts(capsys):
    with stop_on_interrupt() as asked:
        assert not asked
        signal.raise_signal(signal.SIGINT)
        assert asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "Ctrl-C again to leave at once" in capsys.readouterr().out


def test_hosts_are_silent_and_poise_is_heard(capsys):
    with quiet_hosts():
        warnings.warn("the host will rename an option", FutureWarning, stacklevel=1)
        logging.getLogger("trl").warning("a host's word")
        warnings.warn("poise is tested with another host", UserWarning, stacklevel=1)
        logging.getLogger("poise.engines").warning("one more pass")
    assert capsys.readouterr().out.splitlines() == ["note: poise is tested with another host", "note: one more pass"]
    with pytest.raises(UserWarning, match="as before"):
        warnings.warn("poise warns as before", UserWarning, stacklevel=1)


def test_status_shows_only_what_is_known():
    progress = Progress(steps=100)
    assert status_text(progress) == ""
    progress.reward, progress.skipped_steps = 0.5, 2
    progress.held_out = HeldOutAccuracy(math.nan, {}, 8, reward=0.375)
    progress.line = {"loss": -0.00123, "entropy": None, "completions/mean_length": 23.4, "poise/ceiling_share": 0.5}
    progress.tokens_a_second = 200.4
    told = "loss -0.0012  reward 0.50  held-out reward 0.38  length 23  200 tokens/s  skipped 2"
    assert status_text(progress) == told


def test_plain_lines_come_at_twentieths_and_samples_at_tenths_with_nothing_hidden_in_them(capsys):
    show = PlainLines()
    sample = {"step": 7, "prompt": "say\n\x1b[2Jhi", "completion": "\u202e" + "x" * 1_000_000, "reward": math.nan}
    for step in range(101):
        line = {"step": step, "loss": 0.1} if step else {}
        show(Progress(steps=100, activity="training", step=step, seconds=float(step), line=line, sample=sample))
    lines = capsys.readouterr().out.splitlines()
    steps, samples = ([line for line in lines if line.startswith(name)] for name in ("step", "sample"))
    assert (len(steps), len(samples), len(lines)) == (20, 10, 30)
    assert steps[-1].startswith("step 100/100")
    assert "0:50 left" in steps[9]
    assert samples[0].startswith('sample at step 7, ungradable: prompt "say\\n\\u001b[2Jhi" completion "\\u202ex')
    assert max(map(len, lines)) < 500


def poise_process(*arguments: str, folder: Path, **named) -> subprocess.Popen:
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    command = [sys.executable, "-m", "poise", "train", *SHORT, "--output", str(folder), "--name", "a run", *arguments]
    return subprocess.Popen(command, env=environment, **named)


def test_a_terminal_shows_a_bar_with_numbers_and_samples(tmp_path):
    ours, theirs = pty.openpty()
    process = poise_process(folder=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode())
    assert process.wait() == 0, text
    for words in ("measuring before training", "24/24 problems", "4/4 steps", "held-out accuracy", "tokens/s"):
        assert words in text, words
    assert re.search(r"sample at step 1, reward [01]\.00\r\n  s\w+ \S+<think>\r\n  ", text)
    assert "ceiling share" not in text
    assert f"look at {tmp_path}/a run/report.html" in text
    assert f"next: poise eval '{tmp_path}/a run'" in text


def test_json_lines_on_a_pipe_are_all_of_standard_output(tmp_path):
    process = poise_process("--json", folder=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate()
    assert process.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    named = [event["event"] for event in events]
    assert named[0] == "start"
    assert named[-1] == "end"
    assert Counter(named) == {"start": 1, "measuring": 3, "metrics": 3, "sample": 2, "end": 1}
    assert events[0]["folder"] == f"{tmp_path}/a run"
    assert [event["step"] for event in events if event["event"] == "metrics"] == [0, 2, 4]
    assert events[-1]["summary"] == json.loads((tmp_path / "a run" / "summary.json").read_text())
    assert events[-1]["next"] == f"poise eval '{tmp_path}/a run'"
    assert "\x1b" not in out + err
    assert "held-out accuracy" in err


def test_clock_shows_minutes_and_seconds():
    assert clock(125.9) == "2:05"
