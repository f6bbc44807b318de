"""A program passes its tests by solving them, in every form that tests have, and by nothing else."""

import itertools
import json
import math
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poise.models.named import named_tokenizer
from poise.rewards import Grader, verdict
from poise.tasks.code_tests import CallTest, UnreadableTestError, failure, parsed_tests, program_of
from poise.tasks.graded_task import GradedTask
from poise.tasks.problem import Problem
from poise.tasks.sandbox import IsolationError, Limits
from poise.tasks.task import task_named

PRINTS_NOTHING = {"input": "", "output": ""}
ADD = "def add(a, b):\n    return a + b\n"
ASSERTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def outcome(program: str, tests: Any, **limits: Any) -> str | None:
    return failure(
        textwrap.dedent(program), parsed_tests(tests), seconds=60.0, limits=Limits(**{"seconds": 20.0} | limits)
    )


def code_problem(tests: Any) -> Problem:
    return Problem("add", "", "code", verifier="python", details=json.dumps({"tests": tests}))


# Forms of tests.


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        (
            [{"input": "1 2\n", "output": "3"}, {"input": "5 5", "output": "10\n"}],
            "print(sum(map(int, input().split())))",
        ),
        ('{"inputs": ["1 2", ["3", "4"]], "outputs": ["3", 3]}', "print(sum(map(int, input().split())))"),
        ({"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [1, 2]]}, ADD),
        (
            {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]},
            "class Solution:\n  def add(self, a, b): return a + b",
        ),
        ({"fn_name": "pair", "inputs": [[1]], "outputs": [[1, [1, 2]]]}, "def pair(a): return a, (a, 2)"),
        (ASSERTS, f"{ADD}\nprint('noise')\nif __name__ == '__main__': print(input())"),
        ("\n".join(["import math", *ASSERTS, "assert math.floor(add(1, .5)) == 1"]), ADD),
        (["assert 3 == add(1, 2)", "assert add(1, 2) in [3, 4]"], ADD),
        (
            ["assert abs(add(.1, .2) - 0.3) < 1e-9", "import math", "assert math.isclose(add(1, 1), 2, rel_tol=1e-9)"],
            ADD,
        ),
        (["assert even(2)", "assert not even(3)", "assert even(2) is True"], "def even(n): return n % 2 == 0"),
        (["assert unique([1, 1, 2]) == set([2, 1])", "assert unique([]) == set()"], "unique = set"),
        (["assert total([1, 2]) == 3"], "import numpy\ndef total(a): return numpy.array(a).sum()"),
    ],
)
def test_a_right_program_passes_and_a_wrong_one_does_not(tests: Any, program: str):
    assert outcome(program, tests) is None
    # The control: the same tests, and a program that answers everything with one odd value.
    silly = "class Solution: pass\n" + "\n".join(
        f"def {name}(*a): return -99" for name in ("add", "pair", "even", "unique", "total")
    )
    assert outcome(silly, tests) is not None


@pytest.mark.parametrize(
    ("tests", "sentence"),
    [
        (None, "tests have none of the known forms: None"),
        ([], "tests have none of the known forms: "),
        ({"inputs": ["1"], "outputs": []}, "tests have none of the known forms: "),
        ({"inputs": [], "outputs": []}, "there is no test"),
        ({"fn_name": "f(", "inputs": [[1]], "outputs": [1]}, "calls of 'f.' need lists of arguments"),
        ("import math", "there is no test"),
        ("add(1, 2) should be 3", "tests are neither JSON nor Python"),
        ("x = 1", "a test must be `assert CALL == VALUE` or alike, got 'x = 1'"),
        # Evaluated inside, each of these would hand the expected value to the program.
        ("assert f(1) == g(2)", "a test must be "),
        ("assert all(a == b for a, b in zip(f(1), [1, 2]))", "a test must be "),
        ("assert 1 < f(1) < 3", "a test must be "),
        ("for x in range(3): assert f(x) == x", "a test must be "),
    ],
)
def test_tests_from_which_the_expected_cannot_be_kept_apart_are_refused(tests: Any, sentence: str):
    with pytest.raises(UnreadableTestError, match=sentence):
        parsed_tests(tests)


def test_what_is_expected_is_not_in_what_is_asked():
    tests = parsed_tests(["assert add(1, 2) == 777", "assert abs(add(1, 2) - 777) < 5", "assert 777 in add(1, 2)"])
    assert [test.expression for test in tests.calls if isinstance(test, CallTest)] == ["add(1, 2)"] * 3


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("print(1)", "print(1)"),
        ("Here:\n```python\nprint(1)\n```\nDone.", "print(1)\n"),
        ("```\nfirst\n```\nbetter:\n``` py\nsecond\n```", "second\n"),
    ],
)
def test_the_program_is_the_last_block_or_everything(answer: str, program: str):
    assert program_of(answer) == program


DATA = Path(__file__).with_name("data")


def test_programs_of_the_forms_that_people_have_get_their_rewards():
    lines = [(DATA / f"{name}.jsonl").read_text().splitlines() for name in ("code", "code_variants")]
    cases = [json.loads(each) for each in itertools.chain(*lines)]
    with Grader(seconds_a_rollout=20.0, workers=4) as grader:
        rewards = grader.rewards(
            [each["completion"] for each in cases], [code_problem(each["tests"]) for each in cases]
        )
    found = [None if math.isnan(reward) else reward for reward in rewards]
    wrong = [(each["id"], each["kind"], got) for each, got in zip(cases, found, strict=True) if got != each["want"]]
    assert wrong == []


ECHO = "a, b = map(int, input().split())\nprint(a + b)"
HUNDRED = [{"input": f"{n} {n}", "output": str(2 * n)} for n in range(100)]


@pytest.mark.parametrize(
    ("program", "tests", "cause"),
    [
        (ECHO, HUNDRED, None),
        ("n = 0\nwhile n < 10**6: n += 1\n" + ECHO, HUNDRED[:30], None),  # more in all than one test may take
        ("print('1000000\\n' * 200_000)", [{"input": "", "output": "1000000\n" * 200_000}], None),
        ("while True: print('1000000')", [{"input": "", "output": "1000000\n" * 200_000}], "program printed too much"),
        (
            "import threading\nthreading.stack_size(2**29)\nthreading.Thread(target=print).start()",
            [PRINTS_NOTHING],
            None,
        ),
        ("import threading\nthreading.stack_size(2**29)\nkept = bytearray(2**30)", [PRINTS_NOTHING], "program failed"),
        ("while True: pass", HUNDRED, "program timed out"),
        ("import time\ntime.sleep(1000)", HUNDRED, "program timed out"),
        ("import os\nif os.fork(): os.wait()\nwhile True: pass", HUNDRED, "program timed out"),
        ("import os\nif os.fork() == 0: os.execv('/usr/bin/sleep', ['sleep', '9'])\n" + ECHO, HUNDRED[:2], None),
    ],
)
def test_what_a_program_gets_does_not_depend_on_its_tests(program: str, tests: Any, cause: str | None):
    started = time.monotonic()
    assert failure(program, parsed_tests(tests), limits=Limits(seconds=1.5)) == cause
    assert time.monotonic() - started < 60.0  # minutes, if every test of a hundred were waited for


def test_a_program_that_never_began_is_ungradable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("poise.tasks.sandbox.SECONDS_TO_BEGIN", 0.0)
    found = verdict(ADD, code_problem(ASSERTS))
    assert (math.isnan(found.reward), found.cause) == (True, "program did not begin")


# Programs that want to pass without solving.


@pytest.mark.parametrize(
    "program",
    [
        "class Any:\n  def __eq__(self, other): return True\ndef add(a, b): return Any()",
        "class Any(int):\n  def __eq__(self, other): return True\n  __hash__ = None\ndef add(a, b): return Any(5)",
        "class Any:\n  def __repr__(self): return '__import__(\"os\").abort()'\ndef add(a, b): return Any()",
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "import builtins\nbuiltins.repr = lambda v: '3\\n0'\ndef add(a, b): return 1",
        "import os\nfor n in range(3, 20):\n  try: os.write(n, b'3\\n{\"exit_code\": 0}\\n')\n  except OSError: pass",
        "import sys\nnames = sys._getframe(1).f_globals\nprint(names)\nnames['calls'].clear()",
        "import sys\nsys._getframe(1).f_globals['answers'].write('True\\nTrue\\n')\nsys.exit(0)",
        "add = lambda a, b: '3'",
        "add = lambda a, b: [" * 5000 + "]" * 5000,
    ],
)
def test_a_result_cannot_be_forged(program: str):
    assert outcome(program, ASSERTS) is not None


def test_a_test_is_not_passed_by_output_after_the_limit_or_with_an_error():
    tests = [{"input": "", "output": "3"}]
    assert outcome("print(3)\n1 / 0", tests) == "program failed"
    assert outcome("print(3, flush=True)\nwhile True: pass", tests, seconds=1.5) == "program timed out"
    assert outcome("while True: print(3)", tests) == "program printed too much"
    assert outcome("print(3)", tests) is None


def test_all_tests_together_keep_one_time_limit():
    tests = parsed_tests([{"input": "", "output": ""}] * 100)
    assert failure("import time; time.sleep(1)", tests, seconds=2.5) == "program timed out"


# As a verifier.


# As a verifier.


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(seconds_a_rollout=20.0, workers=1) as grader:
        yield grader


def test_rewards_and_causes_in_workers(grader: Grader):
    problem = code_problem(ASSERTS)
    rewards = grader.rewards(
        [
            f"<think>so</think>\n```python\n{ADD}```",
            "```python\ndef add(a, b): return 3\n```",
            "no idea",
            "import os; os.abort()",
        ],
        [problem] * 4,
    )
    assert rewards == [1.0, 0.0, 0.0, 0.0]
    assert grader.counts == Counter({"program failed": 2})
    (missing,) = grader.rewards([ADD], [code_problem(["assert f(1) == g(1)"])])
    assert math.isnan(missing)
    assert grader.counts["no readable tests"] == 1


def test_a_program_that_hangs_is_wrong_before_its_verifier_is_late():
    with Grader(seconds_a_rollout=3.0, workers=1, on_verifier_timeout="ungradable") as grader:
        assert grader.rewards(["while True: pass"], [code_problem(ASSERTS)]) == [0.0]
        assert grader.counts == Counter({"program timed out": 1})


def test_without_isolation_a_program_is_ungradable_and_a_task_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refused(*arguments: Any, **limits: Any) -> Any:
        raise IsolationError("not here")

    monkeypatch.setattr("poise.tasks.code_tests.program_run", refused)
    found = verdict(ADD, code_problem(ASSERTS))
    assert (math.isnan(found.reward), found.cause) == (True, "no isolation for programs")
    monkeypatch.setattr("poise.tasks.data_set.isolation_fault", lambda: "not here")
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "add", "tests": ASSERTS}))
    with pytest.raises(
        ValueError, match="tests of programs need isolation, which this machine does not give: not here"
    ):
        task_named(f"{tmp_path / 'own.jsonl'}?verifier=python")


def test_a_data_set_names_its_tests_and_verifiers(tmp_path: Path):
    rows = [{"prompt": f"add {n}", "checks": ASSERTS, "answer": ADD} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = f"{tmp_path / 'own.jsonl'}?verifier=python&tests=checks"
    problem = task_named(spec).problems(1, seed=0)[0]
    assert (problem.verifier, json.loads(problem.details)) == ("python", {"tests": ASSERTS})
    # A column of verifiers says it for each row.
    mixed = [row | {"verifier": "python" if n % 2 else "exact", "tests": row["checks"]} for n, row in enumerate(rows)]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    found = task_named(str(tmp_path / "mixed.jsonl")).problems(30, seed=0, split="all")
    assert Counter(each.verifier for each in found) == {"python": 15, "exact": 15}


@pytest.mark.parametrize(
    ("row", "program"),
    [
        (
            {"test": "def check(candidate):\n    assert candidate(1, 2) == 3", "entry_point": "add"},
            f"{ADD}def twice(a):\n    return add(a, a)",
        ),
        (
            {
                "public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
                "metadata": json.dumps({"func_name": "add"}),
            },
            "class Solution:\n  def add(self, a, b): return a + b\n  def other(self): return 0",
        ),
    ],
    ids=["HumanEval", "LiveCodeBench"],
)
def test_columns_beside_the_tests_say_what_is_called(tmp_path: Path, row: dict[str, Any], program: str):
    rows = [row | {"prompt": f"add {n}"} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problem = task_named(f"{tmp_path / 'own.jsonl'}?verifier=python").problems(1, seed=0)[0]
    assert verdict(program, problem).reward == 1.0
    assert verdict(program.replace("+", "-"), problem).reward == 0.0


def test_gold_programs_are_tried_before_the_first_step(tmp_path: Path):
    rows = [{"prompt": f"add {n}", "tests": ASSERTS, "answer": ADD.replace("+", "-")} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = GradedTask(f"{tmp_path / 'own.jsonl'}?verifier=python", tokenizer=named_tokenizer("embedded"))
    with pytest.raises(
        ValueError, match=r"the verifier 'python' does not accept 3 of 3 gold answers, such as .*called wrong"
    ):
        task.check_gold_answers(3)
