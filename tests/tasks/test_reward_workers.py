"""Many rollouts, some of which hang, crash or raise: each is accounted for, and nothing is left behind."""

import math
import multiprocessing.forkserver
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hostile_verifiers import HostileProblem

from poise.rewards import Grader
from poise.tasks.grading import ATTEMPTS, SECONDS_TO_START

SECONDS = 0.2
SCRIPT = """
from poise.rewards import Grader
from poise.tasks.problem import Problem

def work():
    print("begun", flush=True)
    with Grader(workers=1) as grader:
        print(grader.rewards(["\\\\boxed{4}"], [Problem("2 + 2", "4", "sums", verifier="math")]))

"""


@pytest.mark.parametrize("guard", ['if __name__ == "__main__":\n    ', ""])
def test_a_script_without_a_main_guard_is_one_sentence_at_once(tmp_path: Path, guard: str):
    (tmp_path / "script.py").write_text(f"{SCRIPT}{guard}work()\n")
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == (["begun", "[1.0]"] if guard else ["begun"]), done.stderr
    sentence = "grading starts processes, which import this script: what line 10 begins must stand under "
    assert (sentence in done.stderr.splitlines()[-1]) if not guard else done.stderr == ""


def forked_processes() -> list[int]:
    """Of the server that forks workers, the children that are still there."""
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    return [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]


@pytest.mark.parametrize("num", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_rollout_is_accounted_for_by_cause_and_nothing_is_left_behind(num: int):
    actions = ["hang", "crash", "raise"] * (num // 20) + ["right"] * (num - 3 * (num // 20))
    random.Random(0).shuffle(actions)
    with Grader(seconds_a_rollout=SECONDS, workers=8) as grader:
        grader.rewards(["right"], [HostileProblem()])  # the server of workers has its pipes from here on
        grader.close()
        grader.counts.clear()
        handles = len(os.listdir("/proc/self/fd"))
        started = time.monotonic()
        verdicts = grader.verdicts(actions, [HostileProblem()] * num)
        seconds = time.monotonic() - started
    found = Counter((action, each.cause, each.reward == 1.0) for action, each in zip(actions, verdicts, strict=True))
    twentieth = num // 20
    assert found["hang", "time limit", False] == twentieth
    assert found["crash", "worker lost", False] == twentieth
    # On a machine that stands still for a moment an honest verdict can be late twice; hardly ever is it.
    assert found["raise", "verifier raised", False] + found["raise", "time limit", False] == twentieth
    assert found["right", "", True] + found["right", "time limit", False] == num - 3 * twentieth
    assert found["right", "time limit", False] + found["raise", "time limit", False] <= num // 50
    assert all(math.isnan(each.reward) == (each.cause == "worker lost") for each in verdicts)
    assert grader.counts == Counter(each.cause for each in verdicts if each.cause)
    assert seconds < ATTEMPTS * (SECONDS_TO_START + (num / 8 + 1) * (2 * SECONDS + 1))
    assert forked_processes() == []
    assert len(os.listdir("/proc/self/fd")) == handles
