"""Trackers get every number of metrics.jsonl, the held-out ones too, numbers alone, and rollouts as a table."""

import json
import os
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils

from poise.storage.run_directory import RunDirectory
from poise.train.trackers import COLUMNS, Trackers, check_trackers

RUN = "--steps 4 --eval-prompts 8 --check-prompts 4 --check-every 2 --families sum --per-device-train-batch-size 4"


def test_trackio_and_tensorboard_hold_what_the_run_wrote(tmp_path):
    command = [sys.executable, "-m", "poise", "train", *RUN.split(), "--report-to", "trackio,tensorboard", "--json"]
    done = subprocess.run(
        [*command, "--name", "run"],
        cwd=tmp_path,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["trackers"] == [
        f"trackio: {tmp_path}/trackio; trackio show --project huggingface",
        "tensorboard: runs/run/tensorboard; tensorboard --logdir runs/run/tensorboard",
    ]
    assert all(place in done.stderr for place in end["trackers"])
    lines = RunDirectory(tmp_path / "runs" / "run").read_metrics()
    assert any(line.get("poise/ceiling_share", 0) is None for line in lines)  # not known of so few rollouts

    board = EventAccumulator(str(tmp_path / "runs" / "run" / "tensorboard"))
    board.Reload()
    for key in ("held_out/accuracy", "held_out/accuracy/sum", "reward", "poise/baseline_mean"):
        written = [(line["step"], line[key]) for line in lines if key in line]
        assert [(e.step, pytest.approx(e.value)) for e in board.Scalars(f"train/{key}")] == written

    with sqlite3.connect(tmp_path / "trackio" / "huggingface.db") as base:
        logged = [json.loads(text) for (text,) in base.execute("select metrics from metrics order by id")]
    held_out = [line["train/held_out/accuracy"] for line in logged if "train/held_out/accuracy" in line]
    assert held_out == [line["held_out/accuracy"] for line in lines if "held_out/accuracy" in line]
    tables = [line["rollouts"]["_value"] for line in logged if "rollouts" in line]
    assert [len(table) for table in tables] == [8, 8]
    assert {"step", "prompt", "completion", "reward", "baseline", "advantage"} <= set(tables[0][0])
    assert [number for line in logged for name, number in line.items() if name != "rollouts" and number is None] == []


@pytest.mark.parametrize(("name", "callback"), [("wandb", "WandbCallback"), ("mlflow", "MLflowCallback")])
def test_a_tracker_comes_last_and_gets_a_table_in_its_own_way(tmp_path, monkeypatch, name, callback):
    """Neither is installed here: the module has the functions that are called, with their real signatures."""
    given = []
    module = SimpleNamespace(
        Table=lambda dataframe: dataframe.to_dict("list"),
        log=lambda data: given.append(data["rollouts"]),
        log_table=lambda data, artifact_file: given.append({**data, "file": [artifact_file]}),
    )
    monkeypatch.setitem(sys.modules, name, module)
    tracker = object.__new__(getattr(integration_utils, callback))
    tracker._auto_end_run = False  # asked when it is thrown away
    other = object()
    handler = SimpleNamespace(callbacks=[tracker, other])
    rollouts = {"step": 3, **{column: [f"{column} {row}" for row in range(100)] for column in COLUMNS}}
    trainer = SimpleNamespace(callback_handler=handler, last_rollouts=rollouts, args=SimpleNamespace(run_name=None))
    trainer.add_callback = lambda added: handler.callbacks.append(added)
    trackers = Trackers(trainer, tmp_path / "run", dict)
    assert handler.callbacks == [other, tracker, trackers]
    assert trainer.args.run_name == "run"
    arguments = TrainingArguments(str(tmp_path), report_to=[])
    for logs in ({"loss": 1.0}, {"loss": 1.0, "held_out/prompts": 8}):
        trackers.on_log(arguments, TrainerState(global_step=4), TrainerControl(), logs)
    (table,) = given
    assert (table["step"][0], table["prompt"][63], len(table["reward"])) == (4, "prompts 63", 64)
    assert table.get("file", ["rollouts/step-000004.json"]) == ["rollouts/step-000004.json"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("swanlab", "report_to needs swanlab, which is not installed: pip install swanlab"),
        ("x", "names out of .*got 'x'"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_sentence(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_trackers([name])
