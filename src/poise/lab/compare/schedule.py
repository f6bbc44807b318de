"""The order in which the runs of a comparison are carried out.

    comparison.json     the conditions; others are refused in the same folder
    runs/               ARM/lr-RATE/seed-N for each run; complete when it holds `summary.json`

A run that is complete is never repeated, one that is not is made anew, and every run has a process of its own. Learning
rates come first, arm by arm; then arms are compared, seed by seed. Every arm chooses its rate from the same grid by the
same score, and the grid is widened while the best rate lies at its edge.
"""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poise.lab.compare.arms import arm_named
from poise.lab.compare.plan import Comparison, Conditions, Run
from poise.lab.compare.run import Told, specification
from poise.lab.progress import Watch, silent
from poise.storage.claims import claim
from poise.storage.run_directory import RunDirectory

MOST_WIDENINGS = 3
"""Rates tried beyond each end of the grid."""

Carry = Callable[..., None]
"""Carries out one run: `carry(conditions, run, folder, side_by_side=..., told=...)`, as `in_own_process` does."""


class RunFailed(RuntimeError):
    """A run came to an end without a result; what was complete before stays."""


def in_own_process(conditions: Conditions, run: Run, folder: Path, *, side_by_side: int, told: Told) -> None:
    """Carry out a run in a process of its own; what it says of errors stays beside the run's folder if it fails.

    Args:
        conditions: What runs have in common.
        run: Which one.
        folder: Of the run.
        side_by_side: Runs that share the machine.
        told: See `Told`.

    Raises:
        RunFailed: If it ends without a result; the last line of its errors is in the sentence.
    """
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    quiet |= {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    threads = conditions.run_settings(seed=0).torch_threads
    if threads is not None:
        quiet["OMP_NUM_THREADS"] = str(threads)
    folder.parent.mkdir(parents=True, exist_ok=True)
    errors = folder.with_name(folder.name + "-errors.txt")
    command = [sys.executable, "-W", "ignore", "-m", "poise.lab.compare.run"]
    pipe = subprocess.PIPE
    with (
        errors.open("w") as said,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True, env=os.environ | quiet) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(specification(conditions, run, folder, side_by_side=side_by_side))
            process.stdin.close()
            for line in process.stdout:
                told(*json.loads(line))
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code:
        last = (errors.read_text().strip().splitlines() or [f"exit code {code}"])[-1]
        raise RunFailed(f"run {run.name} failed: {last} (all of it in {errors})")
    errors.unlink()


class Schedule:
    """The runs of a comparison in a folder, new or to be continued.

    Args:
        path: The folder.
        comparison: What is to be compared.

    Raises:
        ValueError: If the folder holds a comparison under other conditions.
        FileExistsError: If it holds something else.
    """

    def __init__(self, path: Path, comparison: Comparison) -> None:
        self.path, self.comparison = path, comparison
        claim(path, asdict(comparison.conditions), what="comparison", file="comparison.json")
        self._lock = threading.Lock()

    def summary(self, run: Run) -> dict[str, Any] | None:
        """Of a complete run; None of any other."""
        folder = self._folder(run)
        return folder.read_summary() if folder.summary.is_file() else None

    def lines(self, run: Run) -> list[dict[str, Any]]:
        """The metrics of a run."""
        return self._folder(run).read_metrics()

    def missing(self) -> list[Run]:
        """Runs that are known to be needed and not complete; a wider grid may add to them."""
        comparison = self.comparison
        try:
            chosen = self.learning_rates()
        except LookupError:
            chosen = dict.fromkeys(comparison.arms, 0.0)  # as many runs as there will be, at rates not known yet
        tried = [run for arm in comparison.arms for rate in self._grid for run in comparison.tuning_runs(arm, rate)]
        return [run for run in tried + comparison.compared_runs(chosen) if self.summary(run) is None]

    def scores(self, arm: str) -> dict[float, float]:
        """Final accuracy, over the tuning seeds, at every learning rate that was tried to the end."""
        rates = {
            float(each.name.removeprefix("lr-")) for each in (self.path / "runs" / arm_named(arm).folder).glob("lr-*")
        }
        found = {}
        for rate in sorted(rates):
            summaries = [self.summary(run) for run in self.comparison.tuning_runs(arm, rate)]
            whole = [each["final_accuracy"] for each in summaries if each is not None]
            if whole and len(whole) == len(summaries):
                found[rate] = sum(math.nan if each is None else each for each in whole) / len(whole)
        return found

    def learning_rates(self) -> dict[str, float]:
        """The chosen one of each arm.

        Raises:
            LookupError: If some have still to be tried.
        """
        if not self._grid:
            return dict.fromkeys(self.comparison.arms, self.comparison.learning_rates[0])
        chosen = {}
        for arm in self.comparison.arms:
            scores = self.scores(arm)
            if next_learning_rate(scores, self._grid) is not None:
                raise LookupError(f"learning rates of {arm} have still to be tried")
            chosen[arm] = best_learning_rate(scores)
        return chosen

    def carry_out(self, *, jobs: int = 1, watch: Watch = silent, carry: Carry = in_own_process) -> None:
        """Carry out every run that is missing.

        Args:
            jobs: Runs side by side; they slow each other down, and their times with them.
            watch: Told how a run goes, and how many are complete of how many at least.
            carry: How a run is carried out.

        Raises:
            RunFailed: If a run ends without a result; others that were under way are finished first.
        """
        while wanted := self._rates_to_try():
            self._all(
                [run for arm, rate in wanted for run in self.comparison.tuning_runs(arm, rate)], jobs, watch, carry
            )
        self._all(self.comparison.compared_runs(self.learning_rates()), jobs, watch, carry)

    def _rates_to_try(self) -> list[tuple[str, float]]:
        """For each arm the rates of the grid at first, then one rate at a time while the grid is to be widened."""
        wanted: list[tuple[str, float]] = []
        for arm in self.comparison.arms if self._grid else ():
            scores = self.scores(arm)
            rate = next_learning_rate(scores, self._grid)
            if rate in self._grid:
                wanted += [(arm, each) for each in self._grid if each not in scores]
            elif rate is not None:
                wanted.append((arm, rate))
        return wanted

    def _all(self, runs: Sequence[Run], jobs: int, watch: Watch, carry: Carry) -> None:
        todo = [run for run in runs if self.summary(run) is None]
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            waiting = [pool.submit(self._one, run, jobs, watch, carry) for run in todo]
            try:
                for each in waiting:
                    each.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, run: Run, jobs: int, watch: Watch, carry: Carry) -> None:
        def tell(share: float, accuracy: float | None, *, final: str = "") -> None:
            with self._lock:
                done, missing = len(list((self.path / "runs").rglob("summary.json"))), self.missing()
                shown = math.nan if accuracy is None else accuracy
                part = share if run in missing else 0.0
                watch(f"{run.name}: {final}held-out {shown:.2f}", done + part, done + len(missing))

        carry(self.comparison.conditions, run, self._folder(run).path, side_by_side=jobs, told=tell)
        summary = self.summary(run)
        if summary is None:
            raise RunFailed(f"run {run.name} left no summary in {self._folder(run).path}")
        tell(1.0, summary["final_accuracy"], final="complete, final ")

    @property
    def _grid(self) -> tuple[float, ...]:
        return self.comparison.learning_rates if self.comparison.num_tuning_seeds else ()

    def _folder(self, run: Run) -> RunDirectory:
        return RunDirectory(self.path / "runs" / run.name)


def best_learning_rate(scores: Mapping[float, float]) -> float:
    """The rate with the highest score, of equal ones the lower; NaN is the worst."""
    return max(sorted(scores), key=lambda rate: -math.inf if math.isnan(scores[rate]) else scores[rate])


def next_learning_rate(scores: Mapping[float, float], grid: Sequence[float]) -> float | None:
    """One more rate to try: of the grid, else beyond the edge at which the best one lies; None where it lies inside.

    Args:
        scores: Of the rates that were tried.
        grid: Rising; its outermost ratios are kept beyond it, rounded to one digit.
    """
    untried = [rate for rate in grid if not any(math.isclose(rate, tried) for tried in scores)]
    if untried:
        return untried[0]
    best = best_learning_rate(scores)
    above, below = (sum(map(beyond, scores)) for beyond in (grid[-1].__lt__, grid[0].__gt__))
    if best == max(scores) and above < MOST_WIDENINGS:
        return float(f"{best * grid[-1] / grid[-2]:.0e}")
    if best == min(scores) and below < MOST_WIDENINGS:
        return float(f"{best * grid[0] / grid[1]:.0e}")
    return None
