"""What a study recommends is the simplest choice that is as good, and `poise train` takes it as it is."""

import math

import pytest
import torch
import yaml

from poise.lab.study.comparisons import EVIDENCE
from poise.lab.study.recommendation import Recommendation, recommendation, simplest_within_one_error
from poise.lab.study.tables import Line, Table
from poise.train.config import run_settings


def test_the_simplest_choice_within_one_standard_error_is_taken():
    lowest = torch.zeros(100, dtype=torch.float64)
    spread = torch.tensor([0.1, -0.1], dtype=torch.float64).repeat(50)
    error = 0.1 * math.sqrt(100 / 99) / 10  # of the mean of the differences
    near, far = spread + 0.9 * error, spread + 1.1 * error
    assert simplest_within_one_error({"far": far, "near": near, "lowest": lowest}) == "near"
    assert simplest_within_one_error({"lowest": lowest, "near": near}) == "lowest"


def test_differences_are_paired_by_prompt():
    hard = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Prompts differ far more than choices do; a choice that is worse on each of them is worse.
    assert simplest_within_one_error({"worse": hard + 0.001, "better": hard}) == "better"


def table(names, errors):
    lines = [
        Line(name, {}, {}, fold_errors=torch.full((10,), error, dtype=torch.float64), at=at)
        for (name, at), error in zip(names, errors, strict=True)
    ]
    return Table("", "", lines)


def recommended(layers, pools, evidence):
    return recommendation(
        table([("all, 1", 1), ("all, 2", 2), ("states, 1", 1)], [*layers, 0.0]),
        table([("all, 5", 5), ("all, 10", 10)], pools),
        table([("prompt states", None), *((name, None) for name in EVIDENCE)], [0.0, *evidence]),
        default_layer=2,
        default_pool=10,
    )


def test_defaults_stay_where_nothing_is_better():
    same = recommended([0.1, 0.1], [0.1, 0.1], [0.3, 0.2, 0.2, 0.2])
    assert same == Recommendation(2, 10, "rewards, entropies")


def test_a_better_layer_pool_and_evidence_are_taken():
    assert recommended([0.1, 0.2], [0.1, 0.2], [0.4, 0.3, 0.2, 0.1]) == Recommendation(1, 5, "all")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the host, about its own defaults
@pytest.mark.parametrize("evidence", EVIDENCE)
def test_the_snippet_is_a_configuration_of_poise_train(evidence, tmp_path):
    snippet = yaml.safe_load(Recommendation(3, 5, evidence).snippet())
    config = run_settings(snippet).poise_config(tmp_path)
    assert config.layers == [3]
    assert config.pool_tokens == 5
    assert config.preset == "poise"
    assert set(config.resolved_preset.recipe.evidence) == set(EVIDENCE[evidence])
