"""Rewards on verl are those of poise's verifiers, and survive functions that raise."""

import asyncio
import math

import pytest

from poise.engines.verl.rewards import compute_score, guarded_score, verifier_of


@pytest.mark.parametrize(
    ("source", "info", "answer", "solution", "reward"),
    [
        ("math__dapo", None, "\\frac{1}{2}", "So it is \\boxed{0.5}.", 1.0),
        ("aime2026", {"index": 3}, 204, "\\boxed{204}", 1.0),
        ("aime2026", None, "204", "\\boxed{203}", 0.0),
        ("mine", {"verifier": "exact"}, "two", "<answer>two</answer>", 1.0),
        ("mine", {"verifier": "exact"}, "", "two", math.nan),
    ],
)
def test_a_solution_is_graded_by_the_rows_verifier(source, info, answer, solution, reward):
    found = compute_score(source, solution, answer, info)
    assert found["score"] == pytest.approx(reward, nan_ok=True)
    assert found["acc"] == pytest.approx(reward, nan_ok=True)


def test_a_thought_that_the_prompt_began_and_nobody_ended_has_no_answer():
    row = ("mine", "two", "two", {"verifier": "exact"})
    assert compute_score(*row)["score"] == 1
    assert compute_score(*row, opening="<think>")["score"] == 0


def test_sources_without_a_verifier_are_named():
    assert verifier_of("logic__zebra_puzzle") is None
    assert verifier_of("codegen__taco") == "python"
    with pytest.raises(ValueError, match="no verifier for the data_source 'logic__zebra_puzzle'"):
        compute_score("logic__zebra_puzzle", "", "")


FUNCTIONS = """
async def waits(solution_str, **given):
    return len(solution_str)

def raises(**given):
    raise KeyError("ground truth")
"""


def test_a_function_that_raises_makes_a_rollout_ungradable_and_is_said_once(tmp_path, caplog):
    (tmp_path / "functions.py").write_text(FUNCTIONS)

    def score(name):
        given = {"data_source": "mine", "solution_str": "abc", "ground_truth": ""}
        return asyncio.run(guarded_score(poise_function=(str(tmp_path / "functions.py"), name), **given))

    assert score("waits") == 3
    for _ in range(2):
        found = score("raises")
        assert math.isnan(found["score"])
        assert found["poise_raised"] == 1
    assert caplog.text.count("the reward function raised KeyError for the data_source 'mine'") == 1
