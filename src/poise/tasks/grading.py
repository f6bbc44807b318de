"""Verdicts on many rollouts, of which none stops the rest.

A verifier that may hang or crash runs in a worker process, one rollout at a time under limits of time and memory, and
the kernel ends the worker when its time is up. One that did not come to an end is tried once more in a fresh worker.
What the policy can cause is wrong; a worker that is lost again has said nothing, and its rollout is ungradable (NaN).
`Grader.counts` says how many there were of which cause.

A script that grades must start its own work under `if __name__ == "__main__":`, as everywhere that Python starts
processes; workers are forked from a server that has the verifiers loaded and no threads of the trainer.
"""

import math
import multiprocessing
import os
import resource
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from poise.tasks.embedded import END_OF_THINKING
from poise.tasks.main_guard import unguarded_line
from poise.tasks.problem import Problem
from poise.tasks.sandbox import LONGEST_RUN, SECONDS_TO_BEGIN
from poise.tasks.ungradable import UngradableFile
from poise.tasks.verifiers import VERIFIERS, Verdict, verdict, with_usual_marks

PRELOADED = ["poise.tasks.verifiers", "math_verify", "reasoning_gym"]
"""What the server of workers has imported, so that a worker starts at once and its time is spent on grading."""
SECONDS_TO_START = 120.0
"""For all workers together, on a busy machine; a pool that does not answer by then is given up."""
ATTEMPTS = 2
"""How often a rollout is given to a worker before the failure of workers is its outcome."""
MOST_BROKEN_POOLS = 20
"""Pools in a row that broke before any of their rollouts was tried."""

TIME_LIMIT = "time limit"
WORKER_LOST = "worker lost"
NOT_TRIED = ""
"""Outcome of a rollout whose worker never began with it."""

TIMED_OUT = {"wrong": Verdict(0.0, TIME_LIMIT), "ungradable": Verdict(math.nan, TIME_LIMIT)}
"""What a verifier's second time-out means, by name."""


class Grader:
    """Grades rollouts; use it as a context manager or call `close`, so that no worker is left behind.

    Args:
        seconds_a_rollout: Time limit of one verdict.
        mebibytes_a_rollout: Memory that one verdict may take beyond what its worker had before.
        on_verifier_timeout: "wrong" or "ungradable": what a rollout is on which the verifier timed out twice. A policy
            can cause that, so that it is wrong by default.
        workers: Processes; by default as many as there are cores, and at most 8. They start when first needed.
        opening: What the prompt has put in front of every completion, such as "<think>" where the chat template opens
            the thinking: a completion that never closes it then has no answer.
        end_of_thinking: The policy's own mark; None where all of a completion is reasoning. Verifiers read it, and the
            mark that opens what it ends, as "</think>" and "<think>".

    Attributes:
        counts: How often each unusual cause came up: "time limit", "worker lost", "no gold answer", ... Their names are
            those of `poise.tasks.verifiers.Verdict`.

    Raises:
        ValueError: If a limit or the number of workers is not positive, or `on_verifier_timeout` is something else.
    """

    def __init__(
        self,
        *,
        seconds_a_rollout: float = 10.0,
        mebibytes_a_rollout: int = 2048,
        on_verifier_timeout: str = "wrong",
        workers: int | None = None,
        opening: str = "",
        end_of_thinking: str | None = END_OF_THINKING,
    ) -> None:
        if not seconds_a_rollout > 0:
            raise ValueError(f"a rollout needs a time limit of more than 0 seconds, got {seconds_a_rollout}")
        if mebibytes_a_rollout < 1:
            raise ValueError(f"a rollout needs a memory limit of 1 MiB or more, got {mebibytes_a_rollout}")
        if on_verifier_timeout not in TIMED_OUT:
            raise ValueError(f"on_verifier_timeout needs {' or '.join(TIMED_OUT)}, got {on_verifier_timeout!r}")
        if workers is not None and workers < 1:
            raise ValueError(f"grading needs 1 worker or more, got {workers}")
        self.seconds_a_rollout = seconds_a_rollout
        self.mebibytes_a_rollout = mebibytes_a_rollout
        self.on_verifier_timeout = on_verifier_timeout
        self.workers = workers or min(8, os.cpu_count() or 1)
        self.opening = opening
        self.end_of_thinking = end_of_thinking
        self.counts: Counter[str] = Counter()
        self._pool: ProcessPool | None = None

    def rewards(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[float]:
        """The reward of every completion, NaN where ungradable; arguments and errors as `verdicts`."""
        return [each.reward for each in self.verdicts(completions, problems)]

    def verdicts(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """The verdict on every completion.

        Args:
            completions: Texts.
            problems: One for each completion.

        Raises:
            ValueError: If there are not as many problems as completions.
            RuntimeError: If the running script does this outside of `if __name__ == "__main__":`.
        """
        if len(completions) != len(problems):
            raise ValueError(f"{len(completions)} completions need one problem each, got {len(problems)}")
        texts = [with_usual_marks(self.opening + text, self.end_of_thinking) for text in completions]
        rollouts = list(zip(texts, problems, strict=True))
        guarded = {
            place: rollout for place, rollout in enumerate(rollouts) if not VERIFIERS[rollout[1].verifier].harmless
        }
        found = self._verdicts_of_workers(guarded)
        verdicts = [found[place] if place in found else verdict(*each) for place, each in enumerate(rollouts)]
        self.counts.update(each.cause for each in verdicts if each.cause)
        return verdicts

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

    def _verdicts_of_workers(self, rollouts: Mapping[int, tuple[str, Problem]]) -> dict[int, Verdict]:
        """The verdicts of workers, by place."""
        verdicts: dict[int, Verdict] = {}
        attempts: Counter[int] = Counter()
        broken = 0
        while waiting := {place: rollout for place, rollout in rollouts.items() if place not in verdicts}:
            if attempts or broken:
                self.close()  # a fresh worker for whatever failed
            outcomes = self._outcomes(waiting)
            broken = 0 if any(outcome != NOT_TRIED for outcome in outcomes.values()) else broken + 1
            for place, outcome in outcomes.items():
                if isinstance(outcome, Verdict):
                    verdicts[place] = outcome
                    continue
                attempts[place] += outcome != NOT_TRIED
                if attempts[place] == ATTEMPTS or broken == MOST_BROKEN_POOLS:
                    timed_out = outcome == TIME_LIMIT
                    verdicts[place] = (
                        TIMED_OUT[self.on_verifier_timeout] if timed_out else Verdict(math.nan, WORKER_LOST)
                    )
        return verdicts

    def _outcomes(self, rollouts: Mapping[int, tuple[str, Problem]]) -> dict[int, Verdict | str]:
        """Each rollout given to a worker once: its verdict, or what happened to the worker."""
        limits = (self.seconds_a_rollout, self.mebibytes_a_rollout)
        futures = {
            place: self._running_pool().schedule(
                _limited_verdict, args=(*rollout, *limits), timeout=self._patience([rollout], rounds=1)
            )
            for place, rollout in rollouts.items()
        }
        # A worker may die where the pool does not see it; the pool must not wait for it for ever.
        rounds = math.ceil(len(futures) / self.workers) + 1
        patience = SECONDS_TO_START + self._patience(rollouts.values(), rounds=rounds)
        return {place: self._outcome(future, patience) for place, future in futures.items()}

    def _patience(self, rollouts: Iterable[tuple[str, Problem]], *, rounds: int) -> float:
        """Seconds after which a worker that did not end itself in time is ended from outside."""
        runs = any(VERIFIERS[problem.verifier].keeps_time for _, problem in rollouts)
        return rounds * (2 * self.seconds_a_rollout + 1 + (SECONDS_TO_BEGIN + LONGEST_RUN if runs else 0))

    def _running_pool(self) -> ProcessPool:
        if self._pool is not None and not self._pool.active:  # a worker was lost between two batches
            self.close()
        if self._pool is None:
            if line := unguarded_line():
                raise RuntimeError(
                    f"grading starts processes, which import this script: what line {line} begins must stand under "
                    '`if __name__ == "__main__":`'
                )
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
            self._pool = ProcessPool(max_workers=self.workers, context=context)
        return self._pool

    def _outcome(self, future: "ProcessFuture[Verdict]", patience: float) -> Verdict | str:
        try:
            return future.result(timeout=patience)
        except TimeoutError:
            # The kernel has ended a worker that was late long before: this one died at once, before the pool took note.
            if not future.done():
                self.close()
            return WORKER_LOST
        except ProcessExpired as error:
            return TIME_LIMIT if error.exitcode in (-signal.SIGALRM, -signal.SIGPROF) else WORKER_LOST
        except (BrokenProcessPool, CancelledError):
            return NOT_TRIED
        except Exception:  # what cannot travel between processes
            return Verdict(math.nan, "worker failed")


def _limited_verdict(completion: str, problem: Problem, seconds: float, mebibytes: int) -> Verdict:
    """The verdict, in a worker that gets no more memory, and that the kernel ends when its time is up.

    It needs nobody for that: a verifier inside one long operation gives no thread and no handler a turn, and whoever
    started the worker may be gone. Of a verifier that keeps time by itself only its own computing is limited.
    """
    address_space, most = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the limit is not kept by the system anyway
        resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes(statm) + mebibytes * 2**20, most))
    timer = signal.ITIMER_PROF if VERIFIERS[problem.verifier].keeps_time else signal.ITIMER_REAL
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(timer, seconds)
    try:
        return verdict(completion, problem, seconds=seconds)
    finally:
        signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, (address_space, most))


def _mapped_bytes(statm: Path) -> int:
    return int(statm.read_text().split()[0]) * resource.getpagesize()


class TaskReward:
    """A reward function of TRL for the problems of any task.

    The columns of the data set are those of `problem_columns`.

    Args:
        grader: Grades the completions; whoever made it closes it.
        ungradable: Keeps what could not be graded; None for nobody.
    """

    def __init__(self, grader: Grader, ungradable: UngradableFile | None = None) -> None:
        self.grader = grader
        self.ungradable = ungradable
        self._seen: set[str] = set()
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
        texts = [completion_text(each) for each in completions]
        verdicts = self.grader.verdicts(texts, problems)
        if self.ungradable is not None:
            state, prompts = columns.get("trainer_state"), columns.get("prompts") or [""] * len(texts)
            self.ungradable.add(
                verdicts,
                step=1 if state is None else state.global_step + 1,  # as in the files of rollouts
                prompts=[completion_text(each) for each in prompts],
                completions=texts,
                answers=answer,
            )
        if (log_metric := columns.get("log_metric")) is not None:
            for name, share in self._shares(verdicts).items():
                log_metric(f"reward/{name}", share)
        return [each.reward for each in verdicts]

    def _shares(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Shares of the batch by cause, of every cause there has been: one that is gone is 0, not missing."""
        total = max(1, len(verdicts))
        counts = Counter(metric_name(each) for each in verdicts if each.cause)
        self._seen |= set(counts)
        ungradable = sum(math.isnan(each.reward) for each in verdicts) / total
        return {"ungradable_share": ungradable} | {name: counts[name] / total for name in sorted(self._seen)}


def metric_name(given: Verdict) -> str:
    """Under which name verdicts of this cause are counted: "ungradable/no_gold_answer", "wrong/time_limit"."""
    kind = "ungradable" if math.isnan(given.reward) else "wrong"
    return f"{kind}/{given.cause.replace(' ', '_')}"


def problem_columns(problem: Problem) -> dict[str, str]:
    """What `TaskReward` needs of a problem, beside its prompt."""
    names = ("answer", "domain", "verifier", "details")
    return {name: getattr(problem, name) for name in names}


def completion_text(completion: Any) -> str:
    """A completion as text; of messages, the contents in order."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)
