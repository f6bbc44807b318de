"""A task, asked and graded for one policy: what a trainer trains on and what it is measured by.

Training and measuring ask in the same form, by the chat template where the tokenizer has one. Two numbers are measured:
accuracy, whether answers are right by the task's own verifier, where the data set has answers; and the reward, where
functions of the user give it.
"""

import functools
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerState

from poise.tasks.embedded import END_OF_THINKING, THINK
from poise.tasks.grading import Grader, TaskReward, problem_columns
from poise.tasks.problem import Problem
from poise.tasks.reward_functions import check_reward_function, guarded, reward_function, rewards_of
from poise.tasks.task import task_named
from poise.tasks.ungradable import UngradableFile
from poise.tasks.verifiers import FULL_MARKS, opening_mark

logger = logging.getLogger(__name__)

HELD_OUT_SEED = 1
"""Of the held-out problems, whatever the seed of the run."""
ROW = "poise_row"
"""Column of the trainer's data set: number of the row whose columns the user's functions get."""
GOLD_ANSWERS = 32
"""So many are tried before the first step."""
GARBAGE = ("", "banana 17 !?", "I do not know.", "0 1 2 3 4 5 6 7 8 9", "</think>", "<answer></answer>")
"""Texts that answer nothing."""
CONSTANTS = ("0", "1", "yes", "no", "True", "False", "A", "-1")
"""Answers that a policy could give to every problem."""
MOST_CONSTANT = 0.9
"""Share of problems that one constant answer may solve."""
MOST_REFUSED = 0.2
"""Share of gold answers that a verifier may refuse; a run on more cannot tell right from wrong."""


class GradedTask:
    """A task, asked and graded for one policy; call `close` at the end.

    Args:
        spec: See `poise.tasks.task`.
        tokenizer: Of the policy.
        rewards: Reward functions as "package.module:function"; none for the task's own verifier.
        weights: One for each of `rewards`; all 1 if None.
        seconds_a_rollout, mebibytes_a_rollout, on_verifier_timeout: Limits of a verdict; see `Grader`.
        chat_options: For the tokenizer's `apply_chat_template`.
        ungradable: File for what the verifier cannot grade in training; None for none.
        end_of_thinking: The policy's own mark; see `Grader`.

    Attributes:
        task: The `poise.tasks.task.Task`.
        grader: Its `counts` say what could not be graded, and why.
        reward_functions: In the form that TRL takes.

    Raises:
        ValueError: If the task or a reward function is not what was asked for, or there are no problems.
        FileNotFoundError: If the task's file is not there.
    """

    def __init__(
        self,
        spec: str,
        *,
        tokenizer: Any,
        rewards: Sequence[str] = (),
        weights: Sequence[float] | None = None,
        seconds_a_rollout: float = 10.0,
        mebibytes_a_rollout: int = 2048,
        on_verifier_timeout: str = "wrong",
        chat_options: Mapping[str, Any] | None = None,
        ungradable: Path | None = None,
        end_of_thinking: str | None = END_OF_THINKING,
    ) -> None:
        num_rewards = len(rewards) or 1
        if weights is not None and len(weights) != num_rewards:
            raise ValueError(f"every reward needs one weight: rewards are {num_rewards}, and weights {len(weights)}")
        self.task = task_named(spec, needs_answers=not rewards)
        self._tokenizer, self._chat_options = tokenizer, dict(chat_options or {})
        self._as_chat = bool(getattr(tokenizer, "chat_template", None))
        self._weights = list(weights) if weights is not None else [1.0] * num_rewards
        self._functions = {name: reward_function(name) for name in rewards}
        self._sides = self._checked_sides(spec)
        tried, held_out = self._problems(2, seed=0), self.held_out(1)
        marks = (THINK, opening_mark(end_of_thinking or END_OF_THINKING))
        opened = self.texts(held_out)[0].rstrip().endswith(marks)
        self.grader = Grader(
            seconds_a_rollout=seconds_a_rollout,
            mebibytes_a_rollout=mebibytes_a_rollout,
            on_verifier_timeout=on_verifier_timeout,
            opening=THINK if opened else "",
            end_of_thinking=end_of_thinking,
        )
        for name, function in self._functions.items():
            check_reward_function(function, spec=name, **self._arguments(self._gold(tried), tried))
        self._functions = {name: guarded(function, spec=name) for name, function in self._functions.items()}
        self._rows: list[dict[str, Any]] = []
        self.reward_functions = [self._on_whole_rows(each) for each in self._functions.values()] or [
            TaskReward(self.grader, UngradableFile(ungradable) if ungradable else None)
        ]
        self.has_answers = not rewards or any(p.answer or p.details for p in self.held_out(100))

    def _checked_sides(self, spec: str) -> dict[str, str]:
        """The split of the task to train on, and that to measure; the same where there are too few to hold some out."""
        sides = {side: side for side in ("train", "heldout")}
        filled = [side for side in sides if self.task.problems(1, seed=0, split=side)]
        if not filled:
            raise ValueError(f"task {spec!r} has no problems to train on")
        if len(filled) == 1:
            logger.warning("task %r has too few problems to hold some out: those it trains on are measured", spec)
            return dict.fromkeys(sides, "all")
        return sides

    def _problems(self, num: int, *, seed: int, side: str = "train") -> list[Problem]:
        return self.task.problems(num, seed=seed, split=self._sides[side])

    def check_gold_answers(self, num: int = GOLD_ANSWERS) -> None:
        """Grade a sample of gold answers as if the policy had given them; needless where the user's functions grade.

        Where a problem has no gold answer, such as one with tests alone, whatever is answered must be gradable.

        Garbage and constant answers are graded too: a verifier that accepts the former cannot tell right from wrong,
        and a task that one of the latter solves is named.

        Raises:
            ValueError: If the verifier does not accept more than `MOST_REFUSED` of them, or gives garbage full marks.
        """
        if self._functions:
            return
        sample = self._problems(num, seed=0)
        self._check_garbage(sample)
        verdicts = self.grader.verdicts(self._gold(sample), sample)
        self.grader.counts.clear()
        refused = [
            (problem, verdict)
            for problem, verdict in zip(sample, verdicts, strict=True)
            if math.isnan(verdict.reward) or (problem.answer and verdict.reward < FULL_MARKS)
        ]
        if not refused:
            return
        problem, verdict = refused[0]
        sentence = (
            f"the verifier {problem.verifier!r} does not accept {len(refused)} of {len(sample)} gold answers, "
            f"such as {problem.answer!r:.200} to {problem.prompt!r:.200} ({verdict.cause or 'called wrong'})"
        )
        if len(refused) > MOST_REFUSED * len(sample):
            self.close()
            raise ValueError(f"{sentence}: check the columns of the data set and the verifier")
        logger.warning("%s", sentence)

    def _check_garbage(self, sample: Sequence[Problem]) -> None:
        """Refuse a verifier that gives full marks to garbage; name a task that one constant answer solves."""
        for texts, most in ((GARBAGE, MOST_REFUSED), (CONSTANTS, MOST_CONSTANT)):
            for text in texts:
                given = self.grader.rewards([END_OF_THINKING + text] * len(sample), sample)
                share = sum(reward >= FULL_MARKS for reward in given) / len(sample)
                if share <= most:
                    continue
                if texts is GARBAGE:
                    self.close()
                    raise ValueError(
                        f"the verifier {sample[0].verifier!r} of {sample[0].domain} gives full marks to {text!r} for "
                        f"{share:.0%} of the problems: no policy can learn from it"
                    )
                logger.warning("%s: the answer %r alone solves %.0f %% of it", sample[0].domain, text, 100 * share)
        self.grader.counts.clear()

    def training_data(self, num: int, *, seed: int) -> Dataset:
        """Up to `num` problems to train on, with the columns that the reward functions take."""
        problems = self._problems(num, seed=seed)
        shown: list[dict[str, Any]] = [
            {"prompt": problem.asked(as_chat=self._as_chat), **problem_columns(problem)} for problem in problems
        ]
        if self._functions:  # Arrow would change numbers and dictionaries: the user's columns are kept aside
            self._rows = [self._row(problem) for problem in problems]
            shown = [row | {ROW: number} for number, row in enumerate(shown)]
        return Dataset.from_list(shown)

    def held_out(self, num: int) -> list[Problem]:
        """Up to `num` held-out problems, always the same."""
        return self._problems(num, seed=HELD_OUT_SEED, side="heldout")

    def texts(self, problems: Sequence[Problem]) -> list[str]:
        """The prompts as the policy reads them, chat template and all."""
        if not self._as_chat:
            # A tokenizer that puts a mark at the beginning of a text does so in training, too.
            begins = self._tokenizer.bos_token_id is not None and (
                self._tokenizer("x")["input_ids"][0] == self._tokenizer.bos_token_id
            )
            return [(self._tokenizer.bos_token if begins else "") + problem.prompt for problem in problems]
        return [
            self._tokenizer.apply_chat_template(
                problem.asked(as_chat=True), add_generation_prompt=True, tokenize=False, **self._chat_options
            )
            for problem in problems
        ]

    def held_out_rewards(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[float]:
        """1 for a right answer and 0 for any other; NaN where ungradable, and everywhere without gold answers."""
        if not self.has_answers:
            return [math.nan] * len(completions)
        rewards = self.grader.rewards(completions, problems)
        return [reward if math.isnan(reward) else float(reward >= FULL_MARKS) for reward in rewards]

    def user_rewards(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[float] | None:
        """The weighted rewards of the user's functions, NaN where none could grade; None without such functions."""
        return self._weighted_rewards(completions, problems) if self._functions else None

    @property
    def what_is_measured(self) -> str:
        """One sentence for the start of a run."""
        if not self._functions:
            return "rewarded and measured: answers that the task's verifier calls right (held_out/accuracy)"
        names = " + ".join(self._functions)
        of_verifier = "held_out/accuracy is the share of answers that the task's verifier calls right"
        return f"rewarded: {names}, its mean on held-out problems is held_out/reward; " + (
            of_verifier if self.has_answers else "there are no gold answers, and no held_out/accuracy"
        )

    def close(self) -> None:
        """End the workers."""
        self.grader.close()

    def _weighted_rewards(self, completions: Sequence[str], problems: Sequence[Problem]) -> list[float]:
        """Sums over the functions that could grade; NaN where none could."""
        totals = [math.nan] * len(completions)
        arguments = self._arguments(list(completions), problems)
        for weight, function in zip(self._weights, self._functions.values(), strict=True):
            for place, reward in enumerate(rewards_of(function, **arguments)):
                if reward is not None and not math.isnan(float(reward)):
                    totals[place] = weight * float(reward) + (0.0 if math.isnan(totals[place]) else totals[place])
        return totals

    def _on_whole_rows(self, function: Any) -> Any:
        """A reward function of TRL that hands over the rows' own columns in place of their numbers."""

        def columns_of(named: dict[str, Any]) -> dict[str, Any]:
            rows = [self._rows[number] for number in named.pop(ROW)]
            return _columns(rows) | named

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def asynchronous(completions: Any, **named: Any) -> Any:
                return await function(completions, **columns_of(named))

            return asynchronous

        @functools.wraps(function)
        def synchronous(completions: Any, **named: Any) -> Any:
            return function(completions, **columns_of(named))

        return synchronous

    def _row(self, problem: Problem) -> dict[str, Any]:
        """One row of the trainer's data set; the source's own columns only where the user's functions may need them."""
        columns = dict(problem.columns) if self._functions else {}
        return columns | {"prompt": problem.asked(as_chat=self._as_chat)} | problem_columns(problem)

    def _gold(self, problems: Sequence[Problem]) -> list[str]:
        """Completions that give the gold answers, where thinking was begun after its end."""
        return [
            f"{END_OF_THINKING}{p.answer}" if self.grader.opening or p.prompt.rstrip().endswith(THINK) else p.answer
            for p in problems
        ]

    def _arguments(self, completions: Sequence[str], problems: Sequence[Problem]) -> dict[str, Any]:
        """What `rewards_of` takes, as TRL hands it over."""
        rows = [self._row(problem) for problem in problems]
        columns = _columns(rows)
        columns["completion_ids"] = [
            self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in completions
        ]
        columns |= {"trainer_state": TrainerState(), "log_extra": _ignored, "log_metric": _ignored}
        as_asked = [[{"role": "assistant", "content": text}] for text in completions] if self._as_chat else completions
        return {"prompts": [row["prompt"] for row in rows], "completions": as_asked, "columns": columns}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as columns; None where a row lacks one."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "prompt"))
    return {name: [row.get(name) for row in rows] for name in names}


def _ignored(name: str, value: Any) -> None:
    """Stands for TRL's loggers where nothing is logged."""
