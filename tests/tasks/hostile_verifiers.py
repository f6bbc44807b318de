"""Verifiers that hang, crash, raise and take all memory, for workers: a problem of this class brings them along.

Importing the module registers them; a worker imports it when it unpickles its first `HostileProblem`.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from poise.tasks.problem import Problem
from poise.tasks.verifiers import VERIFIERS, UngradableError, Verifier, WrongError


@dataclass(frozen=True)
class HostileProblem(Problem):
    """Its completions say what the verifier does."""

    prompt: str = ""
    answer: str = "right"
    domain: str = "hostile"
    verifier: str = "hostile"


def hostile_reward(completion: str, problem: Problem) -> float:
    """What the completion asks for; "once" only the first time, which a file remembers."""
    action, _, file = completion.rpartition("</think>")[2].partition(" once ")
    if file:
        if Path(file).exists():
            return 1.0
        Path(file).touch()
    match action:
        case "hang":
            while True:
                time.sleep(1)
        case "spin":
            while True:
                pass
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            raise SystemExit(0)
        case "raise":
            raise ValueError("no such thing")
        case "eat":
            return float(len(bytearray(2**40)) + len(["x" * 2**20 for _ in range(2**20)]))
        case "ungradable":
            raise UngradableError("no gold answer")
        case "wrong":
            raise WrongError("program crashed")
    return float(action == "right")


VERIFIERS["hostile"] = Verifier(hostile_reward)
