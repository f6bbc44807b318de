"""Generators of reasoning-gym: the same problems in every process, gold right, garbage wrong."""

import os
import subprocess
import sys

import pytest
from reasoning_gym.factory import DATASETS

from poise.rewards import verdict
from poise.tasks.generated import REFUSED, SET_ORDERED
from poise.tasks.graded_task import GARBAGE
from poise.tasks.task import task_named

PROMPTS = "from poise.tasks.task import task_named; print(task_named({spec!r}).problems(5, seed=3))"
SLOW = {"futoshiki"}
"""Minutes a problem with the default settings."""


@pytest.mark.parametrize("name", ["isomorphic_strings", "chain_sum"])
def test_problems_do_not_depend_on_the_hash_seed(name):
    drawn = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROMPTS.format(spec=f"reasoning-gym:{name}")],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert drawn[0] == drawn[1]


def test_held_out_prompts_are_distinct_and_fewer_where_there_are_fewer():
    problems = task_named("reasoning-gym:tower_of_hanoi?max_disks=3").problems(100, seed=1, split="heldout")
    assert 0 < len(problems) == len({problem.prompt for problem in problems}) < 100


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_data_sets_that_cannot_be_trained_on_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} of reasoning-gym"):
        task_named(f"reasoning-gym:{name}")


def test_a_score_that_raises_is_wrong_where_there_is_no_gold_answer():
    (problem,) = task_named("reasoning-gym:graph_color").problems(1, seed=0)
    assert problem.answer == ""
    assert verdict("</think>nothing of the kind", problem).reward == 0.0


def grades(name):
    (problem,) = task_named(f"reasoning-gym:{name}").problems(1, seed=0)
    garbage = [verdict(f"</think>{text}", problem).reward for text in GARBAGE]
    return verdict(f"</think>{problem.answer}", problem).reward if problem.answer else 1.0, max(garbage)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(REFUSED) - SLOW))
def test_gold_earns_full_marks_and_garbage_less(name):
    gold, garbage = grades(name)
    assert gold == pytest.approx(1.0)
    assert garbage < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SET_ORDERED))
def test_sets_have_no_say(name):
    test_problems_do_not_depend_on_the_hash_seed(name)
