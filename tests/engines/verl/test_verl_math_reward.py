"""The reward of mathematics under verl: the tables of the TRL engine, with verl's version of the grammar."""

import json
from pathlib import Path

import pytest

from poise.engines.verl.math_reward import compute_score

DATA = Path(__file__).parents[2] / "tasks" / "data"


@pytest.mark.parametrize("file", ["math.jsonl", "math_forms.jsonl", "verl_reward.jsonl"])
def test_one_table_for_both_engines(file):
    cases = [json.loads(line) for line in (DATA / file).read_text().splitlines()]
    golds = [each.get("gold", each.get("ground_truth")) for each in cases]
    given = [compute_score("any", each["completion"], gold) for each, gold in zip(cases, golds, strict=True)]
    assert [each for each, reward in zip(cases, given, strict=True) if reward != each["want"]] == []
