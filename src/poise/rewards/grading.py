"""How are many rollouts graded without one of them stopping the rest?

The rule: a verifier that may hang or crash runs in a worker process, one rollout at a time under a time limit, and is
killed when the time is up. A verifier that does not come to an end has said nothing: the rollout is ungradable (NaN),
not wrong, and `Grader.counts` says how many there were of which cause.

A script that grades must start its own work under `if __name__ == "__main__":`, as everywhere that Python starts
processes; workers are forked from a server that has the verifiers loaded and no threads of the trainer.
"""

import math
import multiprocessing
import os
import resource
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from poise.rewards.verifiers import VERIFIERS, Verdict, verdict
from poise.tasks.problem import Problem

PRELOADED = ["poise.rewards.verifiers", "math_verify", "reasoning_gym"]
"""What the server of workers has imported, so that a worker starts at once and its time is spent on grading."""
SECONDS_TO_START = 120.0
"""For all workers together, on a busy machine; a pool that does not answer by then is given up."""


class Grader:
    """Grades rollouts; use it as a context manager or call `close`, so that no worker is left behind.

    Args:
        seconds_a_rollout: Time limit of one verdict.
        workers: Processes; by default as many as there are cores, and at most 8. They start when first needed.
        opening: What the prompt has put in front of every completion, such as "<think>" where the chat template opens
            the thinking: a completion that never closes it then has no answer.

    Attributes:
        counts: How often each unusual cause came up: "time limit", "worker lost", "no gold answer", ... Their names are
            those of `poise.rewards.verifiers.Verdict`.

    Raises:
        ValueError: If the time limit or the number of workers is not positive.
    """

    def __init__(self, *, seconds_a_rollout: float = 10.0, workers: int | None = None, opening: str = "") -> None:
        if not seconds_a_rollout > 0:
            raise ValueError(f"a rollout needs a time limit of more than 0 seconds, got {seconds_a_rollout}")
        if workers is not None and workers < 1:
            raise ValueError(f"grading needs 1 worker or more, got {workers}")
        self.seconds_a_rollout = seconds_a_rollout
        self.workers = workers or min(8, os.cpu_count() or 1)
        self.opening = opening
        self.counts: Counter[str] = Counter()
        self._pool: ProcessPool | None = None

    def rewards(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[float]:
        """The reward of every completion, NaN where ungradable.

        Args:
            completions: Texts.
            problems: One for each completion.

        Raises:
            ValueError: If there are not as many problems as completions.
        """
        if len(completions) != len(problems):
            raise ValueError(f"{len(completions)} completions need one problem each, got {len(problems)}")
        waiting: list[Verdict | ProcessFuture[Verdict]] = [
            verdict(self.opening + completion, problem)
            if VERIFIERS[problem.verifier].harmless
            else self._running_pool().schedule(
                _mortal_verdict,
                args=(self.opening + completion, problem, self.seconds_a_rollout),
                timeout=self.seconds_a_rollout,
            )
            for completion, problem in zip(completions, problems, strict=True)
        ]
        # A worker may die where the pool does not see it; the pool must not wait for it for ever.
        rounds = math.ceil(len(waiting) / self.workers) + 1
        patience = SECONDS_TO_START + 2 * self.seconds_a_rollout * rounds
        verdicts = [each if isinstance(each, Verdict) else self._result(each, patience) for each in waiting]
        self.counts.update(each.cause for each in verdicts if each.cause)
        return [each.reward for each in verdicts]

    def close(self) -> None:
        """End all workers."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()  # type: ignore[no-untyped-call]
            pool.join()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _running_pool(self) -> ProcessPool:
        if self._pool is not None and not self._pool.active:  # a worker was lost between two batches
            self.close()
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
            self._pool = ProcessPool(max_workers=self.workers, context=context)
        return self._pool

    def _result(self, future: "ProcessFuture[Verdict]", patience: float) -> Verdict:
        try:
            return future.result(timeout=patience)
        except TimeoutError:
            if not future.done():
                self.close()
                return Verdict(math.nan, "worker lost")
            return Verdict(math.nan, "time limit")
        except (ProcessExpired, BrokenProcessPool, CancelledError):
            return Verdict(math.nan, "worker lost")
        except Exception:  # what cannot travel between processes, or an end that a verifier asked for
            return Verdict(math.nan, "worker failed")


def _mortal_verdict(completion: str, problem: Problem, seconds: float) -> Verdict:
    """The verdict, in a worker that the kernel ends when nobody is left to do so.

    The trainer kills a worker whose time is up. Where the trainer itself was killed, a verifier inside one long
    operation would go on for ever: no thread and no handler of the worker ever gets a turn.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = math.ceil(used.ru_utime + used.ru_stime + 2 * seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    return verdict(completion, problem)


class TaskReward:
    """A reward function of TRL for the problems of any task.

    The columns of the data set are those of `problem_columns`.

    Args:
        grader: Grades the completions; whoever made it closes it.
    """

    def __init__(self, grader: Grader) -> None:
        self.grader = grader
        self.__name__ = "correctness_reward"

    def __call__(
        self,
        completions: Sequence[Any],
        *,
        answer: Sequence[str],
        domain: Sequence[str],
        verifier: Sequence[str],
        details: Sequence[str],
        **columns: Any,
    ) -> list[float]:
        """One reward a completion, text or messages; NaN where ungradable."""
        problems = [Problem("", *each) for each in zip(answer, domain, verifier, details, strict=True)]
        before = Counter(self.grader.counts)
        rewards = self.grader.rewards([completion_text(each) for each in completions], problems)
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric("reward/ungradable_share", sum(math.isnan(reward) for reward in rewards) / len(rewards))
            for cause, count in (self.grader.counts - before).items():
                log_metric(f"reward/{cause.replace(':', '').replace(' ', '_')}", count)
        return rewards


def problem_columns(problem: Problem) -> dict[str, str]:
    """What `TaskReward` needs of a problem, beside its prompt."""
    names = ("answer", "domain", "verifier", "details")
    return {name: getattr(problem, name) for name in names}


def completion_text(completion: Any) -> str:
    """A completion as text; of messages, the contents in order."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)
