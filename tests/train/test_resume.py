"""A run that ended, however it ended, goes on by the same command and ends as if it had never been stopped."""

import errno
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import poise.train.run
from poise.cli import app
from poise.cli.train import command_to_go_on
from poise.engines.trl.checkpoints import UNFINISHED, CheckpointError, checkpoints, newest_whole_checkpoint
from poise.storage import checksums
from poise.storage.run_directory import RunDirectory
from poise.train.config import run_settings
from poise.train.run import TrainingRun

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

HARNESS = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "kill_and_resume.py"))

SETTINGS = {
    "steps": 6,
    "save_steps": 2,
    "families": "sum",
    "per_device_train_batch_size": 4,
    "eval_prompts": 4,
    "check_prompts": 2,
    "check_every": 3,
    "max_completion_length": 24,
}
NAMED = {name.replace("_", "-"): value for name, value in SETTINGS.items()}
OPTIONS = [part for name, value in NAMED.items() for part in (f"--{name}", str(value))]


class Killed(BaseException):
    """What ends a run in the middle of a step."""


def differences(expected: Path, found: Path) -> list[str]:
    """Those of the harness; Python's random numbers are not compared: the checks of shapes in tests draw from them."""
    return [name for name in HARNESS["differences"](expected, found) if not name.endswith("rng_state.pth")]


def trained(path: Path, **named: Any) -> dict[str, Any]:
    return TrainingRun(run_settings(SETTINGS), RunDirectory(path)).train(**named)


def train(output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", "--output", str(output), *arguments], env={"COLUMNS": "120"})


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poise.train.run, "write_learning_curve", lambda directory: None)  # it takes a second


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    trained(path)
    return path


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("stopped") / "run"
    seen: list[int] = []
    summary = trained(path, watch=lambda progress: seen.append(progress.step), stop=lambda: max(seen) >= 2)
    return path, summary


@pytest.fixture
def stopped(stopped_once: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of a run that was stopped after 4 of its 6 steps."""
    return Path(shutil.copytree(stopped_once[0], tmp_path / "stopped" / "run"))


def test_the_comparison_sees_what_differs(whole, stopped):
    found = differences(whole, stopped)
    assert {"metrics.jsonl", "summary.json", "checkpoints/checkpoint-6/model.safetensors"} <= set(found)
    assert "rollouts/step-000003.parquet" not in found
    assert "checkpoints/checkpoint-4/optimizer.pt" not in found
    assert differences(whole, whole) == []


def test_a_stop_waits_until_all_rollouts_are_trained_on_and_the_run_goes_on_exactly(whole, stopped_once, stopped):
    _, summary = stopped_once
    # It was asked after step 3, in the middle of a generation batch.
    assert (summary["steps"], summary["stopped_early"], summary["rollouts"]) == (4, True, 16)
    trained(stopped)
    assert differences(whole, stopped) == []


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_that_breaks_off_in_a_step_goes_on_exactly(whole, tmp_path, step):
    def killed(progress: Any) -> None:
        if progress.step == step:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "run", watch=killed)
    assert [each.name for each in checkpoints(tmp_path / "run" / "checkpoints")] == [
        f"checkpoint-{n}" for n in range(2, step, 2)
    ]
    trained(tmp_path / "run")
    assert differences(whole, tmp_path / "run") == []


def test_a_run_that_breaks_off_after_its_last_checkpoint_only_writes_its_results(whole, tmp_path, monkeypatch):
    def killed(directory: RunDirectory) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(poise.train.run, "write_report", killed)
        with pytest.raises(Killed):
            trained(tmp_path / "run")
    activities: set[str] = set()
    trained(tmp_path / "run", watch=lambda progress: activities.add(progress.activity))
    assert activities == set()  # nothing is measured, nothing is trained
    assert differences(whole, tmp_path / "run") == []


def test_a_run_killed_by_sigkill_ends_bit_identical(whole, tmp_path):
    moment = HARNESS["Moment"]
    moments = [moment(1, True, 0.0), moment(4, False, 0.05), None]
    ends = [HARNESS["sitting"](tmp_path, each, options=NAMED) for each in moments]
    assert [end.split()[0] for end in ends] == ["killed", "killed", "done"]
    assert differences(whole, tmp_path / "run") == []


def test_the_same_command_goes_on_and_after_the_end_does_nothing(whole, stopped):
    gone_on = train(stopped.parent, "--config", str(stopped / "config.yaml"))
    assert gone_on.exit_code == 0, gone_on.output
    assert f"results go to {stopped}\n" in gone_on.output
    assert "\ngoes on from checkpoint-4\n" in gone_on.output
    assert differences(whole, stopped) == []
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    again = train(stopped.parent, "--name", "run", *OPTIONS)
    assert again.exit_code == 0
    assert (
        f"this run is done, and its results are in {stopped}: to train once more, give another --name" in again.output
    )
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before


def test_the_config_of_a_run_with_a_change_makes_a_new_run(stopped):
    result = train(stopped.parent, "--config", str(stopped / "config.yaml"), "--seed", "1", "--layers", "99")
    assert result.exit_code == 2  # its last option is wrong, so that it need not train
    assert "layer 99 is out of range" in result.stderr
    assert [each.name for each in stopped.parent.iterdir()] == ["run"]


def test_an_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(run: TrainingRun, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "train", interrupted)
    result = train(tmp_path, "--name", "run", *OPTIONS)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["poise train: stopped at once", command_to_go_on(tmp_path / "run")]


# Checkpoints that are not what they were, and checkpoints of something else.


def test_a_byte_that_differs_in_any_file_of_a_checkpoint_is_seen_and_the_one_before_is_taken(stopped, caplog):
    folder = stopped / "checkpoints"
    newest, before = folder / "checkpoint-4", folder / "checkpoint-2"
    assert newest_whole_checkpoint(folder) == newest
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert {"model.safetensors", "optimizer.pt", "poise.json", "run.json", checksums.NAME} <= {p.name for p in files}
    for path in files:
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            caplog.clear()
            assert newest_whole_checkpoint(folder) == before, f"{path.name}, byte {place}"
            assert f"{newest} has " in caplog.text
            assert path.name in caplog.text or path.name == checksums.NAME
            assert ": it is passed over" in caplog.text
        for cut in (content[: len(content) // 2], content[:-1], b""):
            path.write_bytes(cut)
            assert newest_whole_checkpoint(folder) == before, f"{path.name}, cut to {len(cut)} bytes"
        path.unlink()
        assert newest_whole_checkpoint(folder) == before, f"{path.name}, missing"
        path.write_bytes(content)
    (newest / "note.txt").write_text("added later")
    assert newest_whole_checkpoint(folder) == newest


def test_a_run_goes_on_exactly_from_the_checkpoint_before_a_spoiled_one(whole, stopped):
    weights = stopped / "checkpoints" / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    trained(stopped)
    assert differences(whole, stopped) == []


def test_without_a_whole_checkpoint_a_run_starts_over(whole, stopped):
    for each in checkpoints(stopped / "checkpoints"):
        (each / checksums.NAME).unlink()
    trained(stopped)
    assert differences(whole, stopped) == []


def test_a_checkpoint_of_another_model_is_refused_with_both_sides(stopped):
    newest = stopped / "checkpoints" / "checkpoint-4"
    state = json.loads((newest / "poise.json").read_text())
    state["fitted_for"]["hidden_size"] = 64
    (newest / "poise.json").write_text(json.dumps(state))
    checksums.write_checksums(newest)
    metrics = (stopped / "metrics.jsonl").read_text()
    result = train(stopped.parent, "--name", "run", *OPTIONS)
    assert result.exit_code == 2
    assert result.stderr == (f"poise train: this run has hidden_size 128, the baseline in {newest} was fitted for 64\n")
    assert (stopped / "metrics.jsonl").read_text() == metrics


def test_a_checkpoint_that_is_asked_for_and_spoiled_is_refused(stopped):
    newest = stopped / "checkpoints" / "checkpoint-4"
    (newest / "optimizer.pt").unlink()
    run = TrainingRun(run_settings(SETTINGS), RunDirectory(stopped))
    with pytest.raises(CheckpointError, match=r"checkpoint-4 has no optimizer\.pt: go on from another checkpoint"):
        run.trainer.train(resume_from_checkpoint=str(newest))


DAMAGED = {
    "a bad line": ("metrics.jsonl", b'{"step": 1\n{"step": "x"}\n', "lines that cannot be read"),
    "zeros": ("metrics.jsonl", bytes(512) + b"\n", "lines that cannot be read"),
    "bad UTF-8": ("metrics.jsonl", b"\xff\xfe\n", "lines that cannot be read"),
    "summary": ("summary.json", b"{", "summary.json is damaged"),
    "stray": ("rollouts/step-x.parquet", b"x", ""),
    "bad step": ("first_bad_step.json", b"[", ""),
    "poise.json": ("checkpoints/checkpoint-4/poise.json", b"{}", "has another poise.json"),
    "checksums": ("checkpoints/checkpoint-4/checksums.sha256", b"", "has another checksums.sha256"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_side_file_is_a_sentence_and_the_run_can_go_on(stopped, damage, caplog):
    name, content, sentence = DAMAGED[damage]
    path = stopped / name
    path.write_bytes((path.read_bytes() if name == "metrics.jsonl" else b"") + content)
    run = TrainingRun(run_settings(SETTINGS), RunDirectory(stopped))
    assert run.checkpoint.name == ("checkpoint-2" if "checkpoint" in name else "checkpoint-4")
    run.directory.cut_back(4)
    assert sentence in caplog.text
    assert [line["step"] for line in run.directory.read_metrics()] == [0, 2, 3, 4]
    assert run.directory.read_summary() == {}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.yaml", b"a: [", r"config\.yaml is damaged: put back"),
        ("config.yaml", b"\xff\xfe", r"config\.yaml is damaged: put back"),
        ("config.yaml", b"- 1", r"config\.yaml is damaged: put back"),
    ],
)
def test_damaged_settings_are_refused_in_a_sentence(stopped, name, content, sentence):
    (stopped / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        TrainingRun(run_settings(SETTINGS), RunDirectory(stopped))


def test_a_checkpoint_without_its_baseline_or_under_another_name_is_passed_over(stopped, caplog):
    newest = stopped / "checkpoints" / "checkpoint-4"
    newest.rename(newest.with_name("checkpoint-9"))
    assert newest_whole_checkpoint(stopped / "checkpoints").name == "checkpoint-2"
    assert "was made after step 4: it was renamed: it is passed over" in caplog.text
    newest.with_name("checkpoint-9").rename(newest)
    for name in (checksums.NAME, "poise.json"):
        (newest / name).unlink()
    assert newest_whole_checkpoint(stopped / "checkpoints").name == "checkpoint-2"
    for name in ("poise.safetensors", "run.json"):
        (newest / name).unlink()
    with pytest.raises(CheckpointError, match=r"has no run\.json: it is none of `poise train`"):
        TrainingRun(run_settings(SETTINGS), RunDirectory(stopped))


def test_states_that_do_not_load_safely_are_one_sentence(stopped):
    newest = stopped / "checkpoints" / "checkpoint-4"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        good = (newest / name).read_bytes()
        torch.save({"state": Killed()}, newest / name)
        checksums.write_checksums(newest)
        run = TrainingRun(run_settings(SETTINGS), RunDirectory(stopped))
        with pytest.raises(CheckpointError, match=r"states of .*checkpoint-4 cannot be loaded safely"):
            run.train()
        (newest / name).write_bytes(good)


# Disks that are full, and folders that cannot be written to.


def test_a_full_disk_while_saving_is_one_sentence_and_the_checkpoint_before_stays_whole(whole, tmp_path, monkeypatch):
    written = checksums.write_checksums

    def full(folder: Path) -> None:
        if folder.name == "checkpoint-4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        written(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write_checksums", full)
        result = train(tmp_path, "--name", "run", *OPTIONS)
    assert result.exit_code == 1
    sentence, then = result.stderr.splitlines()
    assert sentence.startswith("poise train: checkpoint-4 could not be written to ")
    assert "No space left on device" in sentence
    assert sentence.endswith(
        "Make room, or make the folder writable, and start the run again: it goes on from checkpoint-2"
    )
    assert then == command_to_go_on(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / UNFINISHED).exists()
    assert train(tmp_path, "--name", "run", *OPTIONS).exit_code == 0
    assert differences(whole, tmp_path / "run") == []


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=15m none "$1"
"$2" train --output "$1" --name run $3 2> "$4/errors.txt"
echo $? > "$4/code.txt"
cp -r "$1/run" "$4/left"
mount -o remount,size=200m "$1"
"$2" train --output "$1" --name run $3 &&
cp -r "$1/run" "$4/run"
"""
"""A disk with room for one checkpoint, then for all: in a mount namespace, so that nobody else sees it."""


def test_a_disk_that_is_really_full_is_one_sentence_and_with_room_the_run_ends_as_it_would_have(whole, tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    in_namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh"]
    subprocess.run(
        [*in_namespace, disk, Path(sys.executable).with_name("poise"), " ".join(OPTIONS), kept],
        check=True,
        capture_output=True,
    )
    assert (kept / "code.txt").read_text() == "1\n"
    sentence, then = (kept / "errors.txt").read_text().splitlines()[-2:]
    assert sentence.startswith("poise train: checkpoint-4 could not be written to ")
    assert "No space left on device" in sentence
    assert then == command_to_go_on(disk / "run")
    assert newest_whole_checkpoint(kept / "left" / "checkpoints").name == "checkpoint-2"
    assert differences(whole, kept / "run") == []


def test_a_full_disk_while_metrics_are_written_leaves_a_run_that_goes_on(whole, tmp_path, monkeypatch):
    append = RunDirectory.append_metrics

    def full(directory: RunDirectory, line: dict[str, Any]) -> None:
        if line["step"] == 6:
            with directory.metrics.open("a") as file:
                file.write('{"step": 6, "rol')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory.metrics))
        append(directory, line)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", full)
        result = train(tmp_path, "--name", "run", *OPTIONS)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr.splitlines()[0]
    trained(tmp_path / "run")
    assert differences(whole, tmp_path / "run") == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    result = train(tmp_path / "file", "--name", "run", *OPTIONS)
    assert result.exit_code == 2
    assert result.stderr == (
        f"poise train: {tmp_path}/file/run cannot be written to (Not a directory): choose another --output or make it "
        "writable\n"
    )


def test_a_folder_in_which_another_process_trains_is_refused(stopped):
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.name != ".lock"}
    with RunDirectory(stopped).held():
        result = train(stopped.parent, "--name", "run", *OPTIONS)
    assert result.exit_code == 2
    assert result.stderr == f"poise train: {stopped} is in use: another process is training there\n"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = train(tmp_path, *OPTIONS)
    assert result.exit_code == 2
    assert "poise train runs in one process, and 2 were started" in result.stderr
