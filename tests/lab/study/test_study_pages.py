"""The page of a study says of every critic what its table says."""

import pytest
import torch

from poise.lab.study.comparisons import Line, Noise, Table
from poise.lab.study.estimators import Estimates
from poise.lab.study.judging import MEASURES
from poise.lab.study.pages import summary_markdown
from poise.lab.study.study import TaskStudy


def line(name, mae, *, seconds, reference_mae=None):
    ratio = None if reference_mae is None else (reference_mae / mae, 0.1, 0.9)
    cost = Estimates(torch.zeros(1, 1), seconds, None, 0)
    return Line(name, dict.fromkeys(MEASURES, 0.0) | {"mae": mae}, {}, ratio, cost)


def one_task(*critics, ceiling=0.5):
    lines = [line("poise-value", 0.1, seconds=0.5), *critics]
    noise = Noise(mean_reward=0.25, value_variance=ceiling / 4, ceiling=ceiling)
    return TaskStudy("sums", 32, 16, 0, noise, {"estimators": Table("Estimators", "", lines)}, None, {})


PROMPT_ONLY = line("prompt-only critic", 0.2, seconds=50.0, reference_mae=0.1)
IN_HINDSIGHT = line("prompt-only critic, in hindsight", 0.125, seconds=50.0, reference_mae=0.1)


def cells(page):
    """The columns of the first table, by their heads where those differ."""
    heads, _, *rows = [[cell.strip() for cell in row.strip("| ").split("|")] for row in page.splitlines() if "|" in row]
    return heads, rows


def test_a_critic_has_its_error_ratio_and_time_and_its_best_epoch_where_that_was_judged():
    plain, judged = (summary_markdown([one_task(*critics)]) for critics in ([PROMPT_ONLY], [PROMPT_ONLY, IN_HINDSIGHT]))
    heads, [row] = cells(plain)
    assert dict(zip(heads[5:], row[5:], strict=True)) == {
        "prompt-only critic MAE": "0.200",
        "ratio": "0.50 [0.10, 0.90]",
        "time": "1.00%",
    }
    assert "hindsight" not in plain.lower()
    heads, [row] = cells(judged)
    assert dict(zip(heads[5:], row[5:], strict=True)) == {
        "prompt-only critic MAE": "0.200",
        "ratio": "0.50 [0.10, 0.90]",
        "in hindsight": "0.80 [0.10, 0.90]",
        "time": "1.00%",
    }
    assert "chosen on the rollouts that judge" in judged


def test_a_task_without_critics_keeps_its_row():
    heads, rows = cells(summary_markdown([one_task(), one_task(PROMPT_ONLY, IN_HINDSIGHT)]))
    assert [len(row) for row in rows] == [len(heads)] * 2
    assert rows[0][5:] == ["–"] * 4


@pytest.mark.parametrize(("ceiling", "marked"), [(0.05, True), (0.5, False)])
def test_a_task_that_says_nothing_is_marked(ceiling, marked):
    page = summary_markdown([one_task(PROMPT_ONLY, ceiling=ceiling)])
    assert ("| sums † |" in page) is ("† noise ceiling below 0.1" in page) is marked
