"""Answers: what is read, what is equal, table by table; laws of equality; bounds on hostile text."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.engines.verl.math_reward import compute_score
from poise.rewards import Grader, verdict
from poise.tasks.answer_text import answer_text, gold_text
from poise.tasks.answers import equal, parsed
from poise.tasks.choices import chosen_letter
from poise.tasks.problem import Problem

DATA = Path(__file__).parent / "data"


def cases(file):
    lines = [json.loads(line) for line in (DATA / file).read_text().splitlines()]
    names = [f"{each.get('kind', 'form')}-{at}" for at, each in enumerate(lines)]
    return [pytest.param(each, id=name) for each, name in zip(lines, names, strict=True)]


@pytest.mark.parametrize("case", [*cases("math.jsonl"), *cases("math_forms.jsonl")])
def test_math_cases(case):
    assert verdict(case["completion"], Problem("q", case["gold"], "m", verifier="math")).reward == case["want"]


@pytest.mark.parametrize("case", cases("verl_reward.jsonl"))
def test_cases_of_the_verl_reward_under_the_math_verifier(case):
    problem = Problem("q", case["ground_truth"], "m", verifier="math")
    assert verdict(case["completion"], problem).reward == case["want"]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (r"First \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{\frac{1}{2}", None),
        (r"It is not \boxed{3}.", None),
        ("Answer: 41\nAnswer: 42", "42"),
        ("#### 7", "7"),
        ("We find $x = 3$.", "x = 3"),
        ("There are 12 of them.", "12"),
        ("Are there 12 of them?", None),
        ("I cannot say.", None),
    ],
)
def test_the_part_of_a_completion_that_is_its_answer(completion, text):
    assert answer_text(completion) == text


@pytest.mark.parametrize("gold", ["7", r"\boxed{7}", "x\n#### 7", "The answer is 7", "Answer: 7"])
def test_the_text_of_a_gold_answer(gold):
    assert gold_text(gold) == "7"


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"),
        ("Answer: 12", "B"),
        (r"\boxed{12}", "B"),
        ("Answer: 11", "A"),
        ("Answer: 13", None),
        ("12 or 11", None),
    ],
)
def test_the_text_of_an_option_chooses_it(completion, letter):
    assert chosen_letter(completion, options=["11", "12"]) == letter


TEXTS = [each.values[0]["gold"] for each in (*cases("math.jsonl"), *cases("math_forms.jsonl"))]
TOKENS = r"\frac \sqrt { } ( ) [ ] , ; = < > + - ^ _ \pm \cup \text 1 23 .5 x y % \$ or and"
PIECES = st.sampled_from([*TEXTS, *TOKENS.split(" ")])


@given(st.lists(PIECES, min_size=1, max_size=5).map(" ".join), st.lists(PIECES, min_size=1, max_size=5).map(" ".join))
@settings(max_examples=300)
def test_equality_is_reflexive_and_symmetric(one, other):
    assert equal(parsed(one), parsed(one))
    assert equal(parsed(one), parsed(other)) == equal(parsed(other), parsed(one))


@given(st.text(max_size=300) | st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=300)
def test_grading_never_raises(completion):
    for gold in ("7", r"\frac{1}{2}", "B", "(1,2)", completion):
        assert verdict(completion, Problem("q", gold, "m", verifier="math")).cause != "verifier raised"


@pytest.mark.parametrize(
    "hostile",
    [
        r"9^{9^{9^{9^{9}}}}",
        "9" * 100_000,
        r"\frac{1}{" * 5_000,
        "(" * 100_000,
        "$" * 100_001,
        "{" * 50_000 + "}" * 50_000,
        r"(((99999!)!)!)!",
        ", ".join(f"x_{{{n}}}" for n in range(3_000)),
        r"\pm " * 1_000 + "1",
        r"\int " * 300 + "x dx",
        "answer is " * 20_000,
        r"\boxed{" * 20_000,
        "1,000" * 20_000,
        r"\sum_{n=1}^{10^{10}} n!",
        "x+" * 5_000 + "x",
        " " * 200_000 + "1",
    ],
    ids=range(16),
)
def test_hostile_answers_end_soon(hostile):
    start = time.process_time()
    for completion in (hostile, rf"\boxed{{{hostile}}}"):
        assert verdict(completion, Problem("q", "7", "m", verifier="math")).reward == 0.0
    assert time.process_time() - start < 10  # hours without bounds; a loaded machine counts no CPU time


END_MARKS = ["</think>", "[/THINK]", "</reasoning>"]


@pytest.mark.parametrize("end", END_MARKS)
@pytest.mark.parametrize("verifier", ["math", "exact", "choice", "embedded"])
def test_unfinished_thinking_earns_nothing_under_any_verifier(end, verifier):
    gold, begin = ("B" if verifier == "choice" else "8"), end.replace("/", "")
    problem = Problem("q", gold, "m", verifier=verifier)
    cases = {f"{begin}a{end}{gold}": 1.0, f"{begin}{gold}": 0.0, f"{begin}a{end}{begin}{gold}": 0.0}
    if verifier == "embedded":
        cases = {f"a{end}{gold}": 1.0, gold: 0.0}
    with Grader(end_of_thinking=end) as grader:
        assert grader.rewards(list(cases), [problem] * len(cases)) == list(cases.values())
    with Grader(end_of_thinking=end, opening="<think>") as grader:
        assert grader.rewards([f"a{end}{gold}", gold], [problem] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("end", END_MARKS)
def test_verl_s_math_reward_knows_the_mark(end):
    begin = end.replace("/", "")
    given = [compute_score("any", text, "8", end_of_thinking=end) for text in (f"{begin}9{end}8", f"{begin}8")]
    assert given == [1.0, 0.0]
