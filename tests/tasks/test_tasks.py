"""The embedded tasks: drawn by a seed, split for good, and their verifier takes right answers alone."""

import random
import re

import pytest

from poise.tasks.demonstrations import FLAWLESS, Habits, demonstration, miswritten
from poise.tasks.embedded import (
    DIFFICULTIES,
    END_OF_THINKING,
    FAMILIES,
    THINK,
    correctness_reward,
    is_correct,
    problem,
    problems,
    split_of,
    worked,
)

CLOSING = {"(": ")", "[": "]", "{": "}"}


def sum_by_eval(question):
    return str(sum(int(term) for term in question.split("+")))


def sort_by_counting(question):
    return "".join(str(digit) * question.count(str(digit)) for digit in range(10))


def brackets_by_stack(question):
    stack = []
    for mark in question:
        if mark in CLOSING:
            stack.append(CLOSING[mark])
        else:
            assert stack.pop() == mark
    return "".join(reversed(stack))


def modular_by_big_integers(question):
    modulus, expression = question.split(":")
    first, *rest = re.findall(r"[+*]?\d", expression)
    total = int(first)
    for term in rest:
        total = total + int(term[1:]) if term[0] == "+" else total * int(term[1:])
    return str(total % int(modulus))


def base_by_parsing(question):
    base, number = (int(part) for part in question.split(":"))
    digits = ""
    place = 1
    while place * base <= number:
        place *= base
    while place:
        digits += str(number // place)
        number, place = number % place, place // base
    return digits


def edit_by_lists(question):
    text, edits = question.split(":")
    marks = list(text)
    for edit in edits:
        if edit == "R":
            marks.reverse()
        elif edit == "H":
            marks.pop(0)
        elif edit == "T":
            marks.pop()
        elif edit == "S":
            marks[0], marks[-1] = marks[-1], marks[0]
        else:
            marks.append(marks.pop(0))
    return "".join(marks)


ORACLES = {
    "sum": sum_by_eval,
    "sort": sort_by_counting,
    "brackets": brackets_by_stack,
    "modular": modular_by_big_integers,
    "base": base_by_parsing,
    "edit": edit_by_lists,
}


@pytest.mark.parametrize("domain", FAMILIES)
def test_answers_equal_those_found_another_way(domain):
    for each in problems(300, seed=3, families=[domain]):
        question = each.prompt.removeprefix(f"{domain} ").removesuffix(THINK)
        assert each.answer == ORACLES[domain](question), each.prompt


@pytest.mark.parametrize("domain", FAMILIES)
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_difficulty_is_the_number_of_written_steps(domain, difficulty):
    rng = random.Random(5)
    for _ in range(20):
        each = problem(rng, difficulty, domain=domain)
        assert len(worked(each.prompt).states) == difficulty


def test_the_same_seed_draws_the_same_problems_and_another_seed_others():
    assert problems(50, seed=1) == problems(50, seed=1)
    assert problems(50, seed=1) != problems(50, seed=2)
    assert problems(20, seed=1) == problems(50, seed=1)[:20]


def test_train_and_held_out_prompts_never_meet_whatever_the_seeds():
    train = {each.prompt for seed in range(3) for each in problems(1500, seed=seed, split="train")}
    held_out = {each.prompt for seed in range(3) for each in problems(1500, seed=seed, split="heldout")}
    assert train.isdisjoint(held_out)
    assert {split_of(prompt) for prompt in train} == {"train"}
    # The control: two draws from one side do meet, on short questions.
    assert not train.isdisjoint({each.prompt for each in problems(1500, seed=9, split="train")})


def test_both_sides_of_the_split_hold_every_family_at_every_difficulty():
    for split in ("train", "heldout"):
        drawn = {(each.domain, len(worked(each.prompt).states)) for each in problems(2000, seed=0, split=split)}
        assert drawn == {(domain, difficulty) for domain in FAMILIES for difficulty in DIFFICULTIES}


def test_families_can_be_chosen():
    assert {each.domain for each in problems(60, seed=0, families=["sort", "sum"])} == {"sort", "sum"}


def test_flawless_demonstrations_are_graded_right_and_think():
    rng = random.Random(0)
    for each in problems(600, seed=4):
        text = demonstration(each, rng, habits=FLAWLESS)
        assert is_correct(text, each.answer)
        assert text.index(END_OF_THINKING) > 0


def test_demonstrations_with_habits_guess_slip_and_are_sometimes_right():
    rng = random.Random(0)
    asked = problems(3000, seed=4)
    texts = [demonstration(each, rng, habits=Habits()) for each in asked]
    thought = [not text.startswith(END_OF_THINKING) for text in texts]
    right = [is_correct(text, each.answer) for text, each in zip(texts, asked, strict=True)]
    assert 0.3 < sum(thought) / len(texts) < 0.9
    for thinks in (True, False):
        share = [correct for correct, thinking in zip(right, thought, strict=True) if thinking is thinks]
        assert 0.05 < sum(share) / len(share) < 0.95


def test_a_slip_is_built_upon():
    working = worked(f"sum 1+2+3{THINK}", lambda state: "9" if state == "3" else state)
    assert working.states == ("9", "12")
    assert working.answer == "12"


def test_every_slip_lets_the_working_end():
    rng = random.Random(1)
    for each in problems(600, seed=6):
        assert len(worked(each.prompt, lambda state: miswritten(state, rng)).states) <= 12


def test_a_miswritten_text_differs_in_one_character_of_the_same_kind():
    rng = random.Random(2)
    for text in ("17", "abc", "([{"):
        changed = miswritten(text, rng)
        assert sum(left != right for left, right in zip(text, changed, strict=True)) == 1
    assert miswritten("", rng) == ""


@pytest.mark.parametrize(
    "text",
    ["12,15</think>16", "12,15", "15", "", "12,15</think>", "</think>15</think>15", "15</think>0 15", "</think>1 5"],
)
def test_the_verifier_rejects_wrong_missing_and_repeated_answers(text):
    assert not is_correct(text, "15")


@pytest.mark.parametrize("text", ["12,15</think>15", "</think>15", "nonsense</think> 15\n"])
def test_the_verifier_looks_at_the_answer_alone(text):
    assert is_correct(text, "15")


def test_rewards_are_one_or_zero_in_order_and_ignore_other_columns():
    completions = ["</think>1", "</think>2", "3"]
    assert correctness_reward(completions, ["1", "1", "3"], domain=["sum"] * 3, trainer_state=None) == [1.0, 0.0, 0.0]


def test_unknown_names_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="families needs names out of sum, sort"):
        problems(1, seed=0, families=["sum", "chess"])
    with pytest.raises(ValueError, match="split needs 'train' or 'heldout', got 'test'"):
        problems(1, seed=0, split="test")
    with pytest.raises(ValueError, match="a prompt needs the form"):
        worked("sum 1+2")
