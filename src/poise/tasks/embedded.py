"""Problems of the embedded model, and their right answers.

Six families, each with a question, and a working that writes one state a step; difficulty is the number of steps.
The answer is whatever the working ends with when no step goes wrong, so that question, demonstration and verifier
cannot disagree. A hash of the prompt's text says on which side it lies: no prompt is ever both trained on and held out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poise.tasks.problem import Problem as Problem
from poise.tasks.problem import split_of as split_of

THINK = "<think>"
END_OF_THINKING = "</think>"
DIFFICULTIES = range(1, 7)
SPLITS = ("train", "heldout")

PAIRS = {"(": ")", "[": "]", "{": "}"}
LARGEST_CONVERTED = 99
LONGEST_CONVERSION = 9  # steps; a slip can make a number larger, and its working must end too
EDITS: dict[str, Callable[[str], str]] = {
    "R": lambda text: text[::-1],  # reverse
    "H": lambda text: text[1:],  # drop the head
    "T": lambda text: text[:-1],  # drop the tail
    "S": lambda text: text[-1] + text[1:-1] + text[0],  # swap the ends
}

Slip = Callable[[str], str]
"""What a step's true state becomes on paper: the same text, or another where a mistake is made."""


@dataclass(frozen=True)
class Working:
    """The states written down while thinking, and the answer read off them."""

    states: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Family:
    """A kind of problem: `question(rng, difficulty)` is its text, `working(question, slip)` the way to its answer."""

    question: Callable[[random.Random, int], str]
    working: Callable[[str, Slip], Working]


def _sum_question(rng: random.Random, difficulty: int) -> str:
    return "+".join(str(rng.randint(1, 9)) for _ in range(difficulty + 1))


def _sum_working(question: str, slip: Slip) -> Working:
    first, *terms = question.split("+")
    states = [first]
    for term in terms:
        states.append(slip(str(int(states[-1]) + int(term))))
    return Working(tuple(states[1:]), states[-1])


def _sort_question(rng: random.Random, difficulty: int) -> str:
    return "".join(str(rng.randint(0, 9)) for _ in range(difficulty + 1))


def _sort_working(question: str, slip: Slip) -> Working:
    """Insertion sort: the state after each insertion."""
    states = [question[0]]
    for digit in question[1:]:
        states.append(slip("".join(sorted(states[-1] + digit))))
    return Working(tuple(states[1:]), states[-1])


def _brackets_question(rng: random.Random, difficulty: int) -> str:
    """Some brackets left open, with `difficulty` closed pairs put in anywhere, one after another."""
    text = "".join(rng.choice("([{") for _ in range(rng.randint(1, 2)))
    for _ in range(difficulty):
        place, mark = rng.randint(0, len(text)), rng.choice("([{")
        text = text[:place] + mark + PAIRS[mark] + text[place:]
    return text


def _brackets_working(question: str, slip: Slip) -> Working:
    """Strike out the leftmost innermost pair, write what is left, and again; close what remains."""
    states = [question]
    while match := re.search(r"\(\)|\[\]|\{\}", states[-1]):
        states.append(slip(states[-1][: match.start()] + states[-1][match.end() :]))
    return Working(tuple(states[1:]), "".join(PAIRS.get(mark, mark) for mark in reversed(states[-1])))


def _modular_question(rng: random.Random, difficulty: int) -> str:
    modulus = rng.randint(4, 7)
    terms = "".join(rng.choice("+*") + str(rng.randint(2, modulus - 1)) for _ in range(difficulty))
    return f"{modulus}:{rng.randrange(1, modulus)}{terms}"


def _modular_working(question: str, slip: Slip) -> Working:
    """From left to right, every result at once reduced by the modulus."""
    modulus, first, terms = int(question[0]), question[2], question[3:]
    states = [first]
    for sign, term in zip(terms[::2], terms[1::2], strict=True):
        left, right = int(states[-1]), int(term)
        states.append(slip(str((left + right if sign == "+" else left * right) % modulus)))
    return Working(tuple(states[1:]), states[-1])


def _base_question(rng: random.Random, difficulty: int) -> str:
    """A number that has `difficulty` digits in a base for which there is one."""
    base = rng.choice([base for base in range(2, 7) if base ** (difficulty - 1) <= LARGEST_CONVERTED])
    number = rng.randint(base ** (difficulty - 1), min(base**difficulty - 1, LARGEST_CONVERTED))
    return f"{base}:{number}"


def _base_working(question: str, slip: Slip) -> Working:
    """Divide by the base till nothing is left: quotient, "r", remainder; the remainders from last to first."""
    base, number = int(question[0]), question[2:]
    states: list[str] = []
    while number != "0" and len(states) < LONGEST_CONVERSION:
        states.append(slip(f"{int(number) // base}r{int(number) % base}"))
        number = str(int(states[-1].split("r")[0]))
    return Working(tuple(states), "".join(state[-1] for state in reversed(states)))


def _edit_question(rng: random.Random, difficulty: int) -> str:
    length = rng.randint(4, 5)
    letters, edits = "".join(rng.choice("abcdefgh") for _ in range(length)), ""
    for _ in range(difficulty):
        edits += rng.choice("RHTS" if length > 2 else "RS")
        length -= edits[-1] in "HT"
    return f"{letters}:{edits}"


def _edit_working(question: str, slip: Slip) -> Working:
    """The string after every edit."""
    text, edits = question.split(":")
    states = [text]
    for edit in edits:
        states.append(slip(EDITS[edit](states[-1])))
    return Working(tuple(states[1:]), states[-1])


FAMILIES: dict[str, Family] = {
    "sum": Family(_sum_question, _sum_working),
    "sort": Family(_sort_question, _sort_working),
    "brackets": Family(_brackets_question, _brackets_working),
    "modular": Family(_modular_question, _modular_working),
    "base": Family(_base_question, _base_working),
    "edit": Family(_edit_question, _edit_working),
}


def worked(prompt: str, slip: Slip = str) -> Working:
    """The working of a prompt, each state passed through `slip` before it is written and built upon.

    Raises:
        ValueError: If the prompt is not one of this file's.
    """
    domain, _, question = prompt.removesuffix(THINK).partition(" ")
    if domain not in FAMILIES or not prompt.endswith(THINK):
        raise ValueError(f"a prompt needs the form '<family> <question>{THINK}', got {prompt!r}")
    return FAMILIES[domain].working(question, slip)


def problem(rng: random.Random, difficulty: int, *, domain: str) -> Problem:
    """One problem of a family, whose true working has `difficulty` steps; its prompt opens the thinking."""
    prompt = f"{domain} {FAMILIES[domain].question(rng, difficulty)}{THINK}"
    return Problem(prompt=prompt, answer=worked(prompt).answer, domain=domain)


def problems(num: int, *, seed: int, families: Sequence[str] | None = None, split: str = "train") -> list[Problem]:
    """Problems drawn evenly over families and difficulties, the same for the same arguments.

    Args:
        num: How many. Short questions are few, so that a prompt can come twice.
        seed: Of the draw.
        families: Names out of `FAMILIES`; all of them if None.
        split: Training and held-out prompts never meet, whatever the seeds.

    Raises:
        ValueError: If a family or the split is unknown.
    """
    names = list(FAMILIES) if families is None else list(families)
    if not names or (unknown := [name for name in names if name not in FAMILIES]):
        raise ValueError(f"families needs names out of {', '.join(FAMILIES)}, got {unknown if names else 'none'}")
    if split not in SPLITS:
        raise ValueError(f"split needs 'train' or 'heldout', got {split!r}")
    rng = random.Random(f"poise {split} {seed}")
    drawn: list[Problem] = []
    while len(drawn) < num:
        candidate = problem(rng, rng.choice(DIFFICULTIES), domain=rng.choice(names))
        if split_of(candidate.prompt) == split:
            drawn.append(candidate)
    return drawn


def is_correct(completion_text: str, answer: str) -> bool:
    """Whether the text after the end-of-thinking mark is the answer; False where the mark is missing or comes twice."""
    _, *answers = completion_text.split(END_OF_THINKING)
    return len(answers) == 1 and answers[0].strip() == answer


def correctness_reward(completions: Sequence[str], answer: Sequence[str], **columns: object) -> list[float]:
    """Reward 1.0 for a right answer and 0.0 for any other, in the form of a TRL reward function."""
    return [float(is_correct(text, right)) for text, right in zip(completions, answer, strict=True)]
