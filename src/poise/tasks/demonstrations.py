"""Demonstrations that the embedded model imitates before reinforcement learning.

A pupil who knows the working of every family and does not always follow it: some states are written down wrong and
built upon, and some answers are guessed without any working. Both grow with the difficulty. A policy trained on this
knows the right way on nearly every prompt and takes it with a probability that differs between prompts.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from poise.tasks.embedded import DIFFICULTIES, END_OF_THINKING, Problem, worked

ALPHABETS = (string.digits, "abcdefgh", "()[]{}")


@dataclass(frozen=True)
class Habits:
    """How often things go wrong, as (at the lowest difficulty, at the highest), linear between.

    Attributes:
        guess: Share of demonstrations that answer without working.
        slip: Share of states that get one wrong character.
        wrong_guess: Share of guesses that are wrong.
    """

    guess: tuple[float, float] = (0.05, 0.6)
    slip: tuple[float, float] = (0.05, 0.2)
    wrong_guess: tuple[float, float] = (0.3, 1.0)


FLAWLESS = Habits(guess=(0.0, 0.0), slip=(0.0, 0.0), wrong_guess=(0.0, 0.0))


def miswritten(text: str, rng: random.Random) -> str:
    """The text with one character replaced by another of its kind (an empty text stays)."""
    if not text:
        return text
    place = rng.randrange(len(text))
    alphabet = next((alphabet for alphabet in ALPHABETS if text[place] in alphabet), "")
    others = [mark for mark in alphabet if mark != text[place]]
    return text[:place] + rng.choice(others) + text[place + 1 :] if others else text


def demonstration(problem: Problem, rng: random.Random, *, habits: Habits) -> str:
    """A completion: states between commas, the end-of-thinking token, an answer."""
    difficulty = len(worked(problem.prompt).states)
    hardness = (difficulty - DIFFICULTIES[0]) / (DIFFICULTIES[-1] - DIFFICULTIES[0])

    def happens(share: tuple[float, float]) -> bool:
        return rng.random() < share[0] + (share[1] - share[0]) * hardness

    if happens(habits.guess):
        answer = miswritten(problem.answer, rng) if happens(habits.wrong_guess) else problem.answer
        return END_OF_THINKING + answer
    working = worked(problem.prompt, lambda state: miswritten(state, rng) if happens(habits.slip) else state)
    return ",".join(working.states) + END_OF_THINKING + working.answer
