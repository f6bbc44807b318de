"""What a study recommends is the simplest choice that is as good, and `poise train` takes it as it is."""

import pytest
import torch
import yaml

from poise.lab.study.comparisons import EVIDENCE, Line, Table
from poise.lab.study.estimators import Estimates
from poise.lab.study.recommendation import Recommendation, recommendation
from poise.train.config import run_settings

NOTHING = torch.zeros(1, 1)


def table(names, errors):
    lines = [
        Line(name, {}, {}, cost=Estimates(NOTHING, 0.0, None, 0, torch.full((10,), error, dtype=torch.float64)), at=at)
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
