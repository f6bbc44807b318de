"""Rewards on verl: poise's verifiers in killable workers, and a guard around any reward function.

`compute_score` grades as the TRL engine and `poise eval` do, so that training, validation and evaluation agree. A row
names its verifier in `extra_info` (files of `poise data` do), or its `data_source` tells.

`guarded_score` calls the function that a run names. What it raises ends neither the run nor, unseen, the rollouts of a
prompt: the rollout is ungradable, the first of each kind is explained, all are counted.
"""

import asyncio
import functools
import inspect
import json
import logging
import math
import threading
from collections.abc import Callable
from typing import Any, cast

from poise.tasks.grading import Grader
from poise.tasks.problem import Problem
from poise.tasks.verifiers import VERIFIERS

logger = logging.getLogger(__name__)

RAISED = "poise_raised"
"""Name under which verl carries, for a rollout whose reward function raised, the number 1."""

SOURCES = {
    "math": "math",
    "openai/gsm8k": "math",
    "lighteval/MATH": "math",
    "DigitalLearningGmbH/MATH-lighteval": "math",
    "HuggingFaceH4/MATH-500": "math",
    "numina_": "math",
    "aime": "math",
    "amc": "math",
    "hmmt": "math",
    "brumo": "math",
    "codegen__": "python",
    "codecontests": "python",
    "codeforces": "python",
    "apps": "python",
    "taco": "python",
    "stem__gpqa": "choice",
    "stem__supergpqa": "choice",
}
"""Verifier by the beginning of a `data_source`, GURU's `domain__name` among them."""

_lock = threading.Lock()


def verifier_of(data_source: str, extra_info: Any = None) -> str | None:
    """The name of the verifier that grades a row; None where there is none.

    Args:
        data_source: Of the row.
        extra_info: Of the row; its entry "verifier" decides where there is one.
    """
    named = extra_info.get("verifier") if isinstance(extra_info, dict) else None
    found = named or next((name for begin, name in SOURCES.items() if data_source.startswith(begin)), None)
    return found if found in VERIFIERS else None


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Any = None,
    *,
    opening: str = "",
    seconds: float = 10.0,
    **named: Any,
) -> dict[str, float]:
    """The reward of a solution by the same verifiers as everywhere in poise: "score" and "acc", NaN where ungradable.

    For `reward.custom_reward_function`. One rollout at a time in each of verl's `reward.num_workers` processes.

    Args:
        data_source: Tells the verifier where the row does not.
        solution_str: What the policy wrote.
        ground_truth: The gold answer, a text or a number; of programs, their tests.
        extra_info: Of the row: "verifier" and "details", where they are known.
        opening: What the prompt put in front, such as "<think>"; poise's trainer fills it in.
        seconds: Time limit of one verdict.

    Raises:
        ValueError: If no verifier is known for the row.
    """
    name = verifier_of(data_source, extra_info)
    if name is None:
        raise ValueError(f"poise has no verifier for the data_source {data_source!r}: {known_sources()}")
    answer = ground_truth if isinstance(ground_truth, str) else json.dumps(ground_truth)
    details = (extra_info or {}).get("details") or ""
    if name == "python" and not details:
        answer, details = "", json.dumps({"tests": answer})
    problem = Problem("", answer, data_source, verifier=name, details=details)
    with _lock:
        reward = _grader(opening, seconds).rewards([solution_str], [problem])[0]
    return {"score": reward, "acc": reward}


def known_sources() -> str:
    """What tells a verifier, for sentences."""
    return f"it knows those that begin with {', '.join(SOURCES)}, and rows whose extra_info names a verifier"


@functools.cache
def _grader(opening: str, seconds: float) -> Grader:
    return Grader(opening=opening, seconds_a_rollout=seconds, workers=1)


async def guarded_score(*, poise_function: tuple[str | None, str], **given: Any) -> Any:
    """What a run's own reward function gives, and NaN where it raises.

    Args:
        poise_function: The function's path and name, as verl takes them; verl's own function without a path.
        given: verl's arguments, and those of `reward_kwargs`.
    """
    path, name = poise_function
    try:
        function = _own_function(path, name)
        if inspect.iscoroutinefunction(function):
            return await function(**given)
        return await asyncio.get_running_loop().run_in_executor(None, functools.partial(function, **given))
    except Exception as error:
        _explain_once(type(error).__name__, str(error)[:500], str(given.get("data_source")))
        return {"score": math.nan, "acc": math.nan, RAISED: 1.0}


@functools.cache
def _own_function(path: str | None, name: str) -> Callable[..., Any]:
    if path is None:
        from verl.utils.reward_score import default_compute_score

        return cast("Callable[..., Any]", default_compute_score)
    from verl.utils.import_utils import load_extern_object

    return cast("Callable[..., Any]", load_extern_object(path, name))


@functools.cache
def _explain(kind: str, data_source: str) -> list[str]:
    """The sentences of a kind of failure, in this process."""
    return []


def _explain_once(kind: str, sentence: str, data_source: str) -> None:
    """Log the first failure of each kind for each data source."""
    said = _explain(kind, data_source)
    if not said:
        said.append(sentence)
        logger.warning(
            "the reward function raised %s for the data_source %r, and such rollouts are ungradable: %s",
            kind,
            data_source,
            sentence,
        )
