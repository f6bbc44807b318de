"""Verifiers: the reward of a completion, by kinds of problem.

A wrong or unparseable answer is 0, and only what cannot be judged is ungradable (NaN): the gold answer is
missing or unreadable, or the verifier fails on it too. A verifier that raises on a completion and gives the gold answer
full marks has called the completion wrong.
"""

import functools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from poise.tasks.answer_text import answer_text, gold_text
from poise.tasks.answers import Word, equal, parsed
from poise.tasks.choices import chosen_letter, option_letter
from poise.tasks.code_tests import UnreadableTestError, failure, parsed_tests, program_of
from poise.tasks.embedded import END_OF_THINKING, THINK, is_correct
from poise.tasks.generated import data_set, json_value
from poise.tasks.problem import Problem
from poise.tasks.sandbox import IsolationError, Limits, NotBegunError

FULL_MARKS = 1.0 - 1e-6
"""A reward from here on is a right answer."""
SHARE_FOR_A_TEST = 0.5
"""Of a verdict's time, what a program may take for one test."""


class UngradableError(Exception):
    """Nothing can be said about any completion of the problem; the message is the cause, in a few words."""


class WrongError(Exception):
    """The completion is wrong for a reason worth counting; the message is the cause, in a few words."""


@dataclass(frozen=True)
class Verdict:
    """A reward, NaN where ungradable, and what was unusual about how it came about (empty: nothing)."""

    reward: float
    cause: str = ""


@dataclass(frozen=True)
class Verifier:
    """How one kind of problem is graded.

    Attributes:
        reward: `reward(completion, problem)`.
        harmless: Whether it is so simple that it can neither hang nor crash.
        keeps_time: Whether it ends by itself within a time limit, given as `reward(completion, problem, seconds=...)`.
    """

    reward: Callable[..., float]
    harmless: bool = False
    keeps_time: bool = False


def final_answer(completion: str) -> str:
    """What a completion gives as its answer, without spaces around it.

    That is what follows the last end of thinking, and nothing where the thinking does not end; of it the content of the
    last <answer> tags, where there are any.
    """
    _, _, after = completion.rpartition(END_OF_THINKING)
    if THINK in after:
        return ""
    tagged = re.findall(r"<answer>(.*?)</answer>", after, flags=re.DOTALL)
    return (tagged[-1] if tagged else after).strip()


def opening_mark(end_of_thinking: str) -> str:
    """The mark that opens what another ends: "<think>" of "</think>", "[THINK]" of "[/THINK]"."""
    return end_of_thinking.replace("/", "", 1)


def with_usual_marks(completion: str, end_of_thinking: str | None) -> str:
    """A completion with "</think>" and "<think>" in the place of the policy's own marks, as verifiers know them."""
    if not end_of_thinking or end_of_thinking == END_OF_THINKING:
        return completion
    opening = opening_mark(end_of_thinking)
    if opening != end_of_thinking:
        completion = completion.replace(opening, THINK)
    return completion.replace(end_of_thinking, END_OF_THINKING)


def embedded_reward(completion: str, problem: Problem) -> float:
    """1 where the text after the only end-of-thinking mark is the answer."""
    return float(is_correct(completion, problem.answer))


def exact_reward(completion: str, problem: Problem) -> float:
    """1 where the final answer is the gold answer, letter by letter."""
    if not problem.answer:
        raise UngradableError("no gold answer")
    return float(final_answer(completion) == problem.answer.strip())


def reasoning_gym_reward(completion: str, problem: Problem) -> float:
    """The score, from 0 to 1, that the data set itself gives to the final answer."""
    details = json_value(problem.details)
    source = _scoring_data_set(details["data_set"], json.dumps(details["settings"]))
    answer = extracted(final_answer(completion), details["extract"])
    try:
        return float(source.score_answer(answer, details["entry"]))
    except Exception:
        if problem.answer:  # `verdict` tries the gold answer too
            raise
        raise WrongError("verifier raised") from None


def extracted(text: str, what: str) -> str:
    """The part of an answer that is scored: "all", or its first "line", "word" or "number"; empty where there is none.

    Small models say more than they are asked for; a data set that compares texts would call all of it wrong.
    """
    if what == "line":
        return text.strip().split("\n", 1)[0].strip()
    if what == "word":
        found = re.search(r"[^\W\d_]+", text)
        return found[0] if found else ""
    if what == "number":
        found = re.search(r"-?\d[\d,]*(\.\d+)?", text)
        return found[0].replace(",", "") if found else ""
    return text


@functools.lru_cache
def _scoring_data_set(name: str, settings: str) -> Any:
    return data_set(name, json.loads(settings), seed=0, size=1)


def math_reward(completion: str, problem: Problem) -> float:
    """1 where the final answer is mathematically equal to the gold answer.

    A gold answer may be bare LaTeX, boxed, between dollars, follow "####" or "The answer is", or be an option's letter.
    """
    gold = gold_text(problem.answer)
    if not problem.answer.rpartition("####")[2].strip():
        raise UngradableError("no gold answer")
    if parsed(gold) == Word(""):
        raise UngradableError("unparseable gold answer")
    given = final_answer(completion)
    letter = option_letter(gold)
    if letter is not None:
        return float(chosen_letter(given) == letter)
    text = answer_text(given)
    return float(text is not None and equal(parsed(text), parsed(gold)))


def choice_reward(completion: str, problem: Problem) -> float:
    """1 where the final answer chooses the option whose letter is the gold answer, by its letter or by its text."""
    letter = option_letter(gold_text(problem.answer))
    if letter is None:
        raise UngradableError("no gold answer" if not problem.answer.strip() else "unparseable gold answer")
    options = json.loads(problem.details)["options"] if problem.details else ()
    return float(chosen_letter(final_answer(completion), options) == letter)


def python_reward(completion: str, problem: Problem, *, seconds: float) -> float:
    """1 where the program in the completion passes all tests that the problem's details hold."""
    try:
        tests = parsed_tests(json.loads(problem.details)["tests"])
    except (UnreadableTestError, ValueError, KeyError, TypeError):
        raise UngradableError("no readable tests") from None
    try:
        program = program_of(completion, {*tests.names, tests.entry})
        found = failure(program, tests, limits=Limits(seconds=SHARE_FOR_A_TEST * seconds))
    except IsolationError:
        raise UngradableError("no isolation for programs") from None
    except NotBegunError:
        raise UngradableError("program did not begin") from None
    if found:
        raise WrongError(found)
    return float(found is None)


VERIFIERS = {
    "embedded": Verifier(embedded_reward, harmless=True),
    "exact": Verifier(exact_reward, harmless=True),
    "reasoning-gym": Verifier(reasoning_gym_reward),
    "math": Verifier(math_reward),
    "choice": Verifier(choice_reward, harmless=True),
    "python": Verifier(python_reward, keeps_time=True),
}
"""By the name that a problem carries."""


def verdict(completion: str, problem: Problem, *, seconds: float = 10.0) -> Verdict:
    """The verdict of a problem's verifier, in this process: it may hang.

    Args:
        completion: What is graded.
        problem: What it answers.
        seconds: Time limit, for a verifier that keeps one by itself.
    """
    verifier = VERIFIERS[problem.verifier]
    reward = functools.partial(verifier.reward, seconds=seconds) if verifier.keeps_time else verifier.reward
    try:
        return Verdict(_finite(reward(completion, problem)))
    except UngradableError as error:
        return Verdict(math.nan, str(error))
    except WrongError as error:
        return Verdict(0.0, str(error))
    except MemoryError:
        cause = "memory limit"
    except (Exception, SystemExit):
        cause = "verifier raised"
    try:
        accepts_gold = reward(END_OF_THINKING + problem.answer, problem) >= FULL_MARKS
    except (Exception, SystemExit):
        accepts_gold = False
    return Verdict(0.0, cause) if accepts_gold else Verdict(math.nan, "verifier fails on the gold answer")


def graded(completion: str, problem: Problem) -> float:
    """The reward of `verdict`."""
    return verdict(completion, problem).reward


def _finite(reward: float) -> float:
    if not math.isfinite(reward):
        raise ValueError(f"a reward must be a finite number, got {reward}")
    return reward
