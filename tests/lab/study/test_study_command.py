"""`poise study` from the command line: it ends with tables, goes on where it was, and refuses what it cannot study."""

import json
import re
import shutil

import pyarrow.parquet
import pytest
import torch
from study_world import made_up_rollouts, saved_file
from typer.testing import CliRunner

from poise.cli import app
from poise.lab.study import rollouts
from poise.lab.study.rollouts import DrawnTask, nothing_to_tell
from poise.lab.study.settings import StudySettings

TINY = [
    *("--prompts", "32", "--held-out-prompts", "16", "--k", "3", "--evidence", "2", "--layers", "2,3"),
    *("--pools", "10", "--critic-epochs", "1", "--critic-learning-rates", "1e-3", "--resamples", "5"),
    *("--max-completion-length", "24", "--tables", "estimators,features,layers,pools,sizes"),
]


def invoked(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "tiny"
    result = invoked(*TINY, "--older-model", "embedded", "--output", folder)
    assert result.exit_code == 0, result.output
    return folder, result


def numbers(folder):
    """Every number of a study but the seconds that it took."""

    def timeless(value):
        if isinstance(value, dict):
            return {
                key: timeless(each) for key, each in value.items() if key not in ("seconds", "cpu_seconds", "command")
            }
        return [timeless(each) for each in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / "study.json").read_text()))


def test_it_says_what_was_found_and_where_it_is(finished):
    folder, result = finished
    assert f"everything goes to {folder}" in result.output
    assert "embedded: drawing held-out" in result.output
    assert "### Recommended" in result.output
    page = (folder / "study.md").read_text()
    for title in ("Estimators", "Features and evidence", "Layers", "Pooling", "Training prompts", "Window age"):
        assert f"### {title}: embedded" in page
    assert "noise ceiling" in page
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {"embedded-estimators.svg", "embedded-layers.png", "embedded-calibration.svg"} <= figures


def test_the_table_is_made_from_the_files(finished):
    folder, _ = finished
    rewards = torch.tensor(rewards_in(folder / "embedded" / "held-out"))
    expected = []
    for evidence in (0, 1):
        others = [draw for draw in (0, 1, 2) if draw != evidence]  # what comes after is the history
        expected.append((rewards[:, evidence] - rewards[:, others].mean(dim=1)).abs().mean())
    lines = numbers(folder)["tasks"]["embedded"]["tables"]["estimators"]["lines"]
    by_name = {line["name"]: line for line in lines}
    assert by_name["rloo"]["mae"]["value"] == pytest.approx(float(sum(expected)) / 2)
    assert {"poise-value", "paper", "prompt-only critic", "trajectory critic"} <= set(by_name)
    assert by_name["trajectory critic"]["extra_bytes"] > by_name["poise-value"]["extra_bytes"]


def rewards_in(folder):
    """Rewards by problem and draw, out of the files."""
    rows = [
        row
        for file in sorted((folder / "completions").iterdir())
        for row in pyarrow.parquet.read_table(file).to_pylist()
    ]
    rewards = [[0.0] * 5 for _ in range(16)]
    for row in rows:
        rewards[row["problem"]][row["draw"]] = row["reward"]
    return rewards


def test_a_second_run_draws_nothing_and_finds_the_same(finished, tmp_path, monkeypatch):
    folder, _ = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)

    def refuse(*args, **options):
        raise AssertionError("it was drawn again")

    monkeypatch.setattr(rollouts, "measured_completions", refuse)
    alone = [*TINY[:-1], "estimators"]
    assert invoked(*alone, "--older-model", "embedded", "--output", again).exit_code == 0
    before, after = (numbers(each)["tasks"]["embedded"] for each in (folder, again))
    assert after["tables"]["estimators"] == before["tables"]["estimators"]
    assert after["noise"] == before["noise"]
    assert after["recommendation"] is None  # the tables that it rests on were not asked for


def test_no_layer_at_all_is_refused_before_a_model_is_loaded():
    with pytest.raises(ValueError, match="a study reads at least 1 layer, got none"):
        StudySettings("no such model", ("embedded",), layers=())


def test_critics_are_judged_in_hindsight_in_the_same_folder(finished, tmp_path):
    folder, _ = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    asked = [*TINY[:-1], "estimators", "--older-model", "embedded", "--critic-hindsight", "--output", again]
    assert invoked(*asked).exit_code == 0
    lines = {line["name"]: line for line in numbers(again)["tasks"]["embedded"]["tables"]["estimators"]["lines"]}
    for name in ("prompt-only critic", "trajectory critic"):
        assert lines[f"{name}, in hindsight"]["mae"]["value"] <= lines[name]["mae"]["value"]


def test_another_study_in_the_same_folder_is_refused(finished):
    folder, _ = finished
    result = invoked(*TINY, "--older-model", "embedded", "--temperature", "0.7", "--output", folder)
    assert result.exit_code == 2
    assert "holds another study: temperature is 1.0 there and 0.7 here" in result.output


def test_saved_rollouts_are_compared_with_and_without_a_model(tmp_path):
    file = saved_file(tmp_path / "run", num_prompts=24)
    alone, with_model = (invoked("--rollouts", file, *more) for more in ((), ("--model", "embedded")))
    assert alone.exit_code == with_model.exit_code == 0, with_model.output
    assert "24 prompts with two graded rollouts or more" in alone.output
    assert "Without a model, and so without features: poise, " in alone.output
    for name in ("poise-value", "paper", "released-qwen3-4b", "rloo", "none"):
        assert f"\n| {name} " in with_model.output
    lines = [line for result in (alone, with_model) for line in result.output.splitlines()]
    [same] = {re.sub(" +", " ", line) for line in lines if line.startswith("| none ")}
    assert same.endswith("| 1.000 |")  # what no baseline at all costs is the unit of weighted risk


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--k", "1"), "k must be at least 3, got 1"),
        (("--evidence", "9"), "evidence must lie between 1 and k = 8, got 9"),
        (("--prompts", "31"), "at least 32 training prompts and 16 held out, got 31 and 128"),
        (("--tables", "layer"), "tables are estimators, features, layers, pools, probes, sizes; got layer"),
        (("--layers", "2,x"), "--layers needs numbers such as 1,2, got '2,x'"),
        (("--layers", "7"), "layer 7 is out of range: this model has layers 0 to 3"),
        (("--critic-learning-rates", "fast"), "needs numbers such as 1e-4,1e-3, got 'fast'"),
        (("--model", "no/such model"), "model needs 'embedded'"),
        (("--rollouts", "none.parquet"), "there is no file none.parquet"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, sentence, tmp_path):
    result = invoked(*arguments, "--output", tmp_path / "study")
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("side", ["training", "held_out"])
def test_rewards_that_are_all_equal_are_said_to_tell_nothing(side, tmp_path):
    sides = {
        "training": made_up_rollouts(40, draws=4, featured=2, seed=0)[0],
        "held_out": made_up_rollouts(20, draws=4, featured=2, seed=1)[0],
    }
    drawn = DrawnTask("t", tmp_path, **sides, older=None, left_out=0)
    assert nothing_to_tell(drawn) == ""
    sides[side].rewards[:] = 1.0
    assert "every rollout earned 1; choose a task that this model solves sometimes" in nothing_to_tell(drawn)
    few = DrawnTask("t", tmp_path, sides["training"][range(31)], sides["held_out"], older=None, left_out=9)
    assert "too few prompts all of whose rollouts could be graded: 31 to train on" in nothing_to_tell(few)


def test_files_in_the_folder_depend_on_nothing_that_is_looked_at_afterwards():
    plain = StudySettings("embedded", ("embedded",)).drawn
    afterwards = StudySettings("copy", ("embedded",), critics=False, critic_epochs=9, resamples=7, tables=("sizes",))
    assert afterwards.drawn == plain
    assert StudySettings("embedded", ("embedded",), seed=1).drawn != plain
