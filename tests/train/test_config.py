"""Text becomes settings by the types of the dataclasses, and every mistake is one sentence."""

import typing

import pytest
import yaml

from poise.train.config import EMBEDDED_DEFAULTS, run_settings, trainer_types, typed_value

# Hosts warn of their own deprecated options.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 1e-3),
        ("2", float, 2.0),
        (2, float, 2.0),
        ("-1", int, -1),
        ("true", bool, True),
        ("False", bool, False),
        ("true", str, "true"),
        ("no", bool | str, "no"),
        ("null", int | None, None),
        ("none", float | None, None),
        ("none", str | None, "none"),
        ("null", str | None, None),
        ("1,2", list[int] | None, [1, 2]),
        ("[1, 2]", list[int], [1, 2]),
        ("{window_rows: 7}", dict[str, typing.Any] | str | None, {"window_rows": 7}),
        ("auto", int | str | None, "auto"),
        ("8", int | str | None, 8),
        ("false", str | typing.Literal[False] | None, "false"),
    ],
)
def test_text_is_read_by_the_type_of_its_field(text, wanted, value):
    found = typed_value(text, wanted, name="x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "wanted", "sentence"),
    [
        ("fast", float, "x needs a number, got 'fast'"),
        ("2.5", int, "x needs a whole number, got '2.5'"),
        (2.5, int, "x needs a whole number, got 2.5"),
        (True, int, "x needs a whole number, got True"),
        ("yes", bool, "x needs true or false, got 'yes'"),
        (1, bool, "x needs true or false, got 1"),
        (None, int, "x needs a whole number, got None"),
        ("1,a", list[int], "x needs a list such as 1,2, got '1,a'"),
        (3, dict[str, int] | str | None, "x needs a mapping such as {a: 1} or text, got 3"),
    ],
)
def test_a_wrong_value_is_one_sentence(text, wanted, sentence):
    with pytest.raises(ValueError, match=r"^x needs ") as error:
        typed_value(text, wanted, name="x")
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"learnin_rate": "1"}, "there is no setting learnin_rate; the closest is learning_rate; "),
        ({"step": "1"}, "there is no setting step; the closest is steps; "),
        ({"qqqq": "1"}, "there is no setting qqqq; `poise train --list-options` lists all"),
        ({"output_dir": "x"}, "output_dir cannot be set: the run's checkpoints go to its own folder: "),
        ({"steps": 1, "max_steps": 2}, "steps and max_steps are the same setting: give one of them"),
        ({"steps": "0"}, "steps must be 1 or more, got 0"),
        ({"model": "no/such/folder"}, "model needs 'embedded', 'smollm2', a folder .*, got 'no/such/folder'"),
        ({"families": "sum,hanoi"}, "families needs names out of sum, sort, .*, got .*hanoi"),
        ({"save_strategy": "often"}, "save_strategy needs one of no, steps, epoch, best, got 'often'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_settings(given)


def test_what_is_given_last_wins_over_files_and_both_over_defaults():
    settings = run_settings(
        {"max_steps": "5", "learning_rate": 0.5, "beta": "0.1"}, {"steps": "7", "learning_rate": "2"}
    )
    assert settings.steps == 7
    assert settings.trainer == EMBEDDED_DEFAULTS | {"learning_rate": 2.0, "beta": 0.1}


def test_size_of_the_generation_batch_has_two_names():
    settings = run_settings({"generation_batch_size": "128", "per_device_train_batch_size": "32"})
    assert settings.poise_config("x").steps_per_generation == 4


def test_default_settings_cost_no_extra_forward_and_are_unbiased():
    config = run_settings().poise_config("x")
    assert config.behaviour_pass_is_made
    assert config.sources_of_bias == []


def test_resolved_settings_make_the_same_run_again():
    settings = run_settings({"layers": "1,2", "preset_options": "{window_rows: 64}", "seed": 3, "families": "sum"})
    resolved = settings.resolved(settings.poise_config("x"))
    assert settings.poise_config("x").seed == resolved["seed"] == 3
    again = run_settings(yaml.safe_load(yaml.safe_dump(resolved)))
    assert again.resolved(again.poise_config("x")) == resolved
    assert resolved["layers"] == [1, 2]
    assert resolved["threads"] == 1
    assert (resolved["use_peft"], resolved["dtype"]) == (False, "float32")
    missing = set(trainer_types()) - set(resolved)
    assert missing == {"output_dir", "max_steps", "hub_token", "generation_batch_size"}
