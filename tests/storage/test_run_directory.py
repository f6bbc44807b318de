"""A run on disk can be read whenever it was cut off, and is never written over."""

import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet
import pytest
import yaml

from poise.report.learning_curve import learning_curve, running_means, write_learning_curve
from poise.storage import whole_files
from poise.storage.rollouts import ROLLOUTS_SCHEMA_VERSION, rollout_lines, sibling_rows
from poise.storage.run_directory import RunDirectory

NAN = float("nan")


def test_a_folder_that_holds_something_is_refused(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="already holds a run or other files: choose another --name"):
        RunDirectory.create(directory.path)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        RunDirectory.create(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty")


def test_settings_keep_their_order_and_values(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    settings = {"z": 1e-4, "a": None, "layers": [1, 2], "text": "null", "options": {"window_rows": 7}}
    directory.write_config(settings)
    read = yaml.safe_load(directory.config.read_text())
    assert read == settings
    assert list(read) == list(settings)


def test_metrics_are_read_as_they_were_written_without_a_line_cut_off(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.append_metrics({"step": 1, "reward": 0.5, "poise/ceiling_share": NAN, "in": {"deep": [math.inf]}})
    directory.append_metrics({"step": 2, "reward": 0.25})
    with directory.metrics.open("a") as file:
        file.write('{"step": 3, "rew')
    first, second = directory.read_metrics()
    assert first == {"step": 1, "reward": 0.5, "poise/ceiling_share": None, "in": {"deep": [None]}}
    assert second["step"] == 2


def test_no_unfinished_file_stays_behind(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_summary({"accuracy_after": NAN})
    directory.write_summary({"accuracy_after": 0.5})
    assert json.loads(directory.summary.read_text()) == {"accuracy_after": 0.5}
    assert not list(directory.path.rglob("*.unfinished"))


def test_rollouts_come_back_with_schema_version_siblings_and_nulls(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    path = directory.write_rollouts(
        7,
        prompts=["x", "y", "x", "z"],
        completions=["1", "2", "3", "4"],
        domains=["a", None, "a", "b"],
        rewards=[1.0, NAN, 0.0, 1.0],
        values=[NAN] * 4,
        baselines=[0.25, 0.0, 0.5, 0.5],
        advantages=[0.75, 0.0, -0.5, 0.5],
        answers=["1", None, "1", "4"],
        parts=[{"right": 1.0, "short": NAN}, {}, {"right": 0.0}, {"right": 1.0}],
        truncated=[False, True, False, False],
        token_entropies=[([1], [0.5]), None, ([1, 0], [0.25, 0.0]), None],
    )
    assert path.name == "step-000007.parquet"
    table = pyarrow.parquet.read_table(path)
    assert table.schema.metadata[b"poise_schema_version"] == str(ROLLOUTS_SCHEMA_VERSION).encode()
    assert table.to_pydict() == {
        "step": [7] * 4,
        "prompt": ["x", "y", "x", "z"],
        "completion": ["1", "2", "3", "4"],
        "domain": ["a", None, "a", "b"],
        "reward": [1.0, None, 0.0, 1.0],
        "value": [None] * 4,
        "baseline": [0.25, 0.0, 0.5, 0.5],
        "advantage": [0.75, 0.0, -0.5, 0.5],
        "sibling": [2, None, 0, None],
        "answer": ["1", None, "1", "4"],
        "parts": [[("right", 1.0), ("short", None)], [], [("right", 0.0)], [("right", 1.0)]],
        "truncated": [False, True, False, False],
        "weight": [None] * 4,
        "token_lengths": [[1], None, [1, 0], None],
        "token_entropies": [[0.5], None, [0.25, 0.0], None],
    }


def test_files_of_version_1_are_read_and_later_ones_and_others_are_refused(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    columns = {name: ["x"] for name in ("prompts", "completions", "domains")}
    columns |= {name: [0.5] for name in ("rewards", "values", "baselines", "advantages")}
    path = directory.write_rollouts(1, **columns, answers=["4"])
    table = pyarrow.parquet.read_table(path)

    def rewritten(version, num_columns):
        some = table.select(range(num_columns)).replace_schema_metadata({"poise_schema_version": version})
        pyarrow.parquet.write_table(some, path)
        return rollout_lines(path)

    assert rewritten("1", 9)[0]["reward"] == 0.5
    assert rewritten("1", 9)[0]["answer"] is None
    with pytest.raises(ValueError, match="has schema version 99, and this poise reads 1 and 2: a newer poise can"):
        rewritten("99", 9)
    with pytest.raises(ValueError, match="lacks the columns answer, parts"):
        rewritten("2", 9)


def test_siblings_of_a_larger_group_go_round():
    assert sibling_rows(["x", "x", "y", "x"]) == [1, 3, None, 0]


# The picture.

METRICS = [
    {"step": 0, "rollouts": 0, "held_out/accuracy": 0.25, "held_out/prompts": 400},
    {"step": 1, "rollouts": 64, "reward": 0.25},
    {"step": 2, "rollouts": 64},
    {"step": 3, "rollouts": 128, "reward": 0.75, "held_out/accuracy": 0.5, "held_out/prompts": 400},
]


def test_learning_curve_shows_rewards_and_held_out_accuracy():
    (axes,) = learning_curve(METRICS).axes
    lines = {line.get_label(): line for line in axes.lines}
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines.values()]
    assert ([1, 3], [0.25, 0.75]) in drawn
    assert ([0, 3], [0.25, 0.5]) in drawn
    assert axes.get_ylim() == (0, 1)
    _, labels = axes.get_legend_handles_labels()
    assert labels == ["reward in training (running mean)", "accuracy on held-out problems"]


def test_running_means_are_means_with_fading_weights():
    assert running_means([2.0, 5.0, -1.0], memory=0.5) == pytest.approx(
        [2.0, (0.5 * 2 + 5) / 1.5, (0.25 * 2 + 0.5 * 5 - 1) / 1.75]
    )


@pytest.mark.parametrize("metrics", [METRICS, METRICS[:1], []])
def test_pictures_of_whole_and_of_barely_begun_runs_are_written(tmp_path, metrics):
    directory = RunDirectory.create(tmp_path / "run")
    for line in metrics:
        directory.append_metrics(line)
    write_learning_curve(directory)
    assert (directory.path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    svg = (directory.path / "learning_curve.svg").read_text()
    assert "<svg" in svg
    assert str(tmp_path) not in svg


# Taken again.

SETTINGS = {"seed": 0, "layers": [1], "learning_rate": 1e-4, "text": None}


def taken(path):
    directory = RunDirectory(path)
    directory.take(SETTINGS)
    return directory


def test_a_folder_is_taken_by_its_own_settings_and_refused_to_others_with_all_differences(tmp_path):
    directory = taken(tmp_path / "run")
    directory.append_metrics({"step": 0})
    taken(directory.path)
    assert directory.read_metrics() == [{"step": 0}]
    with pytest.raises(
        ValueError, match=r"seed is 0 there and 1 here; beta is None there and 0\.5 here\. Choose another"
    ):
        RunDirectory(directory.path).take(SETTINGS | {"seed": 1, "beta": 0.5})


def test_a_folder_left_before_its_settings_were_written_is_taken(tmp_path):
    bare = RunDirectory.create(tmp_path / "run")
    (bare.path / "config.yaml.unfinished").write_text("se")
    assert yaml.safe_load(taken(bare.path).config.read_text()) == SETTINGS


@pytest.mark.parametrize("name", ["notes.txt", "rollouts/step-000001.parquet", "checkpoints/checkpoint-2/model"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).touch()
    with pytest.raises(FileExistsError, match="already holds other files: choose another --name"):
        taken(tmp_path / "run")


def test_a_run_is_cut_back_to_a_step(tmp_path):
    directory = taken(tmp_path / "run")
    for step in range(4):
        directory.append_metrics({"step": step, "seconds": 0.1 * step})
    lines = directory.metrics.read_text().splitlines()
    with directory.metrics.open("a") as file:
        file.write('{"step": 4, "sec')
    for name in ("step-000001.parquet", "step-000003.parquet", "step-000001.unfinished"):
        (directory.rollouts / name).touch()
    directory.ungradable.write_text('{"step": 1}\n{"step": 3}\n')
    directory.first_bad_step.write_text('{"step": 3}')
    for path in (directory.report, directory.path / "learning_curve.svg"):
        path.touch()
    directory.write_summary({"stopped_early": True})
    directory.cut_back(2)
    assert directory.metrics.read_text().splitlines() == lines[:3]
    left = {path.relative_to(directory.path).as_posix() for path in directory.path.rglob("*") if path.is_file()}
    assert left == {"config.yaml", "metrics.jsonl", "ungradable.jsonl", "rollouts/step-000001.parquet"}
    assert directory.ungradable.read_text() == '{"step": 1}\n'
    directory.cut_back(-1)
    assert directory.read_metrics() == []
    assert not list(directory.rollouts.iterdir())


def test_a_run_is_done_when_its_report_is_written_and_it_was_not_stopped_early(tmp_path):
    directory = taken(tmp_path / "run")
    directory.write_summary({"stopped_early": False})
    assert not directory.is_done
    directory.report.touch()
    assert directory.is_done
    directory.write_summary({"stopped_early": True})
    assert not directory.is_done


def test_only_a_run_that_measured_nothing_and_is_not_in_use_is_discarded(tmp_path):
    used, held, unused = (taken(tmp_path / name) for name in ("used", "held", "unused"))
    used.append_metrics({"step": 0})
    with held.held():
        for directory in (used, held, unused):
            RunDirectory(directory.path).discard_if_unused()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held", "used"]


# Races.


def test_names_stay_inside_and_two_runs_of_one_second_get_two(tmp_path):
    for name in ("../x", "..", ".", "", "a/b", "/tmp/x", "a\\b"):
        with pytest.raises(ValueError, match="--name needs the name of a folder inside"):
            RunDirectory.new(tmp_path, name)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunDirectory.new(tmp_path / "runs", "now", numbered=True).path.name, range(8)))
    assert sorted(made) == ["now", *(f"now-{number}" for number in range(2, 9))]


def test_no_race_of_starts_restarts_and_ends_loses_data(tmp_path, monkeypatch):
    """Fifty moments: each of four runners starts, is refused, breaks off or ends while the others do."""
    monkeypatch.setattr(whole_files, "sync", lambda path: None)  # the disk takes most of the time
    for round_ in range(50):
        path, inside, ended = tmp_path / f"run-{round_}", [], []

        def sit(number, path=path, inside=inside, ended=ended, round_=round_):
            chance = random.Random(1000 * round_ + number)
            for _ in range(6):
                time.sleep(chance.random() / 500)
                directory = RunDirectory(path)
                try:
                    with directory.held():
                        assert not inside
                        inside.append(number)
                        directory.take(SETTINGS)
                        if directory.is_done:
                            ended.append(directory.metrics.read_bytes())
                        else:
                            assert not ended
                            directory.cut_back(len(directory.read_metrics()) - chance.randint(1, 2))
                            for step in range(len(directory.read_metrics()), chance.choice((3, 6))):
                                directory.append_metrics({"step": step})
                            if len(directory.read_metrics()) == 6:
                                directory.write_summary({"stopped_early": False})
                                directory.report.touch()
                        inside.remove(number)
                except BlockingIOError:
                    continue
                directory.discard_if_unused()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(sit, range(4)))
        steps = [line["step"] for line in RunDirectory(path).read_metrics()]
        assert steps == list(range(len(steps)))
        assert len(set(ended)) <= 1
