"""The page of a run shows what is there, says what is not, and runs nothing that a model wrote."""

import math
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from typer.testing import CliRunner

from poise.cli import app
from poise.evaluate.statistics import wilson_interval
from poise.report.calibration import calibration
from poise.report.charts import Series, line_chart, merged, short_number, strip_chart, thinned, ticks
from poise.report.figures import errors_of_simple_baselines
from poise.report.page import LONGEST_TEXT, report_page, shown_text, write_report
from poise.report.rollout_files import Rollout, pair_choices, pairs_of, read_rollouts
from poise.storage.run_directory import RunDirectory

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\u202egnp\x00\x1b[31m"


def rollout(prompt, reward, *, value=0.5, baseline=0.25, step=1, row=0, sibling=0, domain="sum", completion="y"):
    advantage = 0.0 if reward is None else reward - baseline
    return Rollout(step, row, prompt, completion, domain, reward, value, baseline, advantage, sibling)


def pair(prompt, first, second, *, value=0.5, baseline=0.25, domain="sum"):
    return [
        rollout(prompt, first, value=value, baseline=baseline, domain=domain, row=0, sibling=1),
        rollout(prompt, second, value=value, baseline=baseline, domain=domain, row=1, sibling=0),
    ]


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def directory(tmp_path):
    """A short run that is finished, in whose second step a model wrote something hostile."""
    directory = RunDirectory.create(tmp_path / "run")
    directory.write_config({"preset": "poise", "model": "embedded", "note": HOSTILE[:20]})
    directory.append_metrics(
        {"step": 0, "rollouts": 0, "held_out/accuracy": 0.25, "held_out/prompts": 100, "held_out/accuracy/sum": 0.25}
    )
    for step in (1, 2):
        directory.append_metrics(
            {
                "step": step,
                "rollouts": 8 * step,
                "reward": 0.5,
                "poise/noise_ceiling": 0.4,
                "poise/variance_reduction": 0.3,
                "poise/ceiling_share": 0.75,
                "poise/value_error": 0.0123,
                "entropy": 0.5,
                "completions/clipped_ratio": 0.125,
                "in_charge": {"sum": "sibling_reward (penalty 1, all rows)", "<u>\u202e": "all (penalty 1, all rows)"},
            }
            | ({"held_out/accuracy": 0.75, "held_out/prompts": 100, "held_out/accuracy/sum": 0.75} if step == 2 else {})
        )
        directory.write_rollouts(
            step,
            prompts=["p1", "p1", "<i>p2</i>", "<i>p2</i>"],
            completions=["one", "two", HOSTILE, "three"],
            domains=["sum", "sum", "<u>", "<u>"],
            rewards=[1.0, 0.0, 0.0, math.nan],
            values=[0.5, 0.25, 0.75, 0.5],
            baselines=[0.5, 0.25, 0.75, 0.5],
            advantages=[0.5, -0.25, -0.75, 0.0],
        )
    directory.write_summary({"steps": 2, "rollouts": 16, "stopped_early": False, "versions": {"torch": "2.13.0"}})
    return directory


# The page.


def test_page_loads_nothing_and_runs_nothing(directory):
    page = Page(report_page(directory))
    assert {"script", "img", "link", "iframe", "object", "u"}.isdisjoint(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"src", "srcset", "xlink:href"})
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert "url(" not in report_page(directory)
    # The control: the parser sees a script where there is one.
    assert "script" in Page(f"<pre>{HOSTILE}</pre>").tags


def test_hostile_completions_are_shown_as_the_text_that_they_are(directory):
    text = report_page(directory)
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert "\\u202egnp\\u0000\\u001b[31m" in text
    assert not set(text) & {"\u202e", "\x00", "\x1b"}
    assert "&lt;i&gt;p2&lt;/i&gt;" in text


def test_page_tells_numbers_settings_and_versions(directory):
    texts = Page(report_page(directory)).texts
    for expected in ("0.250 → 0.750", "0.75", "0.0123", "run/config.yaml", "torch 2.13.0", "preset: poise"):
        assert any(expected in text for text in texts), expected
    everything = "".join(texts)
    assert "sum: sibling_reward from step 1" in everything
    assert "Both fail" not in everything  # one of that pair could not be graded
    assert "This run did not log it." not in everything


def test_what_a_run_did_not_leave_behind_is_said(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    texts = " ".join(Page(report_page(directory)).texts)
    assert "There is no summary.json" in texts
    assert "There are no rollout files" in texts
    assert "There are no values to check" in texts
    assert "There is no config.yaml." in texts
    assert "This run's preset does not choose its evidence." in texts


def test_broken_files_are_named_and_the_rest_is_shown(directory):
    (directory.rollouts / "step-000002.parquet").write_bytes(b"PAR1 cut off")
    directory.summary.write_text("{")
    with directory.metrics.open("a") as file:
        file.write('{"step": 3')
    texts = " ".join(Page(report_page(directory)).texts)
    assert "step-000002.parquet is no parquet file" in texts
    assert "There is no summary.json" in texts
    assert "0.250 → 0.750" in texts


def test_files_of_another_schema_are_not_guessed_at(directory):
    import pyarrow.parquet

    path = directory.rollouts / "step-000001.parquet"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"poise_schema_version": "99"}), path)
    batches, notes = read_rollouts(directory)
    assert [batch[0].step for batch in batches] == [2]
    assert notes == ["step-000001.parquet has schema version 99, and this poise reads 1"]


def test_of_a_long_run_files_are_read_evenly_with_the_newest_among_them(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    columns = {name: ["x", "x"] for name in ("prompts", "completions", "domains")}
    columns |= {name: [0.0, 1.0] for name in ("rewards", "values", "baselines", "advantages")}
    for step in range(1, 11):
        directory.write_rollouts(step, **columns)
    batches, notes = read_rollouts(directory, most_files=4)
    assert [batch[0].step for batch in batches] == [3, 5, 8, 10]
    assert notes == ["4 of 10 rollout files were read, evenly spread over the run."]


def test_long_texts_keep_beginning_and_end():
    shown = shown_text("a" * LONGEST_TEXT + "b" * 5000)
    assert shown.startswith("aaa")
    assert shown.endswith("bbb")
    assert "[… 5000 characters left out …]" in shown


def test_command_writes_the_page_and_refuses_what_is_no_run(directory, tmp_path):
    done = CliRunner().invoke(app, ["report", str(directory.path)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(directory.path / "report.html"))
    assert (directory.path / "report.html").read_text(encoding="utf-8") == report_page(directory)
    elsewhere = write_report(directory, tmp_path / "page.html")
    assert elsewhere.read_text(encoding="utf-8").startswith("<!doctype html>")
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "nothing")])
    assert refused.exit_code == 2
    assert f"poise report: {tmp_path}/nothing holds no run: a run has a file metrics.jsonl" in refused.output


# Calibration.


def test_calibration_equals_a_direct_computation():
    random = np.random.default_rng(0)
    values = random.beta(0.5, 0.5, size=400)
    rewards = (random.random(400) < values**2).astype(float)
    prompts = [index // 2 for index in range(400)]
    found = calibration(values.tolist(), rewards.tolist(), prompts, num_bins=8)
    order = np.argsort(values)
    chunks = np.array_split(order, 8)
    assert [each.num_rollouts for each in found.bins] == [len(chunk) for chunk in chunks]
    for each, chunk in zip(found.bins, chunks, strict=True):
        assert each.mean_value == pytest.approx(values[chunk].mean())
        assert each.mean_reward == pytest.approx(rewards[chunk].mean())
        assert (each.lowest, each.highest) == (values[chunk].min(), values[chunk].max())
        assert each.num_prompts == len({prompts[index] for index in chunk})
        assert each.interval == pytest.approx(wilson_interval(each.mean_reward, each.num_prompts))
    assert found.bias == pytest.approx(values.mean() - rewards.mean())
    gaps = [len(chunk) / 400 * abs(values[chunk].mean() - rewards[chunk].mean()) for chunk in chunks]
    assert found.error == pytest.approx(sum(gaps))
    # scikit-learn's quantile bins lie where ours do.
    true, predicted = calibration_curve(rewards, values, n_bins=8, strategy="quantile")
    assert [each.mean_reward for each in found.bins] == pytest.approx(true.tolist(), abs=0.03)
    assert [each.mean_value for each in found.bins] == pytest.approx(predicted.tolist(), abs=0.03)


def test_values_that_are_right_are_found_calibrated_and_others_are_not():
    random = np.random.default_rng(1)
    truth = random.random(4000)
    rewards = (random.random(4000) < truth).astype(float).tolist()
    prompts = list(range(4000))
    right = calibration(truth.tolist(), rewards, prompts)
    assert sum(low <= each.mean_value <= high for each in right.bins for low, high in [each.interval]) >= 9
    assert right.error < 0.03
    wrong = calibration((0.5 + truth / 2).tolist(), rewards, prompts)
    assert sum(low <= each.mean_value <= high for each in wrong.bins for low, high in [each.interval]) <= 2
    assert wrong.error > 0.2


def test_equal_values_stay_in_one_bin_and_rewards_may_leave_zero_to_one():
    found = calibration([0.5] * 6 + [0.9] * 2, [-2.0, 3.0, 3.0, 3.0, 3.0, -2.0, 0.0, 1.0], list("aabbccdd"))
    assert [each.num_rollouts for each in found.bins] == [6, 2]
    assert found.bins[0].mean_reward == pytest.approx(8 / 6)
    low, high = wilson_interval((8 / 6 + 2) / 5, 3)
    assert found.bins[0].interval == pytest.approx((-2 + 5 * low, -2 + 5 * high))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], [], []), "calibration needs at least 1 rollout, got none"),
        (([0.5], [1.0, 0.0], ["x"]), "needs a reward and a prompt for each of 1 values, got 2 and 1"),
    ],
)
def test_nothing_to_calibrate_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        calibration(*arguments)


def test_errors_of_simple_baselines_are_those_of_the_true_values():
    random = np.random.default_rng(2)
    batches = []
    for step in range(1, 31):
        truth = random.random(400)
        batches.append(
            [
                rollout(f"{index}", float(random.random() < p), step=step, sibling=0)
                for index, p in enumerate(truth)
                for _ in range(2 + index % 2)  # pairs and groups of three
            ]
        )
    constant, sibling = errors_of_simple_baselines(batches)
    assert [step for step, _ in constant] == list(range(1, 31))
    assert constant[-1][1] == pytest.approx(1 / 12, abs=0.01)  # Var of a uniform V
    assert sibling[-1][1] == pytest.approx((1 / 6 + 1 / 12) / 2, abs=0.01)  # E[V (1 - V)] / (G - 1)


# Pairs.


def test_pairs_are_two_rollouts_of_one_prompt():
    batch = [*pair("x", 1.0, 0.0), rollout("alone", 1.0, sibling=None), *pair("y", 0.0, 0.0)]
    assert [(each.first.prompt, each.rewards) for each in pairs_of(batch)] == [("x", (1.0, 0.0)), ("y", (0.0, 0.0))]


def test_chosen_pairs_are_those_that_the_reason_asks_for():
    batch = [
        *pair("new1", 1.0, 1.0),
        *pair("new2", 1.0, 1.0),
        *pair("other", 1.0, 1.0, domain="sort"),
        *pair("fail.9", 0.0, 0.0, value=0.9),
        *pair("fail.2", 0.0, 0.0, value=0.2),
        *pair("right.8", 1.0, 1.0, value=0.8),
        *pair("right.1", 1.0, 1.0, value=0.1),
        *pair("big", 1.0, 0.0, baseline=-5.0),
        *pair("split", 1.0, 0.0, value=0.45),
        *pair("ungradable", None, 0.0, baseline=9.0),
    ]
    chosen = {
        choice.title.split(",")[0]: [each.first.prompt for each in choice.pairs]
        for choice in pair_choices([batch], each=1)
    }
    assert chosen == {
        "Newest": ["new1"],
        "Largest advantages": ["big"],
        "Both fail": ["fail.9"],
        "Both right": ["right.1"],
        "One right": ["split"],
    }
    newest = pair_choices([batch], each=2)[0]
    assert [each.first.prompt for each in newest.pairs] == ["new1", "other"]  # one domain after another
    assert pair_choices([]) == []


# Charts.


def test_ticks_are_round_and_within_the_range():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-0.013, 0.042) == pytest.approx([0, 0.02, 0.04])
    assert ticks(1, 240) == [50, 100, 150, 200]
    assert [short_number(x) for x in (0, 0.25, 12000, 2e6, 5e-5)] == ["0", "0.25", "12k", "2M", "5e-05"]


def test_points_are_drawn_where_they_belong_and_gaps_are_kept():
    chart = line_chart(
        [Series("<x>", [(0, 0.0), (1, None), (2, 1.0)], dots=True)], title="<t>", x_range=(0, 2), y_range=(0.0, 1.0)
    )
    assert '<circle class="dot a" cx="46.0" cy="206.0"' in chart
    assert '<circle class="dot a" cx="408.0" cy="10.0"' in chart
    assert 'd="M46.0 206.0M408.0 10.0"' in chart
    assert "&lt;x&gt;: 0, 0" in chart
    assert "<t>" not in chart
    assert line_chart([Series("nothing", [(0, None), (1, math.nan)])], title="t") is None


@pytest.mark.parametrize("points", [[(3.0, 2.0)], [(1.0, 0.5), (2.0, 0.5)], [(0.0, 0.0), (1.0, 0.0)]])
def test_single_and_constant_points_can_be_drawn(points):
    chart = line_chart([Series("x", points)], title="t", y_range=(0.0, None))
    assert "nan" not in chart
    assert "inf" not in chart


def test_long_lines_are_thinned_to_means():
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    thin = thinned(points)
    assert len(thin) <= 400
    assert all(y == pytest.approx(0.5, abs=0.03) for _, y in thin)
    assert thin[-1][0] == 9999


def test_runs_of_equal_evidence_become_one_piece():
    cells = [(1.0, "all"), (3.0, "all"), (5.0, "zero"), (7.0, "all")]
    assert merged(cells, end=9.0) == [(1.0, 5.0, "all"), (5.0, 7.0, "zero"), (7.0, 9.0, "all")]
    chart = strip_chart([("sum", cells)], title="t", levels=["zero", "all"])
    assert chart.count("<rect") == 3
    assert "sum: zero from step 5" in chart
    assert strip_chart([], title="t", levels=["zero"]) is None
