"""The page of a run without a browser: its data, its sentences, its HTML, and what it says of broken runs."""

import base64
import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import HOSTILE, finished_run, pair_batch
from typer.testing import CliRunner

from poise.cli import app
from poise.report import page_data
from poise.report.answers import answers, far_from_value, is_it_learning
from poise.report.baseline_gain import CONSTANT, NONE, RLOO, difficulty, errors_of_simple_values, noise, ratios
from poise.report.charts import evidence_strips, learning_charts, phase_chart, value_charts
from poise.report.page import SCRIPTS, report_page, write_report
from poise.report.page_data import page_head, page_rollouts, shortened
from poise.report.rollout_files import RolloutReader
from poise.storage.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path):
    return finished_run(tmp_path / "run")


def data_of(html, name):
    """What a browser would unpack."""
    text = re.search(rf'id="{name}-data">([^<]*)<', html)[1]
    return json.loads(gzip.decompress(base64.b64decode(text)))


def charts_of(head):
    return {chart["title"]: chart for chart in head["charts"]}


# The page.


def test_page_stands_alone_and_holds_data_as_base64_alone(directory):
    html = report_page(directory)
    shell = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"\bon\w+=|\bsrc=|<(img|iframe|object|embed)", shell)
    assert re.findall(r'(?:href|src)="(?!#|data:,)([^"]*)"', shell) == ["https://arxiv.org/abs/2605.07579"]  # a link
    assert "url(" not in html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-")
    assert "connect-src 'none'" in policy
    assert "alert(" not in html
    assert HOSTILE in data_of(html, "rollout")["completion"]
    scripts = [Path(page_data.__file__).parent / "page" / name for name in SCRIPTS[1:]]
    texts = "".join(each.read_text(encoding="utf-8") for each in scripts)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", texts)


def test_head_and_rollouts_hold_what_the_run_left(directory):
    html = report_page(directory)
    head, rollouts = data_of(html, "head"), data_of(html, "rollout")
    assert head["name"] == "run"
    assert head["finished"]
    assert head["notes"] == []
    assert [each["question"] for each in head["answers"]] == [
        "What was subtracted from the rewards?",
        "Why subtract anything?",
        "Is the baseline any good?",
        "Is the policy learning?",
        "What to do next?",
    ]
    assert charts_of(head)["Reward and held-out problems"]["series"][-1]["y"] == [0.25, 0.75]
    assert head["domains"] == [["sum", 0.25, 0.75]]
    assert rollouts["rows"] == 8
    second = {name: rollouts[name][6] for name in ("step", "row", "reward", "baseline", "sibling", "truncated")}
    assert second == {"step": 2, "row": 2, "reward": 0.0, "baseline": 0.75, "sibling": 7, "truncated": 1}
    prompts, domains, gold = (rollouts[name] for name in ("prompt", "domain", "answer"))
    assert (prompts["distinct"], prompts["at"][-4:]) == (["p1", "<i>p2</i>"], [0, 0, 1, 1])
    assert domains["distinct"] == ["sum", "<u>"]
    assert (gold["distinct"], gold["at"][:3]) == (["4"], [0, 0, -1])
    assert rollouts["parts"]["distinct"][rollouts["parts"]["at"][0]] == {"right": 1.0, "short": 0.5}
    assert rollouts["tokens"][:2] == ["281c", None]  # "on" of 0.5 nats, "e" of 1: 8 and 12 twelfths
    assert rollouts["cause"]["distinct"] == ["worker lost"]


def test_page_is_the_same_for_the_same_run(directory):
    assert report_page(directory) == report_page(directory)


@pytest.mark.parametrize(
    ("break_it", "sentence", "is_there"),
    [
        (lambda d: d.summary.unlink(), "There is no summary.json: the run is still going", True),
        (lambda d: d.summary.write_text("{"), "There is no summary.json", True),
        (
            lambda d: (d.rollouts / "step-000002.parquet").write_bytes(b"PAR1 cut off"),
            "step-000002.parquet is no parquet file",
            True,
        ),
        (lambda d: [each.unlink() for each in d.rollouts.glob("*")], "There are no rollout files (under verl", False),
        (
            lambda d: d.metrics.write_text("nonsense\n" + d.metrics.read_text() + '{"step": 3'),
            "1 lines of metrics.jsonl cannot be read, and are left out.",
            True,
        ),
        (lambda d: d.write_summary({"steps": 1, "stopped_early": True}), "was stopped after 1 steps", True),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_shown(directory, break_it, sentence, is_there):
    break_it(directory)
    head = data_of(html := report_page(directory), "head")
    assert any(sentence in note for note in head["notes"]), head["notes"]
    assert bool(data_of(html, "rollout")["rows"]) == is_there
    assert "Reward and held-out problems" in charts_of(head)


def test_a_run_that_has_barely_begun_is_too_little_data_and_no_error(tmp_path):
    head = page_head(RolloutReader(RunDirectory.create(tmp_path / "run")))
    assert [each["answer"] for each in head["answers"]] == [
        "Too little data yet.",
        "To take noise out of the gradient",
        "Too little data yet.",
        "Too little data yet.",
        "Let it train",
    ]
    assert head["little_to_know"]


def test_rollouts_of_version_1_and_of_verl_are_shown_with_what_they_lack(directory):
    import pyarrow.parquet

    for path in directory.rollouts.glob("*.parquet"):
        table = pyarrow.parquet.read_table(path).select(range(9))
        pyarrow.parquet.write_table(table.replace_schema_metadata({"poise_schema_version": "1"}), path)
    directory.append_metrics({"step": 3, "reward": 0.5, "timing_s/gen": 3.0, "timing_s/step": 5.0})
    reader = RolloutReader(directory)
    head = page_head(reader)
    assert any("hold no gold answers" in note for note in head["notes"])
    assert page_rollouts(reader)["rows"] == 8
    times = {each["label"]: each["y"] for each in charts_of(head)["Where the time goes"]["series"]}
    assert (times["sampling"][-1], times["update"][-1]) == (3.0, 2.0)
    assert "every rollout counts alike" in charts_of(head)["Noise of the gradient"]["note"]


def test_a_long_run_is_read_evenly_with_its_newest_file_and_each_file_once(tmp_path, monkeypatch):
    directory = RunDirectory.create(tmp_path / "run")
    for step in range(1, 11):
        pair_batch(directory, step, [1.0, 0.0])
    monkeypatch.setattr("poise.report.rollout_files.MOST_ROLLOUTS", 8)
    reader = RolloutReader(directory)
    batches, notes = reader.batches()
    assert [batch.step for batch in batches] == [3, 5, 8, 10]
    assert notes == ["4 of 10 rollout files are shown, evenly spread over the run."]
    assert reader.batches()[0][0] is batches[0]


def test_texts_that_have_no_room_lose_their_middle(directory, monkeypatch):
    assert shortened("a" * 9 + "b" * 9, 6) == "aaa\n[… 12 characters left out …]\nbbb"
    monkeypatch.setattr(page_data, "MOST_CHARACTERS", 10)
    pair_batch(directory, 3, [1.0, 0.0], completions=["x" * 1_000_000, "y"])
    long = page_rollouts(RolloutReader(directory))["completion"][-2]
    assert "[… 999000 characters left out …]" in long


def test_command_writes_the_page_and_refuses_what_is_no_run(directory, tmp_path):
    done = CliRunner().invoke(app, ["report", str(directory.path)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(directory.path / "report.html"))
    assert (directory.path / "report.html").read_text(encoding="utf-8") == report_page(directory)
    assert write_report(directory, tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    refused = CliRunner().invoke(app, ["report", str(directory.path), str(tmp_path / "nothing")])
    assert refused.exit_code == 2
    assert f"poise report: {tmp_path}/nothing holds no run: a run has a file metrics.jsonl" in refused.output


def test_other_runs_are_drawn_over_the_first(directory, tmp_path):
    other = finished_run(tmp_path / "other")
    done = CliRunner().invoke(app, ["report", str(directory.path), str(other.path)])
    assert done.exit_code == 0
    charts = charts_of(data_of(directory.report.read_text(encoding="utf-8"), "head"))
    assert charts["Reward and held-out problems"]["series"][-1]["label"] == "other: held-out accuracy"
    assert charts["Noise of the gradient"]["series"][-1]["label"] == "other"


# Charts.


def test_held_out_numbers_have_their_own_names_and_intervals():
    lines = [
        {
            "step": 0,
            "held_out/reward": -3.0,
            "held_out/reward_error": 0.5,
            "held_out/accuracy": 0.5,
            "held_out/prompts": 4,
        },
        {"step": 1, "reward": 0.5},
        {"step": 2, "held_out/reward": -1.0, "held_out/reward_error": 0.25},
    ]
    series = {each.label: each for each in learning_charts(lines)[0].series}
    assert (series["held-out reward"].low, series["held-out reward"].high) == ([-3.98, -1.49], [-2.02, -0.51])
    assert series["held-out accuracy"].x == [0]
    assert 0 < series["held-out accuracy"].low[0] < 0.5 < series["held-out accuracy"].high[0] < 1
    assert is_it_learning(lines).answer == "Yes: -3.00 → -1.00"
    assert is_it_learning(lines[:2]).answer == "Too little data yet."


def test_a_ceiling_below_zero_is_no_number():
    lines = [{"step": 1, "poise/noise_ceiling": -0.4}, {"step": 2, "poise/noise_ceiling": 0.25}]
    ceiling = value_charts(lines, [], None)[0].series[0]
    assert ceiling.y == [None, 0.25]
    assert value_charts(lines[:1], [], None)[0].series == []


def test_runs_of_equal_evidence_become_one_piece():
    lines = [
        {"step": k, "in_charge": {"sum": f"{what} (all rows)"}} for k, what in ((1, "all"), (2, "all"), (5, "zero"))
    ]
    assert evidence_strips(lines) == [{"domain": "sum", "runs": [(1, 5, "all"), (5, 6, "zero")]}]


def test_time_that_no_phase_accounts_for_is_the_update():
    lines = [
        {"step": 0, "step_time": 100.0},
        {"step": 1, "reward": 0.5, "step_time": 3.0, "poise/seconds_sampling": 1.5, "poise/seconds_baseline": 0.5},
        {"step": 2, "step_time": 2.0},
        {"step": 4, "reward": 0.5, "step_time": 2.0, "poise/seconds_sampling": 1.0},  # the mean of two steps
    ]
    times = {each.label: list(each.y) for each in phase_chart(lines).series}
    assert times == {
        "sampling": [1.5, 1.0],
        "grading": [0.0, 0.0],
        "reading features": [0.0, 0.0],
        "baseline": [0.5, 0.0],
        "update": [3.0, 3.0],
    }


# What the baseline saves.


def batches_of(tmp_path, rows):
    """One batch a row of (rewards, baselines, weights)."""
    directory = RunDirectory.create(tmp_path / "run")
    for step, (rewards, baselines, weights) in enumerate(rows, start=1):
        pair_batch(directory, step, rewards, baselines=baselines, weights=weights)
    return RolloutReader(directory).batches()[0]


def test_noise_is_that_of_graded_rollouts_with_siblings_by_weight(tmp_path):
    (batch,) = batches_of(tmp_path, [([1.0, 0.0, 1.0, math.nan], [0.25, 0.5, 9.0, 9.0], [2.0, 3.0, 7.0, 7.0])])
    found = noise([batch])
    assert found.weighted
    assert found.used.tolist() == [2 * 0.75**2 + 3 * 0.5**2]
    assert found.of(NONE).tolist() == [2.0]
    assert found.of(RLOO).tolist() == [2 + 3]
    assert found.of(CONSTANT).tolist() == [pytest.approx(2 - 2**2 / 5)]
    assert noise([]) is None


def test_ratios_tell_a_baseline_that_saves_noise_from_one_that_adds_some(tmp_path):
    random = np.random.default_rng(0)

    def run(baseline, folder):
        rows = []
        for _ in range(24):
            chances = np.repeat(random.random(16), 2)
            rewards = (random.random(32) < chances).astype(float)
            rows.append((rewards.tolist(), baseline(chances).tolist(), [None] * 32))
        return {each.against: each for each in ratios(noise(batches_of(tmp_path / folder, rows)))}

    oracle, harmful = run(lambda chances: chances, "oracle"), run(lambda chances: -chances, "harmful")
    # E[V(1-V)] = 1/6 of uniform chances, against E[r^2] = 1/2, Var r = 1/4 and RLOO's 2/6.
    for against, expected in ((NONE, 1 / 3), (RLOO, 1 / 2), (CONSTANT, 2 / 3)):
        assert oracle[against].low < expected < oracle[against].high < 1
    assert harmful[NONE].low > 1
    assert ratios(None) == []


def test_errors_of_simple_values_are_those_of_the_true_values(tmp_path):
    random = np.random.default_rng(2)
    rows = []
    for _ in range(25):
        rewards = (random.random(400) < np.repeat(random.random(200), 2)).astype(float).tolist()
        rows.append((rewards, [0.0] * 400, [None] * 400))
    steps, constant, sibling = errors_of_simple_values(batches_of(tmp_path, rows))
    assert steps == list(range(1, 26))
    assert constant[-1] == pytest.approx(1 / 12, abs=0.015)  # Var of a uniform V
    assert sibling[-1] == pytest.approx(1 / 6, abs=0.015)  # E[V (1 - V)] / (G - 1)


def test_prompts_are_never_sometimes_or_always_solved(tmp_path):
    batches = batches_of(tmp_path, [([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 8, [None] * 8)])
    steps, shares = difficulty(batches)
    assert steps == [1]
    assert shares.tolist() == [[0.25, 0.25, 0.5]]


# Sentences.


def test_a_baseline_far_from_the_value_is_explained_and_a_near_one_is_not(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    pair_batch(directory, 1, [1.0, 1.0], baselines=[0.95, 0.0], values=[0.99, 0.99])
    found = far_from_value(RolloutReader(directory).batches()[0])
    assert (found.step, found.row) == (1, 1)
    assert "reward 1.00 and value 0.99 has the baseline 0.00, and so the advantage +1.00" in found.sentence
    pair_batch(directory, 2, [1.0, 1.0], baselines=[0.95, 0.9], values=[0.99, 0.99])
    assert far_from_value(RolloutReader(directory).batches()[0]) is None


@pytest.mark.parametrize(
    ("preset", "subtracted", "why"),
    [
        ("poise", "Too little data yet.", "never sees"),
        ("group-mean", "Too little", "not exactly"),
        ("none", "Nothing", ""),
    ],
)
def test_answers_speak_of_the_preset(preset, subtracted, why):
    told = answers(preset=preset, metrics=[], batches=[], gains=[], alarms=[], path="runs/x", finished=True)
    assert told[0].answer.startswith(subtracted)
    assert why in told[1].detail
    assert "poise eval runs/x" in told[4].detail
