"""Which runs there are, which learning rates are tried, and that nothing complete is ever run again."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from poise.cli import app
from poise.cli.compare import compare
from poise.cli.study import study
from poise.lab.compare.arms import ARMS, MethodRecipe
from poise.lab.compare.pages import write_results
from poise.lab.compare.plan import FIRST_TUNING_SEED, Comparison, Conditions, Run
from poise.lab.compare.schedule import RunFailed, Schedule, best_learning_rate, next_learning_rate
from poise.lab.study.settings import StudySettings
from poise.online import OnlineBaseline
from poise.presets import PRESETS, Preset
from poise.storage.run_directory import RunDirectory

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CONDITIONS = Conditions(rollouts=96, batch_rollouts=16, evaluations=4, eval_prompts=8)


def comparison(*arms, **changes):
    return Comparison(CONDITIONS, arms or ("poise", "dapo"), **({"num_seeds": 2} | changes))


# Arms and conditions.


def test_every_preset_is_an_arm_and_the_biased_control_is_trained_on_purpose():
    assert set(PRESETS) < set(ARMS)
    assert Run("same-rollout", 1e-3, 0).config(CONDITIONS, "unused").preset == "same-rollout"


def test_arms_differ_in_what_they_are_and_share_all_else():
    configs = {name: Run(name, 1e-3, 0).config(CONDITIONS, "unused") for name in ("poise", "grpo", "dapo", "critic")}
    shared = ("generation_batch_size", "per_device_train_batch_size", "steps_per_generation", "temperature", "top_p")
    shared += ("max_completion_length", "learning_rate", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "beta")
    shared += ("gradient_accumulation_steps", "num_iterations", "weight_decay", "adam_beta2", "seed", "top_k")
    for name in (*shared, "disable_dropout", "shuffle_dataset", "optim", "max_steps"):
        assert len({str(getattr(config, name)) for config in configs.values()}) == 1, name
    assert [configs[name].num_generations for name in configs] == [2, 8, 8, 2]
    alone = ("poise-single", "running-mean", "spo", "remax", "critic-single")
    assert {Run(name, 1e-3, 0).config(CONDITIONS, "unused").num_generations for name in alone} == {1}
    assert (configs["grpo"].loss_type, configs["grpo"].scale_rewards) == ("grpo", "group")
    assert (configs["dapo"].loss_type, configs["dapo"].epsilon_high) == ("dapo", 0.28)
    assert configs["grpo"].epsilon_high in (None, 0.2)


PAGE = (Path(__file__).parents[3] / "docs/compare.md").read_text()
HALF = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
MORE = """

class Needy(Half):
    needs_features = weighted = True
    group_size = 4


class Demanding(Half):
    def __init__(self, number):
        self.number = number


class Nothing:
    pass


class Endless(Half):
    group_size = 0
"""


def test_the_entry_of_the_page_is_an_arm_of_at_most_thirty_lines(tmp_path):
    (tmp_path / "mine.py").write_text(HALF)
    assert len(HALF.splitlines()) <= 30
    spec = f"{tmp_path}/mine.py:Half"
    run = Run(spec, 1e-3, 0)
    config = run.config(CONDITIONS, "unused")
    assert (config.num_generations, config.preset) == (2, "none")
    baseline = OnlineBaseline(Preset("mine", MethodRecipe(spec)))
    step = baseline.step(None, torch.tensor([1.0, 0, torch.nan, 1]), prompts=["a", "a", "a", "b"])
    assert step.baselines.tolist() == [0, 0.5, 0.25, 0.25]
    before = run.name  # another version of the file is another arm, with a folder of its own
    (tmp_path / "mine.py").write_text(HALF.replace("/ 2", "/ 3"))
    assert before.startswith("Half-")
    assert before != run.name


def test_a_method_says_what_has_to_be_read_for_it(tmp_path):
    (tmp_path / "mine.py").write_text(HALF + MORE)
    needy = Run(f"{tmp_path}/mine.py:Needy", 1e-3, 0).config(CONDITIONS, "unused")
    assert (needy.num_generations, needy.needs_pass) == (4, True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Nothing", "is no method: it needs step, state_dict and load_state_dict"),
        ("Demanding", "must be made without arguments"),
        ("Endless", "group_size of .* must be a whole number of rollouts a prompt, got 0"),
        ("Gone", "has no function 'Gone': it has Half, Needy, Demanding, Nothing, Endless"),
    ],
)
def test_what_is_no_method_is_refused(tmp_path, name, sentence):
    (tmp_path / "mine.py").write_text(HALF + MORE)
    with pytest.raises(ValueError, match=sentence):
        comparison(f"{tmp_path}/mine.py:{name}", "poise")


def test_a_twin_differs_in_the_seed_of_sampling_alone():
    run, twin = Run("poise", 1e-3, 3), Run("poise", 1e-3, 3, twin=True)
    assert twin.name != run.name
    ours, theirs = (each.config(CONDITIONS, "unused").to_dict() for each in (run, twin))
    assert {name for name in ours if ours[name] != theirs[name]} == {"seed"}


@pytest.mark.parametrize(
    ("command", "settings", "names"),
    [
        (
            compare,
            Conditions(),
            ("rollouts", "batch_rollouts", "batch_updates", "evaluations", "eval_prompts", "completions"),
        ),
        (
            study,
            StudySettings("embedded", ("embedded",)),
            ("k", "temperature", "max_completion_length", "seed", "resamples"),
        ),
    ],
    ids=["compare", "study"],
)
def test_commands_have_the_defaults_of_their_settings(command, settings, names):
    defaults = {name: each.default for name, each in inspect.signature(command).parameters.items()}
    assert {name: defaults[name] for name in names} == {name: getattr(settings, name) for name in names}


def test_learning_rates_are_chosen_on_seeds_that_are_used_for_nothing_else():
    compared = comparison(num_seeds=20, num_tuning_seeds=3)
    tuned = {run.seed for run in compared.tuning_runs("poise", 1e-3)}
    used = {run.seed for run in compared.compared_runs({"poise": 1e-3, "dapo": 1e-4})}
    sampled = {run.sampling_seed for run in compared.compared_runs({"poise": 1e-3, "dapo": 1e-4})}
    assert len(tuned) == 3
    assert tuned.isdisjoint(used | sampled)
    assert min(tuned) == FIRST_TUNING_SEED


def test_seeds_are_compared_arm_by_arm_so_that_all_share_what_a_machine_is_up_to():
    runs = comparison().compared_runs({"poise": 1e-3, "dapo": 1e-4})
    assert [(run.seed, run.arm, run.twin) for run in runs] == [
        (0, "poise", False),
        (0, "dapo", False),
        (0, "poise", True),
        (1, "poise", False),
        (1, "dapo", False),
        (1, "poise", True),
    ]


# Learning rates.

GRID = (1e-4, 3e-4, 1e-3)


def test_a_grid_is_tried_whole_then_widened_while_the_best_rate_lies_at_an_edge():
    best_at = {1e-4: 0.5, 3e-4: 0.6, 1e-3: 0.7, 3e-3: 0.8, 1e-2: 0.2}
    scores = {}
    while (rate := next_learning_rate(scores, GRID)) is not None:
        scores[rate] = best_at[rate]
    assert list(scores) == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    assert best_learning_rate(scores) == 3e-3


def test_a_best_rate_inside_the_grid_ends_the_search():
    assert next_learning_rate(dict(zip(GRID, (0.5, 0.6, 0.55), strict=True)), GRID) is None


def test_a_grid_is_widened_downwards_too_and_not_for_ever():
    scores = dict(zip(GRID, (0.9, 0.6, 0.5), strict=True))
    tried = []
    while (rate := next_learning_rate(scores, GRID)) is not None:
        tried.append(rate)
        scores[rate] = 0.9 + len(tried) / 100
    assert tried == [3e-5, 1e-5, 3e-6]


def test_a_diverged_rate_is_the_worst_and_of_equal_ones_the_lower_is_taken():
    assert best_learning_rate({1e-4: 0.5, 3e-4: 0.5, 1e-3: float("nan")}) == 1e-4


# The schedule, with runs that only pretend.


def pretended(accuracy_of, *, fails=lambda run: False):
    """A way to carry out runs that writes plausible files and keeps a list of what it did."""
    done = []

    def carry(conditions, run, folder, *, side_by_side, told):
        directory = RunDirectory(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if fails(run):
            (folder / "metrics.jsonl").write_text("half a li")
            raise RunFailed(f"run {run.name} failed")
        done.append(run)
        final = accuracy_of(run)
        directory.metrics.write_text("")
        slower = 2.0 if run.arm == "dapo" else 1.0
        for number in range(5):
            counts = {name: 0 for name in ("silent_prompts", "silent_tokens", "surplus_tokens", "unfilled_steps")}
            directory.append_metrics(
                counts
                | {"updates": 2 * number, "rollouts": 24 * number, "tokens": 240 * number, "prompts": 12 * number}
                | {"seconds": slower * number, "cpu_seconds": slower * number, "entropy": 0.5, "reward": 0.5}
                | {"accuracy": final - 0.1 + 0.1 * min(number, 2) / 2, "memory_mib": 700.0}
            )
            told(number / 4, final)
        memory = {"memory_mib_before_training": 500.0, "memory_mib": 700.0, "critic_mib": 0.0}
        sharpness = {"pass_at": {"1": final, "8": 0.9, "16": 0.95}, "distinct_answers": 3.0 + run.seed}
        told_at_the_end = {"sharpness": sharpness} | ({"sharpness_before": sharpness} if run.twin else {})
        summary = {"final_accuracy": final, "side_by_side": side_by_side, "versions": {}}
        directory.write_summary(summary | memory | told_at_the_end)

    return carry, done


def tuned_accuracy(run):
    """Best at 3e-3, outside the first grid; seeds differ a little, twins by chance."""
    score = {1e-4: 0.4, 3e-4: 0.5, 1e-3: 0.6, 3e-3: 0.7, 1e-2: 0.3}[run.learning_rate]
    return score + 0.01 * (run.seed % 7) + (0.05 if run.arm == "poise" else 0.0) + (0.002 if run.twin else 0.0)


def test_a_comparison_chooses_learning_rates_then_compares_and_writes_what_it_found(tmp_path):
    carry, done = pretended(tuned_accuracy)
    schedule = Schedule(tmp_path, comparison(learning_rates=GRID, num_tuning_seeds=2))
    said = []
    schedule.carry_out(watch=lambda *told: said.append(told), carry=carry)
    assert schedule.learning_rates() == {"poise": 3e-3, "dapo": 3e-3}
    assert len(done) == len(set(done)) == 2 * 5 * 2 + 2 * 3  # arms x rates x tuning seeds, seeds x (arms and a twin)
    assert said[-1][1:] == (len(done), len(done))
    assert "complete, final held-out" in said[-1][0]
    assert schedule.missing() == []
    results = write_results(schedule)
    assert results["arms"]["poise"]["difference"]["value"] == pytest.approx(0.05)
    assert results["arms"]["poise"]["verdict"] == "higher"
    assert results["twice"]["accuracy_floor"] == pytest.approx(4.303 * 0.002 / 2**0.5, rel=1e-3)  # t_2 = 4.303
    tables = (tmp_path / "compare.md").read_text()
    assert "+0.050" in tables
    assert "Runs came one after another." in tables
    assert results["arms"]["dapo"]["pass_at"]["16"]["value"] == pytest.approx(0.95)
    assert results["arms"]["dapo"]["distinct_answers"]["value"] == pytest.approx(3.5)
    assert results["arms"]["poise"]["entropy_at_target"] == 0.5
    assert "| before training " in tables
    assert json.loads((tmp_path / "compare.json").read_text())["target"] == pytest.approx(results["target"])
    assert (tmp_path / "accuracy.svg").read_text().count("<svg") == 1


def test_an_interrupted_comparison_goes_on_and_repeats_nothing(tmp_path):
    asked = comparison(learning_rates=GRID, num_tuning_seeds=1)
    carry, before = pretended(tuned_accuracy, fails=lambda run: run.arm == "dapo" and run.learning_rate == 3e-3)
    with pytest.raises(RunFailed, match=r"dapo/lr-0\.003"):
        Schedule(tmp_path, asked).carry_out(carry=carry)
    carry, after = pretended(tuned_accuracy)
    Schedule(tmp_path, asked).carry_out(carry=carry)
    assert before
    assert set(before).isdisjoint(after)
    assert Run("dapo", 3e-3, FIRST_TUNING_SEED) in after  # its folder was there, without a summary
    whole, in_one_go = pretended(tuned_accuracy)
    Schedule(tmp_path / "other", asked).carry_out(carry=whole)
    assert sorted(map(str, before + after)) == sorted(map(str, in_one_go))


def test_arms_and_seeds_can_be_added_to_a_folder(tmp_path):
    carry, first = pretended(tuned_accuracy)
    Schedule(tmp_path, comparison(learning_rates=(1e-3,), num_tuning_seeds=0)).carry_out(carry=carry)
    carry, second = pretended(tuned_accuracy)
    wider = comparison("poise", "dapo", "rloo", learning_rates=(1e-3,), num_tuning_seeds=0, num_seeds=3)
    Schedule(tmp_path, wider).carry_out(carry=carry)
    assert set(first).isdisjoint(second)
    assert {run.arm for run in second if run.seed < 2} == {"rloo"}


def test_only_seeds_that_are_complete_in_every_arm_count(tmp_path):
    asked = comparison(learning_rates=(1e-3,), num_tuning_seeds=0, num_seeds=3)
    carry, _ = pretended(tuned_accuracy, fails=lambda run: run.arm == "dapo" and run.seed == 1)
    schedule = Schedule(tmp_path, asked)
    with pytest.raises(RunFailed):
        schedule.carry_out(carry=carry)
    with pytest.raises(ValueError, match="2 seeds that are complete in every arm, got 1"):
        write_results(schedule)


def test_other_conditions_in_the_same_folder_are_refused(tmp_path):
    Schedule(tmp_path / "a", comparison())
    other = Comparison(Conditions(rollouts=112, batch_rollouts=16, evaluations=4, eval_prompts=8), ("poise", "dapo"))
    with pytest.raises(ValueError, match="holds another comparison: rollouts is 96 there and 112 here"):
        Schedule(tmp_path / "a", other)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").touch()
    with pytest.raises(FileExistsError, match="already holds something that is no comparison"):
        Schedule(tmp_path / "b", comparison())


# Bad input.

BAD = [
    (["--arms", "poise,dappo"], "got 'dappo'"),
    (["--arms", "poise,gone.py:Mine"], "method 'gone.py:Mine' cannot be imported: FileNotFoundError: there is no file"),
    (["--batch-rollouts", "100", "--arms", "poise,grpo"], "100 are no whole groups of 8, which grpo needs"),
    (["--seeds", "1"], "an interval over seeds needs 2 seeds or more, got 1"),
    (["--arms", "poise,poise"], "every arm stands once"),
    (["--learning-rates", "1e-4,fast"], "--learning-rates needs numbers such as 1e-4,3e-4,1e-3, got '1e-4,fast'"),
    (["--learning-rates", "1e-4,3e-4"], "a choice of learning rates needs 3 of them or more, got 2"),
    (["--learning-rates", "3e-4,1e-4,1e-3"], "learning rates are positive and rise"),
    (["--num-generations", "4"], "num_generations cannot be set in a comparison: every arm has its own"),
    (["--lr-scheduler-type", "linear"], "lr_scheduler_type must be constant, got 'linear'"),
    (["--rollouts", "200"], "3 generation batches of 128 rollouts or more, got 200"),
    (["--such-option", "1"], "there is no setting such_option"),
    (["--twin", "rloo", "--arms", "poise,dapo"], "the arm run twice must be one of poise, dapo, got 'rloo'"),
    (["--jobs", "0"], "jobs must be 1 or more, got 0"),
    (["--temperature", "warm"], "temperature needs a number, got 'warm'"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, options, sentence):
    done = CliRunner().invoke(app, ["compare", "--output", str(tmp_path / "c"), *options])
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "c").exists()
