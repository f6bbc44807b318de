"""Verifiers say right, wrong or nothing; workers are killed and replaced; a user's reward functions are tried first."""

import asyncio
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_verifiers import HostileProblem
from transformers import TrainerState

from poise.models.embedded import embedded_model_path
from poise.models.named import named_tokenizer
from poise.rewards import VERIFIERS, Grader, TaskReward, Verifier, final_answer, graded, problem_columns, verdict
from poise.tasks.graded_task import GradedTask
from poise.tasks.problem import Problem
from poise.tasks.reward_functions import RewardError, check_reward_function, guarded, reward_function, rewards_of
from poise.tasks.task import task_named
from poise.tasks.ungradable import UngradableFile
from poise.train.config import run_settings
from poise.train.run import tokenizer_and_task

NAN = math.nan


def same(found: list[float], wanted: list[float]) -> bool:
    return found == pytest.approx(wanted, nan_ok=True)


def math_problem(answer: str) -> Problem:
    return Problem("how many?", answer, "math", verifier="math")


# Where the answer stands.


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("42", "42"),
        ("  42\n", "42"),
        ("I think 41</think> 42 ", "42"),
        ("<think>first 1</think>2<think>then</think>3", "3"),
        ("so <answer> 42 </answer> it is", "42"),
        ("<answer>1</answer> no: <answer>2\n</answer>", "2"),
        ("<answer>1</answer></think>2", "2"),
        ("<think>I wonder whether it is 42", ""),
        ("", ""),
    ],
)
def test_final_answer_follows_the_thinking_and_stands_in_tags_where_there_are_any(completion: str, answer: str):
    assert final_answer(completion) == answer


# math-verify.


@pytest.mark.parametrize(
    ("gold", "completion", "reward"),
    [
        ("34", "Answer: 34", 1.0),
        ("34", r"we get 7 and so \boxed{34}, not 35", 1.0),
        ("34", "Answer: 35", 0.0),
        ("34", "I do not know", 0.0),
        ("34", "", 0.0),
        ("34", "<think>34", 0.0),
        ("34", "<think>35</think>34", 1.0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1.0),
        (r"\frac{1}{2}", r"$\frac{2}{4}$", 1.0),
        (r"$\frac{1}{2}$", r"\boxed{\frac12}", 1.0),
        (r"\boxed{x+1}", r"\boxed{1+x}", 1.0),
        ("He has 3 * 4 = 12.\n#### 12", "12", 1.0),
        ("He has 3 * 4 = 12.\n#### 12", "3", 0.0),
        ("033", "33", 1.0),
        ("", "34", NAN),
        ("  ", "34", NAN),
        (r"\boxed{}", "34", NAN),
    ],
)
def test_math_is_right_wrong_or_ungradable(gold: str, completion: str, reward: float):
    assert same([graded(completion, math_problem(gold))], [reward])


def test_a_missing_gold_answer_and_one_that_cannot_be_read_are_told_apart():
    assert verdict("1", math_problem("")).cause == "no gold answer"
    assert verdict("1", math_problem(r"\boxed{}")).cause == "unparseable gold answer"
    assert verdict("1", Problem("", "", "x", verifier="exact")).cause == "no gold answer"
    assert verdict("1", math_problem("2")).cause == ""


# reasoning-gym.


def test_scores_are_those_of_the_data_set_fractions_included():
    import reasoning_gym

    (problem,) = task_named("reasoning-gym:chain_sum?max_terms=2").problems(1, seed=3)
    source = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)
    for answer in (problem.answer, f"it is {problem.answer}", "nonsense", ""):
        score = source.score_answer(answer, {"answer": problem.answer})
        assert graded(answer, problem) == score
        assert graded(f"working</think>  {answer} ", problem) == graded(f"<answer>{answer}</answer>", problem)
    assert 0 < graded(f"it is {problem.answer}", problem) < 1


@pytest.mark.parametrize(
    ("extract", "completion", "right"),
    [
        ("number", " 12.\n3 + 4 = 7", True),
        ("number", "the sum is 12", True),
        ("number", "-12", False),
        ("number", "1,2", True),
        ("number", "twelve", False),
        ("number", "1,2.5", False),
        ("word", " no 12", False),
        ("line", " 12\nthat is all", True),
        ("line", "it is 12\n", False),
        ("all", " 12\nthat is all", False),
    ],
)
def test_a_task_says_what_of_a_completion_is_its_answer(extract: str, completion: str, right: bool):
    (problem,) = task_named(f"reasoning-gym:chain_sum?extract={extract}").problems(1, seed=0)
    entry = problem.details.replace(f'"answer": "{problem.answer}"', '"answer": "12"')
    assert entry != problem.details
    assert (graded(completion, replace(problem, answer="12", details=entry)) == 1.0) is right


def test_the_first_word_is_an_answer_where_a_task_says_so():
    (problem,) = task_named("reasoning-gym:syllogism?extract=word").problems(1, seed=0)
    other = {"Yes": "No", "No": "Yes"}[problem.answer]
    assert graded(f' "{problem.answer}", of course: {other}.', problem) == 1.0
    assert graded(f"{other}. Or {problem.answer}", problem) == 0.0
    assert graded("12 _", problem) == 0.0


def test_a_verifier_that_raises_on_a_completion_but_not_on_the_gold_answer_calls_it_wrong():
    (problem,) = task_named("reasoning-gym:prime_factorization").problems(1, seed=0)
    assert graded(problem.answer, problem) == 1.0
    found = verdict("no idea", problem)
    assert (found.reward, found.cause) == (0.0, "verifier raised")
    # The control: it fails on the gold answer too, and so has said nothing.
    broken = replace(problem, details=problem.details.replace('"factors"', '"gone"'))
    found = verdict("no idea", replace(broken, answer="no idea"))
    assert (found.cause, math.isnan(found.reward)) == ("verifier fails on the gold answer", True)


def test_details_keep_tuples_where_json_alone_would_not():
    # rearc compares grids that are tuples of tuples: lists in their place would be called wrong.
    (problem,) = task_named("reasoning-gym:rearc").problems(1, seed=1)
    assert graded(problem.answer, problem) == 1.0


@pytest.mark.parametrize("name", ["embedded", "exact"])
def test_exact_verifiers_take_the_answer_alone(name: str):
    problem = Problem("", "12", "x", verifier=name)
    assert graded("3,12</think>12", problem) == 1.0
    assert graded("3,12</think>1 2", problem) == 0.0
    assert graded("<think>12", problem) == 0.0


def test_a_reward_that_is_no_number_is_no_verdict(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(VERIFIERS, "nan", Verifier(lambda completion, problem: NAN))
    assert verdict("1", Problem("", "1", "x", verifier="nan")).cause == "verifier fails on the gold answer"


# Workers.


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def worker_pids(grader: Grader) -> list[int]:
    assert grader._pool is not None
    return list(grader._pool._pool_manager.worker_manager.workers)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(seconds_a_rollout=1.0, workers=2) as grader:
        yield grader


def test_a_verifier_that_does_not_end_is_killed_and_the_rest_are_graded(grader: Grader):
    grader.counts.clear()
    problems = [math_problem("1"), HostileProblem(), math_problem("1"), math_problem("1")]
    found = grader.rewards(["1", "spin", "2", "1"], problems)
    assert found == [1.0, 0.0, 0.0, 1.0]
    assert grader.counts == Counter({"time limit": 1})
    grader.on_verifier_timeout = "ungradable"
    assert same(grader.rewards(["1", "spin"], problems[:2]), [1.0, NAN])
    grader.on_verifier_timeout = "wrong"
    assert grader.rewards(["1"] * 20, [math_problem("1")] * 20) == [1.0] * 20


def test_workers_agree_with_verdicts_in_this_process(grader: Grader):
    problems = [math_problem("7"), *task_named("reasoning-gym:chain_sum + embedded").problems(15, seed=2)]
    completions = [p.answer if n % 2 else f"</think>{p.answer}" for n, p in enumerate(problems)]
    assert grader.rewards(completions, problems) == [graded(*each) for each in zip(completions, problems, strict=True)]


def test_a_worker_that_is_lost_leaves_its_rollout_ungradable_and_is_replaced(grader: Grader):
    assert grader.rewards(["1"], [math_problem("1")]) == [1.0]
    grader.counts.clear()
    for pid in worker_pids(grader):
        os.kill(pid, signal.SIGKILL)
    found = grader.rewards(["1"] * 6, [math_problem("1")] * 6)
    # Idle workers held no rollout, so that all are graded or, where the pool broke, counted as lost.
    assert all(reward == 1.0 or math.isnan(reward) for reward in found)
    assert grader.counts["worker lost"] == sum(map(math.isnan, found))
    assert grader.rewards(["1"], [math_problem("1")]) == [1.0]


@pytest.mark.parametrize(
    ("action", "reward", "cause"),
    [
        ("hang", 0.0, "time limit"),
        ("spin", 0.0, "time limit"),
        ("crash", NAN, "worker lost"),
        ("exit", 0.0, "verifier raised"),
        ("raise", 0.0, "verifier raised"),
        ("eat", 0.0, "memory limit"),
        ("ungradable", NAN, "no gold answer"),
        ("wrong", 0.0, "program crashed"),
    ],
)
def test_what_a_verifier_does_is_told_by_its_cause_and_harms_no_other(
    grader: Grader, action: str, reward: float, cause: str
):
    grader.counts.clear()
    found = grader.rewards(["right", action, "right", "left"], [HostileProblem()] * 4)
    assert same(found, [1.0, reward, 1.0, 0.0])
    assert grader.counts == Counter({cause: 1})


@pytest.mark.parametrize("action", ["hang", "crash"])
def test_a_failure_of_a_worker_is_tried_once_more_in_a_fresh_one(grader: Grader, tmp_path: Path, action: str):
    grader.counts.clear()
    found = grader.rewards([f"{action} once {tmp_path / action}", "left"], [HostileProblem()] * 2)
    assert found == [1.0, 0.0]
    assert grader.counts == Counter()


def test_no_worker_is_left_behind_even_one_that_does_not_end():
    with Grader(seconds_a_rollout=60.0, workers=2) as grader:
        assert grader.rewards(["1"], [math_problem("1")]) == [1.0]
        pids = worker_pids(grader)
        assert len(pids) == 2
        assert all(running(pid) for pid in pids)
        grader._running_pool().schedule(verdict, args=("spin", HostileProblem()))
        time.sleep(0.5)
    assert not any(running(pid) for pid in pids)
    # A closed grader starts again when it is needed.
    assert grader.rewards(["1"], [math_problem("1")]) == [1.0]
    grader.close()
    grader.close()


@pytest.mark.slow
def test_a_worker_at_work_does_not_outlive_a_trainer_that_was_killed(tmp_path: Path):
    script = tmp_path / "trainer.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            sys.path.insert(0, TESTS)
            from hostile_verifiers import HostileProblem
            from poise.rewards import Grader
            from poise.tasks.problem import Problem
            if __name__ == "__main__":
                grader = Grader(seconds_a_rollout=2.0, workers=1)
                problem = Problem("", "1", "x", verifier="math")
                grader.rewards(["1"], [problem])
                print(*grader._pool._pool_manager.worker_manager.workers, flush=True)
                grader.rewards(["spin"], [HostileProblem()])
            """
        ).replace("TESTS", repr(str(Path(__file__).parent)))
    )
    trainer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pid = int(trainer.stdout.readline())
    time.sleep(0.7)  # by now the worker is inside one long operation
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    time.sleep(0.5)
    assert running(pid)  # the control: it does go on
    deadline = time.monotonic() + 60
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not running(pid)


def test_harmless_verifiers_start_no_worker():
    with Grader() as grader:
        assert grader.rewards(["</think>3"], [Problem("", "3", "sum")]) == [1.0]
        assert grader._pool is None


def test_an_opened_thinking_must_be_closed():
    problem = Problem("", "3", "x", verifier="exact")
    with Grader(opening="<think>") as grader:
        assert grader.rewards(["3", "so</think>3"], [problem] * 2) == [0.0, 1.0]
    with Grader() as grader:
        assert grader.rewards(["3", "so</think>3"], [problem] * 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seconds_a_rollout": 0.0}, "a rollout needs a time limit of more than 0 seconds, got 0.0"),
        ({"seconds_a_rollout": NAN}, "a rollout needs a time limit of more than 0 seconds, got nan"),
        ({"workers": 0}, "grading needs 1 worker or more, got 0"),
        ({"mebibytes_a_rollout": 0}, "a rollout needs a memory limit of 1 MiB or more, got 0"),
        ({"on_verifier_timeout": "right"}, "on_verifier_timeout needs wrong or ungradable, got 'right'"),
    ],
)
def test_a_grader_that_cannot_grade_is_refused(options: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        Grader(**options)


def test_every_completion_needs_a_problem():
    with pytest.raises(ValueError, match="2 completions need one problem each, got 1"):
        Grader().rewards(["1", "2"], [math_problem("1")])


# As a reward function of TRL.


def test_task_rewards_read_columns_texts_and_messages_and_log_what_was_ungradable():
    problems = [Problem("q", answer, "x", verifier="exact") for answer in ("1", "2", "")]
    columns: dict[str, list[str]] = {
        name: [problem_columns(each)[name] for each in problems] for name in problem_columns(problems[0])
    }
    logged: dict[str, float] = {}
    with Grader() as grader:
        reward = TaskReward(grader)
        assert reward.__name__ == "correctness_reward"
        texts = ["1", "1", "1"]
        found = reward(texts, prompts=["q"] * 3, log_metric=logged.__setitem__, **columns)
        assert same(found, [1.0, 0.0, NAN])
        assert logged == {
            "reward/ungradable_share": pytest.approx(1 / 3),
            "reward/ungradable/no_gold_answer": pytest.approx(1 / 3),
        }
        messages = [[{"role": "assistant", "content": text}] for text in texts]
        assert same(reward(messages, **columns), found)


def test_what_is_ungradable_is_kept_with_its_text_and_cause_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("poise.tasks.ungradable.MOST_LINES", 3)
    path = tmp_path / "ungradable.jsonl"
    columns = {"answer": ["1", ""], "domain": ["x"] * 2, "verifier": ["exact"] * 2, "details": [""] * 2}
    state = TrainerState(global_step=7)
    with Grader() as grader:
        for number in range(5):
            reward = TaskReward(grader, UngradableFile(path))  # as after a resume: what is there counts
            reward([f"a{number}", f"b{number}"], prompts=["p", "q"], trainer_state=state, **columns)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 8, "cause": "no gold answer", "prompt": "q", "completion": f"b{number}", "answer": ""}
        for number in range(3)
    ]


def test_a_cause_that_is_gone_is_logged_as_zero():
    columns = {"domain": ["x"], "verifier": ["exact"], "details": [""]}
    logged: dict[str, float] = {}
    with Grader() as grader:
        reward = TaskReward(grader)
        reward(["1"], answer=[""], log_metric=logged.__setitem__, **columns)
        assert logged["reward/ungradable/no_gold_answer"] == 1
        reward(["1"], answer=["1"], log_metric=logged.__setitem__, **columns)
        assert logged == {"reward/ungradable_share": 0, "reward/ungradable/no_gold_answer": 0}


# Gold answers.


def test_a_verifier_that_refuses_gold_answers_is_found_before_the_first_step(tmp_path: Path):
    rows = [{"prompt": f"say {n}", "answer": r"\boxed{}" if n % 2 else str(n)} for n in range(60)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = GradedTask(str(tmp_path / "own.jsonl"), tokenizer=named_tokenizer("embedded"))
    with pytest.raises(
        ValueError, match=r"the verifier 'math' does not accept \d+ of 32 gold answers, such as "
    ) as error:
        task.check_gold_answers()
    assert "(unparseable gold answer): check the columns of the data set and the verifier" in str(error.value)
    assert task.grader.counts == Counter()
    # The control: the same questions with answers that can be read.
    task = GradedTask(f"{tmp_path / 'own.jsonl'}?verifier=exact", tokenizer=named_tokenizer("embedded"))
    task.check_gold_answers()


def test_a_few_refused_gold_answers_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    task = GradedTask("embedded", tokenizer=named_tokenizer("embedded"))
    problems = task.task.problems
    wrong = replace(problems(1, seed=0)[0], answer="?", details="")

    def spoiled(num: int, **given: Any) -> list[Problem]:
        return [replace(wrong, verifier="reasoning-gym", details="{}"), *problems(num - 1, **given)]

    task.task = replace(task.task, problems=spoiled)
    task.check_gold_answers()
    task.close()
    assert "does not accept 1 of 32 gold answers" in caplog.text
    assert "(verifier fails on the gold answer)" in caplog.text


# A user's reward functions.


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of reward functions in the working directory."""
    (tmp_path / "own_rewards.py").write_text(
        textwrap.dedent(
            """
            NUMBER = 3
            def short(completions, **columns): return [float(len(text) < 4) for text in completions]
            async def half(completions, **columns): return [None if text == "?" else 0.5 for text in completions]
            def scalar(completions, **columns): return 1.0
            def few(completions, **columns): return [1.0]
            def words(completions, **columns): return ["good"] * len(completions)
            def mapping(completions, **columns): return {text: 1.0 for text in completions}
            kept = []
            def keeps(completions, **columns): kept.append(columns); return [1.0] * len(completions)
            def scaled(completions, scale=1, **columns): return [float(scale)] * len(completions)
            def needs(completions, solution, **columns): return [1.0] * len(completions)
            def fails(completions, **columns): raise KeyError("tests")
            def infinite(completions, **columns): return [None, float("inf")]
            async def late(completions, **columns): raise KeyError("late")
            def logs(completions, trainer_state, log_extra, log_metric, completion_ids, **columns):
                log_extra("seen", completions)
                log_metric("step", float(trainer_state.global_step))
                return [float(len(ids)) for ids in completion_ids]
            """
        )
    )
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_rewards"
    sys.modules.pop("own_rewards", None)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("short", "a reward needs the form package.module:function or path.py:function, got 'short'"),
        ("own_rewards:", "a reward needs the form package.module:function"),
        ("no.such.module:f", "reward 'no.such.module:f' cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("broken_rewards:f", "reward 'broken_rewards:f' cannot be imported: ZeroDivisionError: division by zero"),
        ("own_rewards:shrt", "module own_rewards has no function 'shrt': it has short, half, "),
        ("own_rewards:NUMBER", "module own_rewards has no function 'NUMBER'"),
    ],
)
def test_a_reward_that_cannot_be_imported_is_one_sentence(module: str, spec: str, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        reward_function(spec)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("scalar", "must return a list with one number or None for each of 2 completions, got a float"),
        ("mapping", "must return a list with one number or None for each of 2 completions, got a dict"),
        ("few", "must return a list with one number or None for each of 2 completions, got 1"),
        ("words", "must return a list with one number or None for each of 2 completions, got 'good'"),
        ("needs", "raised TypeError on gold answers: .* missing 1 required positional argument: 'solution'"),
        ("fails", "raised KeyError on gold answers: 'tests'"),
    ],
)
def test_a_reward_that_returns_or_raises_what_it_should_not_is_one_sentence(module: str, name: str, sentence: str):
    spec = f"{module}:{name}"
    with pytest.raises(ValueError, match=f"reward '{spec}' {sentence}"):
        GradedTask("embedded", tokenizer=named_tokenizer("embedded"), rewards=[spec])


@pytest.mark.parametrize("name", ["short", "half", "logs"])
def test_rewards_of_trl_s_signature_pass(module: str, name: str):
    task = GradedTask("embedded", tokenizer=named_tokenizer("embedded"), rewards=[f"{module}:{name}"])
    assert task.reward_functions[0].__name__ == name


def test_asynchronous_rewards_are_awaited(module: str):
    half = reward_function(f"{module}:half")
    assert asyncio.iscoroutinefunction(half)
    assert rewards_of(half, prompts=["q"] * 2, completions=["?", "1"], columns={}) == [None, 0.5]
    check_reward_function(half, spec="own", prompts=["q"], completions=["?"], columns={})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("scalar", "must return a list with one number or None for each of 2 completions, got a float at step 5"),
        ("few", "must return a list with one number or None for each of 2 completions, got 1 at step 5"),
        ("words", "must return a list .*, got 'good' at step 5, completion 1 of 2 being 'a' for the prompt 'p'"),
        ("infinite", "must return a list .*, got inf at step 5, completion 2 of 2 being 'b' for the prompt 'q'"),
        ("fails", "raised KeyError: 'tests' at step 5, completion 1 of 2 being 'a' for the prompt 'p'"),
        ("late", "raised KeyError: 'late' at step 5, completion 1 of 2 being 'a' for the prompt 'p'"),
    ],
)
def test_a_mistake_of_a_reward_during_training_is_one_sentence_with_its_case(module: str, name: str, sentence: str):
    function = guarded(reward_function(f"{module}:{name}"), spec=name)
    with pytest.raises(RewardError, match=f"reward '{name}' {sentence}"):
        rewards_of(
            function, prompts=["p", "q"], completions=["a", "b"], columns={"trainer_state": TrainerState(global_step=4)}
        )


def test_a_guarded_reward_gives_what_its_function_gives(module: str):
    for name, wanted in {"half": [None, 0.5], "short": [1.0, 1.0]}.items():
        function = guarded(reward_function(f"{module}:{name}"), spec=name)
        assert function.__name__ == name
        assert asyncio.iscoroutinefunction(function) == (name == "half")
        assert rewards_of(function, prompts=["p", "q"], completions=["?", "b"], columns={}) == wanted


def test_every_reward_needs_a_weight(module: str):
    with pytest.raises(ValueError, match="every reward needs one weight: rewards are 1, and weights 2"):
        GradedTask("embedded", tokenizer=named_tokenizer("embedded"), rewards=[f"{module}:short"], weights=[1.0, 2.0])


# A task that is asked and graded.

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


def test_a_chat_template_is_used_where_there_is_one():
    tokenizer = named_tokenizer("embedded")
    tokenizer.chat_template = CHAT
    task = GradedTask("reasoning-gym:chain_sum", tokenizer=tokenizer)
    (problem,) = task.held_out(1)
    assert task.texts([problem]) == [f"[user]{problem.prompt}[a]"]
    row = task.training_data(1, seed=0)[0]
    assert row["prompt"] == [{"role": "user", "content": row["prompt"][0]["content"]}]
    assert set(row) == {"prompt", "answer", "domain", "verifier", "details"}
    assert task.grader.opening == ""


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the host, about its own options
def test_without_chat_prompts_are_plain_text(tmp_path: Path):
    tokenizer = named_tokenizer("embedded")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((embedded_model_path() / "config.json").read_bytes())
    asked = {}
    for chat in (True, False):
        settings = run_settings({"model": str(tmp_path), "chat": chat})
        _, task = tokenizer_and_task(settings, settings.poise_config(tmp_path / "run"))
        asked[chat] = task.training_data(1, seed=0)[0]
    assert asked[True]["prompt"] == [{"role": "user", "content": asked[False]["prompt"]}]


def test_a_template_that_opens_the_thinking_is_noticed():
    tokenizer = named_tokenizer("embedded")
    tokenizer.chat_template = CHAT.replace("[a]", "[a]<think>\n")
    assert GradedTask("reasoning-gym:chain_sum", tokenizer=tokenizer).grader.opening == "<think>"


def test_a_mark_at_the_beginning_of_texts_is_there_when_measuring_too():
    from tokenizers.processors import TemplateProcessing

    tokenizer = named_tokenizer("embedded")
    task = GradedTask("embedded?families=sum", tokenizer=tokenizer)
    problems = task.held_out(1)
    assert task.texts(problems) == [problems[0].prompt]
    tokenizer.bos_token = "<unk>"
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", tokenizer.unk_token_id)]
    )
    (text,) = task.texts(problems)
    asked = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert asked == tokenizer(problems[0].prompt)["input_ids"]


def test_what_is_measured_is_whether_answers_are_right_whatever_is_rewarded(module: str, tmp_path: Path):
    tokenizer = named_tokenizer("embedded")
    task = GradedTask("embedded", tokenizer=tokenizer, rewards=[f"{module}:short"])
    problems = task.held_out(2)
    completions = [f"</think>{problems[0].answer}", "1"]
    assert task.held_out_rewards(completions, problems) == [1.0, 0.0]
    # Fractions of the full marks are not right answers.
    generated = GradedTask("reasoning-gym:chain_sum", tokenizer=tokenizer)
    (problem,) = generated.held_out(1)
    found = generated.held_out_rewards([f"it is {problem.answer}", problem.answer], [problem] * 2)
    generated.close()
    assert found == [0.0, 1.0]
    # What is rewarded is measured beside it; without answers there is nothing else.
    (tmp_path / "open.jsonl").write_text("\n".join(f'{{"prompt": "say {n}"}}' for n in range(40)))
    rewards = [f"{module}:short", f"{module}:half"]
    without = GradedTask("open.jsonl", tokenizer=tokenizer, rewards=rewards, weights=[1.0, 2.0])
    asked = without.held_out(3)
    assert without.user_rewards(["1", "long answer", "?"], asked) == [2.0, 1.0, 1.0]
    assert all(math.isnan(each) for each in without.held_out_rewards(["1", "2", "3"], asked))
    assert "no held_out/accuracy" in without.what_is_measured
    assert task.user_rewards(["1", "12345"], problems) == [1.0, 0.0]
    assert generated.user_rewards(["1", "2"], problems) is None


def test_a_file_names_reward_functions_too_and_options_reach_them(module: str, tmp_path: Path):
    for spec in (
        f"{module}:scaled?scale=2.5",
        f"{module}.py:scaled?scale=2.5",
        f"{tmp_path}/{module}.py:scaled?scale=2.5",
    ):
        assert reward_function(spec)(["a", "b"]) == [2.5, 2.5]
    with pytest.raises(ValueError, match=r"options of a reward need the form \?name=value&name=value, got 'scale'"):
        reward_function(f"{module}:scaled?scale")
    with pytest.raises(ValueError, match=r"there is no file gone\.py"):
        reward_function("gone.py:scaled")


def test_a_reward_function_gets_the_same_row_in_training_and_in_measuring(module: str, tmp_path: Path):
    rows = [{"prompt": f"say {n}", "solution": f"s{n}", "level": 7 if n % 2 else 2.5} for n in range(30)]
    for n, row in enumerate(rows):
        row |= {"mixed": n if n % 3 else "text", "nested": {"a": n} if n % 2 else {"b": [n]}}
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = GradedTask("own.jsonl", tokenizer=named_tokenizer("embedded"), rewards=[f"{module}:keeps"])
    kept = importlib.import_module(module).kept
    wanted = {row["prompt"]: {name: row[name] for name in ("solution", "level", "mixed", "nested")} for row in rows}

    def check(num: int) -> None:
        (columns,) = kept
        kept.clear()
        for place, prompt in enumerate(columns["prompts"]):
            found = {name: columns[name][place] for name in wanted[prompt]}
            assert repr(found) == repr(wanted[prompt])  # 7 is not 7.0
        assert len(columns["prompts"]) == num

    kept.clear()
    batch = task.training_data(9, seed=0)
    columns = {name: list(batch[name]) for name in batch.column_names if name != "prompt"}
    task.reward_functions[0](completions=["x"] * len(batch), prompts=list(batch["prompt"]), **columns)
    check(len(batch))
    held_out = task.held_out(3)
    task.user_rewards(["x"] * len(held_out), held_out)
    check(len(held_out))


# A whole run.


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*pin_memory.*:UserWarning")
def test_a_run_trains_and_measures_on_a_mixture_with_rewards_of_the_user(module: str, tmp_path: Path):
    from typer.testing import CliRunner

    from poise.cli import app

    (tmp_path / "own.jsonl").write_text("\n".join(f'{{"question": "{n}+{n}", "answer": "{2 * n}"}}' for n in range(60)))
    short = ["--steps", "2", "--eval-prompts", "12", "--check-every", "0", "--per-device-train-batch-size", "4"]
    short += ["--save-strategy", "no"]

    def trained(*arguments: str) -> dict[str, Any]:
        output = str(tmp_path / "runs")
        result = CliRunner().invoke(
            app, ["train", "--output", output, "--name", arguments[-1], *short, *arguments[:-1]]
        )
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "runs" / arguments[-1] / "summary.json").read_text())

    summary = trained("--task", "embedded?families=sum + own.jsonl + reasoning-gym:gcd", "mixed")
    assert set(summary["accuracy_after_by_domain"]) == {"gcd", "own", "sum"}
    assert summary["held_out_prompts"] == 12
    rewards = ["--reward", f"{module}:short", "--reward", f"{module}:half"]
    trained("--task", "own.jsonl", *rewards, "--reward-weight", "2", "--reward-weight", "0.5", "own")
    lines = [json.loads(line) for line in (tmp_path / "runs" / "own" / "metrics.jsonl").read_text().splitlines()]
    mean = 2 * lines[1]["rewards/short/mean"] + 0.5 * lines[1]["rewards/half/mean"]
    assert lines[1]["reward"] == pytest.approx(mean)
    settings = yaml.safe_load((tmp_path / "runs" / "own" / "config.yaml").read_text())
    assert settings["reward"] == [f"{module}:short", f"{module}:half"]
    assert settings["reward_weights"] == [2.0, 0.5]


@pytest.mark.parametrize("wrong", [["--task", "none.jsonl"], ["--reward", "own_rewards:few"]])
def test_a_run_that_cannot_start_leaves_no_folder(module: str, tmp_path: Path, wrong: list[str]):
    from typer.testing import CliRunner

    from poise.cli import app

    result = CliRunner().invoke(app, ["train", "--output", str(tmp_path / "runs"), "--name", "first", *wrong])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("poise train: ")
    assert not (tmp_path / "runs" / "first").exists()
