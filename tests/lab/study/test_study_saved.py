"""Baselines are swapped on a run's saved rollouts, and files of something else are refused with one sentence."""

import json
import math

import pyarrow
import pyarrow.parquet
import pytest
import torch
from study_world import saved_file

import poise
from oracles import sibling_mean
from poise.features.rollout_features import MEAN_ENTROPIES
from poise.features.scalars import SCALARS
from poise.lab.study.rollouts import Reader
from poise.lab.study.saved import (
    SavedRollouts,
    saved_features,
    saved_rollouts,
    swapped_baselines,
    swapped_markdown,
)
from poise.models.embedded import load_embedded_model


def test_rollouts_are_read_with_their_siblings(tmp_path):
    first, second = saved_file(tmp_path / "a", step=2), saved_file(tmp_path / "b", step=4)
    rollouts = saved_rollouts([first, second])
    assert len(rollouts.prompts) == 80
    assert rollouts.prompts[0] == rollouts.prompts[40] == "0+1:"
    # The same prompt in another step was answered by another policy: no sibling.
    assert rollouts.groups.tolist() == [k // 2 for k in range(80)]
    assert rollouts.completions[3] == "3"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group_size": 1, "num_prompts": 40}, "no prompt has two graded rollouts"),
        ({"rewards": [1.0] * 40}, "every rollout earned 1: rewards that are all equal"),
        ({"rewards": [1.0, math.nan] * 20}, "no prompt has two graded rollouts"),
        ({"num_prompts": 15}, "on 16 prompts with two graded rollouts or more, got 15"),
    ],
)
def test_rollouts_that_say_nothing_are_refused(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        saved_rollouts([saved_file(tmp_path / "run", **changes)])


def test_files_of_something_else_are_refused(tmp_path):
    whole = pyarrow.parquet.read_table(saved_file(tmp_path / "run"))
    lacking, older, text = tmp_path / "lacking.parquet", tmp_path / "older.parquet", tmp_path / "text.parquet"
    pyarrow.parquet.write_table(whole.drop_columns(["reward", "step"]), lacking)
    pyarrow.parquet.write_table(whole.replace_schema_metadata({"poise_schema_version": "0"}), older)
    text.write_text("no table")
    with pytest.raises(ValueError, match=r"lacks the columns step, reward"):
        saved_rollouts([lacking])
    with pytest.raises(ValueError, match="schema version 0, and this poise reads 1"):
        saved_rollouts([older])
    with pytest.raises(ValueError, match="is no parquet file"):
        saved_rollouts([text])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        saved_rollouts([tmp_path / "none.parquet"])


def test_features_are_read_anew_with_the_end_of_the_completion(tmp_path):
    model, tokenizer = load_embedded_model()
    rollouts = saved_rollouts([saved_file(tmp_path / "run")])
    reader = Reader(model, tokenizer, [1], [3], 1.0)
    features, weights = saved_features(rollouts, reader, model="embedded")
    row = 5
    read = reader(
        [tokenizer(rollouts.prompts[row])["input_ids"]],
        [[*tokenizer(rollouts.completions[row])["input_ids"], tokenizer.eos_token_id]],
    )
    assert torch.allclose(features.completion[row], read.completion[3][0, 0], atol=1e-4)
    assert torch.allclose(features.columns(list(SCALARS))[row], read.scalars[0], atol=1e-4)
    assert features.entropies[row, 0] == features.columns(MEAN_ENTROPIES)[row, 0]
    assert float(weights[row]) == pytest.approx(float(read.weights[0]), rel=1e-4)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("What is {} and 1?", r"the tokenizer of embedded cannot spell the prompt 'What is 0 and 1\?'"),
        (json.dumps([{"role": "user", "content": "1"}]).replace("{", "{{").replace("}", "}}"), "no chat template"),
    ],
)
def test_rollouts_of_another_model_are_refused(tmp_path, prompt, sentence):
    model, tokenizer = load_embedded_model()
    several = saved_file(tmp_path / "run", prompt=prompt, group_size=40, num_prompts=1)
    lines = pyarrow.parquet.read_table(several).to_pylist()
    rollouts = SavedRollouts(
        [line["prompt"] for line in lines],
        [line["completion"] for line in lines],
        ["d"] * 40,
        torch.zeros(40, dtype=torch.float64),
        torch.zeros(40, dtype=torch.int64),
    )
    with pytest.raises(ValueError, match=sentence):
        saved_features(rollouts, Reader(model, tokenizer, [1], [3], 1.0), model="embedded")


def made_up(num_prompts=40, *, seed=0):
    """Rollouts in groups of three, the features of which tell their prompt's value."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(num_prompts, generator=generator, dtype=torch.float64).repeat_interleave(3)
    rewards = (torch.rand(len(values), generator=generator, dtype=torch.float64) < values).double()
    told = values[:, None].float() + 0.1 * torch.randn(len(values), 4, generator=generator)
    rollouts = SavedRollouts(
        [f"{k // 3}" for k in range(len(values))],
        ["1"] * len(values),
        ["d"] * len(values),
        rewards,
        torch.arange(num_prompts).repeat_interleave(3),
    )
    features = poise.Features(told, told, told[:, :3], torch.zeros(len(values), 4, dtype=torch.bool))
    return rollouts, features


def test_without_a_model_baselines_made_of_rewards_are_compared():
    rollouts, _ = made_up()
    swapped = swapped_baselines(rollouts, None, None)
    names = [line.name for line in swapped.lines]
    assert names == ["leave-out mean", "rloo", "shrunk-rloo", "group-mean", "none"]
    assert {"poise", "paper", "prompt-only"} <= set(swapped.left_out)
    assert "Without a model, and so without features: poise, poise-value" in swapped_markdown(swapped)


def test_errors_are_those_of_pairs():
    rollouts, _ = made_up()
    [rloo] = [line for line in swapped_baselines(rollouts, None, None).lines if line.name == "rloo"]
    baselines = torch.tensor(sibling_mean(rollouts.rewards.tolist(), rollouts.prompts), dtype=torch.float64)
    squared = (rollouts.rewards - baselines) ** 2
    groups = rollouts.rewards.reshape(-1, 3)
    by_prompt = squared.reshape(-1, 3).mean(dim=1) - groups.var(dim=1)
    assert rloo.value_error == pytest.approx(float(by_prompt.mean()), abs=1e-12)
    reach = 1.959964 * float(by_prompt.std()) / len(by_prompt) ** 0.5
    assert rloo.value_error_interval == pytest.approx((rloo.value_error - reach, rloo.value_error + reach), abs=1e-9)
    assert rloo.weighted_risk == pytest.approx(float(squared.sum() / rollouts.rewards.sum()), abs=1e-12)


def test_weights_bear_on_the_risk_alone_for_baselines_made_of_rewards():
    rollouts, _ = made_up()
    weights = torch.rand(120, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, weighed = (swapped_baselines(rollouts, None, each).lines[1] for each in (None, weights))
    assert plain.value_error == weighed.value_error
    assert plain.weighted_risk != weighed.weighted_risk


def test_with_features_a_probe_of_the_other_half_beats_what_rewards_tell():
    rollouts, features = made_up()
    lines = {line.name: line for line in swapped_baselines(rollouts, features, None).lines}
    assert lines["paper"].value_error < 0.5 * lines["rloo"].value_error
    assert lines["poise-value"].value_error < 0.5 * lines["rloo"].value_error
    assert not lines["group-mean"].exact
    page = swapped_markdown(swapped_baselines(rollouts, features, None))
    [row] = [line for line in page.splitlines() if line.startswith("| group-mean ")]
    assert [cell.strip() for cell in row.strip("|").split("|")][1:3] == ["depends on the rollout itself", "–"]
