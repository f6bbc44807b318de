"""Presets are data: what each one promises, and what is refused."""

import pytest

import poise
from poise.presets import PRESETS
from poise.probe.evidence import BLOCKS


def test_the_names_are_these():
    assert list(PRESETS) == [
        "poise",
        "poise-value",
        "paper",
        "released-qwen3-4b",
        "released-olmo3-7b",
        "rloo",
        "shrunk-rloo",
        "prompt-only",
        "poise-single",
        "poise-light",
        "group-mean",
        "same-rollout",
        "none",
    ]


def test_each_preset_is_listed_under_its_own_name():
    assert all(name == preset.name and poise.preset(name) == preset for name, preset in PRESETS.items())


def test_only_the_group_mean_and_the_control_are_not_exact():
    assert [name for name, preset in PRESETS.items() if not preset.exact] == ["group-mean", "same-rollout"]
    assert [name for name, preset in PRESETS.items() if preset.control] == ["same-rollout"]


@pytest.mark.parametrize(
    ("name", "changes", "exact", "control"),
    [
        ("paper", {"cross_rollout": False}, False, True),
        ("same-rollout", {"cross_rollout": True}, True, False),
        ("rloo", {"kind": "group-mean"}, False, False),
        ("group-mean", {"kind": "rloo"}, True, False),
        ("paper", {"target": "group", "probe": "mlp"}, True, False),
    ],
)
def test_a_changed_preset_promises_what_holds_of_it(name, changes, exact, control):
    changed = poise.preset(name, **changes)
    assert (changed.exact, changed.control) == (exact, control)


def test_scalars_are_named_only_where_they_are_read():
    names = ("answer_length", "own:luck")
    assert poise.preset("poise", scalars=names).scalars == poise.preset("paper", scalars=names).scalars == names
    assert poise.preset("prompt-only", scalars=names).scalars == PRESETS["rloo"].scalars == ()


def test_only_poise_and_its_smaller_forms_are_weighted():
    assert [name for name, preset in PRESETS.items() if preset.weighted] == [
        "poise",
        "poise-single",
        "poise-light",
    ]


def test_poise_sees_all_evidence_and_its_value_twin_differs_in_weights_alone():
    assert PRESETS["poise"].recipe.evidence == BLOCKS
    assert poise.preset("poise", weighted=False).recipe == PRESETS["poise-value"].recipe


def test_what_each_preset_needs():
    features = {name for name, preset in PRESETS.items() if preset.needs_features}
    siblings = {name for name, preset in PRESETS.items() if preset.needs_siblings}
    published = {"paper", "released-qwen3-4b", "released-olmo3-7b", "same-rollout"}
    assert features == {"poise", "poise-value", "prompt-only", "poise-single", "poise-light"} | published
    assert siblings == {"rloo"} | published
    assert {name for name, preset in PRESETS.items() if not preset.reads_siblings} == {
        "prompt-only",
        "poise-single",
        "none",
    }


def test_sibling_evidence_alone_needs_siblings_and_anything_else_does_not():
    assert poise.preset("poise", evidence=("sibling_states", "sibling_reward")).needs_siblings
    assert not poise.preset("poise", evidence=("sibling_states", "constant")).needs_siblings
    assert not poise.preset("poise", evidence=()).needs_siblings


def test_a_changed_field_leaves_the_rest_and_the_original_alone():
    changed = poise.preset("poise", window_rows=17, penalties=[1.0, 2.0])
    assert (changed.recipe.window_rows, changed.recipe.penalties) == (17, (1.0, 2.0))
    assert changed.recipe.projection_size == PRESETS["poise"].recipe.projection_size
    assert PRESETS["poise"].recipe.window_rows == 4096


def test_presets_cannot_be_edited_in_place():
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["poise"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        PRESETS["poise"].recipe.window_rows = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("grpo", {}, "presets are poise, poise-value, paper, .*; got 'grpo'"),
        ("poise", {"window": 3}, "preset 'poise' has the fields evidence, .*; got 'window'"),
        ("rloo", {"penalty": 1.0}, "preset 'rloo' has the fields kind; got 'penalty'"),
        ("rloo", {"kind": "grpo"}, "kind is one of rloo, group-mean, none, got 'grpo'"),
        ("poise", {"evidence": ("constant", "luck")}, "evidence blocks are constant, .*; got 'luck'"),
        ("poise", {"penalties": (1.0, 0.0)}, r"penalties must be positive numbers, got \(1.0, 0.0\)"),
        ("poise", {"penalties": ()}, r"penalties must be positive numbers, got \(\)"),
        ("poise", {"window_rows": -1}, "window_rows must be at least 0 .* got -1 and 256"),
        ("poise", {"projection_size": 0}, "projection_size at least 1, got 4096 and 0"),
        ("poise", {"scalars": ("answr_length",)}, "got 'answr_length', the closest is 'answer_length'"),
        ("paper", {"scalars": ("length",)}, "scalars are completion_mean_entropy, .*'own:'; got 'length'"),
        ("paper", {"probe": "forest"}, "probes are ridge, logistic, mlp; got 'forest'"),
        ("paper", {"penalty": 0.0}, "a probe's penalty must be positive, got 0.0"),
        ("paper", {"members": (("ridge", 1.0), ("svm", 1.0))}, "probes are ridge, logistic, mlp; got 'svm'"),
        ("paper", {"combination": "median"}, "combination is one of mean, stacked, got 'median'"),
        ("paper", {"target": "mine"}, "target is one of siblings, group, own, got 'mine'"),
    ],
)
def test_bad_presets_are_refused_with_a_sentence(name, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        poise.preset(name, **changes)


@pytest.mark.parametrize("member", ["ridge", ("ridge",), ("ridge", "much")])
def test_a_member_that_is_no_kind_and_penalty_is_refused(member):
    recipe = poise.preset("paper", window_rows=1).recipe
    object.__setattr__(recipe, "members", (member,))  # past the type checks that only tests have
    with pytest.raises(ValueError, match=r"a member is a kind and a penalty, such as \('ridge', 0.01\); got \W*ridge"):
        recipe.__post_init__()
