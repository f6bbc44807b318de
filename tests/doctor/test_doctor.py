"""Every check of the doctor fires where it should and nowhere else, and the command says so."""

import math
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from poise.cli import app
from poise.diagnostics.row_isolation import RowIsolation
from poise.doctor.checks import (
    cache_finding,
    contract_finding,
    disk_finding,
    gap_finding,
    garbage_finding,
    memory_finding,
    padding_finding,
    rows_finding,
    sampling_finding,
    temperature_finding,
    thinking_finding,
    trainable_finding,
    update_finding,
    versions_finding,
)
from poise.report.alarms import RECENT, alarms, useless_alarm
from poise.train.alarms import RunWatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

NEUTRAL = {"repetition_penalty": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "temperature": 1.0}
BF16 = torch.linspace(0.01, 0.1, 100).to(torch.bfloat16)
LOGPROBS = torch.linspace(-3.0, -0.1, 50)
GIB = 2**30
APART, LEAK, LEAK_PADDED = (
    RowIsolation(*found) for found in ((0.0, "tiny", False), (9.0, "tiny"), (9.0, "tiny", False))
)


@pytest.mark.parametrize(
    ("finding", "level", "words"),
    [
        (sampling_finding(NEUTRAL, {}), "ok", "the distribution that is trained on"),
        (sampling_finding(NEUTRAL, {"repetition_penalty": 1.1}), "ok", ""),  # the run's own option wins
        (sampling_finding(NEUTRAL | {"repetition_penalty": 1.1}, {}), "fail", "repetition_penalty is 1.1"),
        *(
            (sampling_finding(NEUTRAL, {name: value}), "fail", f"{name} is {value} (neutral: ")
            for name, value in {
                "no_repeat_ngram_size": 3,
                "suppress_tokens": [5],
                "num_beams": 4,
                "min_new_tokens": 8,
                "min_length": 9,
                "forced_eos_token_id": 1,
                "guidance_scale": 2.0,
            }.items()
        ),
        *(
            (sampling_finding(NEUTRAL, {name: value}), "warn", f"{name} is {value} (neutral: ")
            for name, value in {"min_p": 0.1, "typical_p": 0.9, "top_h": 0.4, "eta_cutoff": 0.1}.items()
        ),
        (sampling_finding(NEUTRAL, {"min_p": 0.1}), "warn", "from the model's generation_config.json"),
        (sampling_finding(NEUTRAL | {"top_p": 0.9}, {}), "warn", "top_p is 0.9 (neutral: 1.0): that cuts off tokens"),
        (sampling_finding(NEUTRAL | {"top_k": 20}, {}), "warn", "top_k is 20 (neutral: 0)"),
        (sampling_finding(NEUTRAL | {"do_sample": False}, {"do_sample": True}), "fail", "do_sample is False"),
        (
            sampling_finding(NEUTRAL, {"do_sample": False}),
            "ok",
            "",
        ),  # the trainer samples, whatever the model's file says
        (temperature_finding(0.7, 0.7), "ok", ""),
        (temperature_finding(0.7, 1.0), "fail", "sampled at temperature 0.7 and trained on at 1.0"),
        (temperature_finding(0.0, 0.0), "fail", "needs more than 0"),
        (padding_finding(0), "ok", ""),
        (padding_finding(None), "fail", "has no padding token"),
        (trainable_finding(torch.nn.Linear(2, 3)), "ok", "9 of 9 parameters are trained"),
        (trainable_finding(torch.nn.Linear(2, 3).requires_grad_(False)), "fail", "nothing in the model can be trained"),
        (thinking_finding("</think>", [7], "{{ x }}<think>"), "ok", "reasoning ends at '</think>'"),
        (thinking_finding("</think>", [7], None), "ok", ""),
        (thinking_finding("</think>", [7], "{{ x }}"), "ok", "the chat template does not know '</think>'"),
        (thinking_finding("</think>", [], None), "warn", "cannot spell '</think>'"),
        (thinking_finding(None, [], "{{ x }}"), "ok", ""),
        (cache_finding(use_cache=True), "ok", ""),
        (cache_finding(use_cache=False), "warn", "does not keep keys and values"),
        (update_finding(BF16.float(), 1e-6), "ok", "float32"),
        (update_finding(BF16, 1e-2), "ok", "changes 100% of the weights"),
        (update_finding(BF16, 1e-6), "fail", "changes 0% of the weights, which are bf16: keep them in float32"),
        (gap_finding(LOGPROBS, LOGPROBS + 0.004), "ok", "0.0040 nats a token on 50 tokens"),
        (gap_finding(LOGPROBS, LOGPROBS - 0.006), "warn", "less than 0.005 is healthy"),
        (gap_finding(LOGPROBS, LOGPROBS * 1.1), "fail", "look for other sampling settings"),
        (gap_finding(LOGPROBS[:0], LOGPROBS[:0]), "fail", "on 0 tokens"),
        (garbage_finding({"": 0.0, "x": 0.01}, full_marks=1.0), "ok", ""),
        (garbage_finding({"": 0.0, "x": 1.0}, full_marks=1.0), "fail", "the reward of 'x' is 1, as of a right answer"),
        (garbage_finding({"": math.nan}, full_marks=1.0), "warn", "'' is ungradable, where it should be wrong"),
        (rows_finding(APART, APART, reads_siblings=True), "ok", "keeps rows apart, padded and packed"),
        (rows_finding(APART, LEAK, reads_siblings=True), "ok", "elsewhere: tiny lets a packed row see its neighbour"),
        (rows_finding(LEAK_PADDED, LEAK, reads_siblings=True), "fail", "a padded row see its neighbour"),
        (rows_finding(LEAK_PADDED, LEAK, reads_siblings=False), "warn", "a preset that reads no siblings"),
        (contract_finding("TRL is", kept=True, run=True), "ok", "TRL is"),
        (contract_finding("TRL is", kept=True, run=False), "warn", "TRL is"),
        (contract_finding("TRL changed", kept=False, run=True), "fail", "TRL changed"),
        (memory_finding(8.0 * GIB, 4.0 * GIB), "ok", "needs 4.0 GiB"),
        (memory_finding(5.0 * GIB, 4.0 * GIB), "warn", "lower per_device_train_batch_size"),
        (memory_finding(3.0 * GIB, 4.0 * GIB), "fail", "use a smaller model"),
        (disk_finding(3.0 * GIB, 2.0 * GIB), "ok", ""),
        (disk_finding(1.0 * GIB, 2.0 * GIB), "fail", "set save_total_limit"),
        (versions_finding(["trl<1.17,>=1.15", "verl==9; extra == 'verl'"], {"trl": "1.16.0"}), "ok", ""),
        (versions_finding(["trl<1.17,>=1.15"], {"trl": "1.18.0"}), "warn", "found 1.18.0: install the versions in"),
        (versions_finding(["trl<1.17,>=1.15"], {}), "warn", "found none"),
    ],
)
def test_a_check_fires_where_it_should_and_nowhere_else(finding: Any, level: str, words: str):
    assert finding.level == level, finding
    assert words in finding.sentence


def test_the_share_of_weights_that_an_update_changes_is_that_of_adding_it():
    torch.manual_seed(0)
    weights = (torch.randn(4000) * 0.02).to(torch.bfloat16)
    changed = float((weights.float() + 1e-5).to(torch.bfloat16).ne(weights).float().mean())
    share = float(update_finding(weights, 1e-5).sentence.split("changes ")[1].split("%")[0]) / 100
    assert share == pytest.approx(changed, abs=0.02)
    assert 0.05 < share < 0.95


# During a run.


def healthy(num: int, **changes: Any) -> list[dict[str, Any]]:
    line = {
        "reward": 0.5,
        "entropy": 0.8,
        "completions/mean_length": 100.0,
        "completions/clipped_ratio": 0.05,
        "frac_reward_zero_std": 0.5,
        "poise/ungradable_share": 0.0,
        "poise/variance_reduction": 0.3,
    }
    return [line | changes for _ in range(num)]


@pytest.mark.parametrize(
    ("changes", "name", "words", "stops"),
    [
        ({"entropy": 0.01}, "entropy", "fell from 0.800 to 0.010 nats", False),
        (
            {"completions/mean_length": 300.0, "completions/clipped_ratio": 0.6},
            "length",
            "grew from 100 to 300 tokens and 60% are cut off",
            False,
        ),
        ({"completions/clipped_ratio": 0.4}, "truncated", "40% of completions are cut off before they end", False),
        (
            {"frac_reward_zero_std": 1.0},
            "saturation",
            "in 100% of the groups all rewards are the same (mean 0.50)",
            False,
        ),
        ({"poise/variance_reduction": -0.1}, "values", "after a variance reduction of 0.30", False),
        (
            {"poise/ungradable_share": 0.3, "reward/ungradable/worker_lost": 0.04},
            "ungradable",
            "30% of the rollouts of the last 5 batches could not be graded (worker lost 4%): look at ungradable.jsonl",
            True,
        ),
        (
            {"reward/ungradable/worker_lost": 0.1},
            "drift of worker_lost",
            "'worker lost' makes 10% of rollouts ungradable, 0.0% before: look at ungradable.jsonl",
            True,
        ),
        (
            {"reward/wrong/time_limit": 0.1},
            "drift of time_limit",
            "'time limit' makes 10% of rollouts wrong, 0.0% before: the policy may have learnt to cause it",
            False,
        ),
    ],
)
def test_an_alarm_is_given_when_the_newest_batches_are_unlike_those_before(
    changes: dict[str, float], name: str, words: str, stops: bool
):
    (alarm,) = alarms(healthy(10) + healthy(RECENT, **changes))
    assert (alarm.name, alarm.stops) == (name, stops)
    assert words in alarm.sentence
    # The control: one such batch is none.
    assert alarms(healthy(14) + healthy(1, **changes)) == [] or name.startswith("drift") or name == "ungradable"


@pytest.mark.parametrize(
    ("changes", "name", "stops"),
    [
        ({"reward": math.nan}, "no rewards", True),
        ({"reward": None}, "no rewards", True),  # as in metrics.jsonl
        ({"reward": 1.0, "reward_std": 0.0}, "equal rewards", False),
    ],
)
def test_rewards_that_tell_nothing_are_said_however_short_the_run(changes: dict[str, Any], name: str, stops: bool):
    found = alarms(healthy(RECENT, **changes))
    assert [(alarm.name, alarm.stops) for alarm in found if alarm.name == name] == [(name, stops)]
    watch = RunWatch()
    watch.on_log(None, None, None, logs=healthy(1, **changes)[0])
    watch.on_train_end(None, None, None)
    assert bool(watch.reason) == stops
    assert useless_alarm(healthy(2, reward_std=0.1)) is None


def test_a_healthy_run_gives_no_alarm_and_a_short_one_neither():
    assert alarms(healthy(40)) == []
    assert alarms(healthy(RECENT - 1, **{"poise/ungradable_share": 1.0})) == []
    # A cause that was as frequent all along is no drift, and lines between batches do not count.
    assert alarms(healthy(40, **{"reward/ungradable/worker_lost": 0.1})) == []
    assert alarms([line for each in healthy(20) for line in (each, {"loss": 0.1, "entropy": 0.0})]) == []


def test_an_alarm_is_said_once_and_a_stopping_one_is_the_reason(caplog: pytest.LogCaptureFixture):
    watch = RunWatch()
    for line in healthy(10) + healthy(10, **{"entropy": 0.01}) + healthy(10, **{"poise/ungradable_share": 0.5}):
        watch.on_log(None, None, None, logs=line)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["token", "30%"]
    assert "could not be graded" in watch.reason  # three batches of five with half of their rollouts


# The command.


def poise(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})


def test_the_embedded_run_is_healthy_and_a_penalty_is_seen_in_its_log_probs(tmp_path: Any):
    result = poise("--output", str(tmp_path), "--eval-prompts", "4")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    for check in (
        "contract",
        "rows",
        "sampling",
        "temperature",
        "log-probs",
        "gold answers",
        "garbage",
        "memory",
        "disk",
    ):
        assert any(line.startswith(f"{check} ok ") for line in lines), (check, result.output)
    biased = poise("--output", str(tmp_path), "--repetition-penalty", "1.5")
    assert biased.exit_code == 1
    lines = [" ".join(line.split()) for line in biased.output.splitlines()]
    assert any(line.startswith("sampling fail repetition_penalty is 1.5") for line in lines)
    assert any(line.startswith("log-probs fail ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "none.jsonl"], "there is no file none.jsonl"),
        (["no/such.yaml"], "there is no file no/such.yaml"),
        (["--learnin-rate", "1"], "there is no setting learnin_rate"),
    ],
)
def test_a_run_that_cannot_begin_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str):
    result = poise(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"poise doctor: {sentence}")
