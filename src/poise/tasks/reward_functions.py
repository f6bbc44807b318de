"""Reward functions of the user.

One has the signature of TRL's reward functions, `(completions, **columns) -> list[float | None]`, and is tried
on gold answers before the first step, so that a mistake in it costs no training. It runs in the trainer's own process,
as in TRL, without limits; what it raises or returns wrongly later ends the run with a sentence that names the case.
"""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

RewardFunction = Callable[..., Any]


class RewardError(Exception):
    """A reward function did during training what no training can go on from."""


def reward_function(spec: str) -> RewardFunction:
    """The function that a text names; modules of the working directory are found too.

    Args:
        spec: "package.module:function" or "path.py:function", with keyword options as in "path.py:function?scale=2".

    Raises:
        ValueError: If it has another form, cannot be imported, or is no function.
    """
    place, _, query = spec.partition("?")
    function = imported(place, what="reward")
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        option, separator, text = part.partition("=")
        if not (separator and option.isidentifier()):
            raise ValueError(f"options of a reward need the form ?name=value&name=value, got {part!r} in {spec!r}")
        options[option] = yaml.safe_load(text)
    return functools.wraps(function)(functools.partial(function, **options)) if options else function


def imported(spec: str, *, what: str) -> Any:
    """The function or class that a text names; modules of the working directory are found too.

    Args:
        spec: "package.module:name" or "path.py:name".
        what: It is to be, for the sentences of errors.

    Raises:
        ValueError: If it has another form, cannot be imported, or is neither.
    """
    module_name, separator, name = spec.rpartition(":")
    if not (separator and module_name and name.isidentifier()):
        raise ValueError(f"a {what} needs the form package.module:function or path.py:function, got {spec!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = _module_of_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"{what} {spec!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        kinds = inspect.isfunction, inspect.isclass
        known = [
            each
            for each, value in vars(module).items()
            if any(kind(value) for kind in kinds) and value.__module__ == module.__name__ and not each.startswith("_")
        ]
        raise ValueError(f"module {module_name} has no function {name!r}: it has {', '.join(known) or 'none'}")
    return found


def _module_of_file(path: str) -> Any:
    name = f"poise_reward_{Path(path).stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None or not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def rewards_of(
    function: RewardFunction,
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Any],
) -> Any:
    """What a reward function returns, awaited where it is asynchronous; the arguments are those that TRL hands over.

    Args:
        function: TRL's signature.
        prompts: Texts or messages.
        completions: Texts or messages, one a prompt.
        columns: The other columns of the data set, and what else TRL hands over.
    """
    returned = function(prompts=list(prompts), completions=list(completions), **columns)
    if not inspect.isawaitable(returned):
        return returned

    async def awaited() -> Any:
        return await returned

    return asyncio.run(awaited())


def check_reward_function(
    function: RewardFunction,
    *,
    spec: str,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Any],
) -> None:
    """Try a reward function on completions that are gold answers.

    Raises:
        ValueError: If it raises, or returns anything but a list with one number or None a completion.
    """
    try:
        returned = rewards_of(function, prompts=prompts, completions=completions, columns=columns)
    except Exception as error:
        raise ValueError(f"reward {spec!r} raised {type(error).__name__} on gold answers: {error}") from error
    if mistake := _mistake(returned, len(completions)):
        raise ValueError(f"reward {spec!r} {mistake}")


def guarded(function: RewardFunction, *, spec: str) -> RewardFunction:
    """The same reward function, which raises nothing but `RewardError`: one sentence with the step and the case.

    Args:
        function: TRL's signature, synchronous or not.
        spec: Its name in sentences.
    """

    def place(completions: Sequence[Any], columns: Mapping[str, Any], number: int = 0) -> str:
        state, prompts = columns.get("trainer_state"), columns.get("prompts")
        step = "" if state is None else f" at step {state.global_step + 1}"
        prompt = f" for the prompt {prompts[number]!r:.200}" if prompts else ""
        return f"{step}, completion {number + 1} of {len(completions)} being {completions[number]!r:.200}{prompt}"

    def failed(error: Exception, completions: Sequence[Any], columns: Mapping[str, Any]) -> RewardError:
        cause = f"reward {spec!r} raised {type(error).__name__}: {error}"
        return RewardError(cause + place(completions, columns))

    def checked(returned: Any, completions: Sequence[Any], columns: Mapping[str, Any]) -> list[float | None]:
        if mistake := _mistake(returned, len(completions)):
            whole = hasattr(returned, "__len__") and len(returned) == len(completions)
            number = _number_of_mistake(returned) if whole else None
            raise RewardError(f"reward {spec!r} {mistake}{place(completions, columns, number or 0)}")
        return [None if reward is None else float(reward) for reward in returned]

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(completions: Sequence[Any], **columns: Any) -> list[float | None]:
            try:
                returned = await function(completions=completions, **columns)
            except Exception as error:
                raise failed(error, completions, columns) from error
            return checked(returned, completions, columns)

        return asynchronous

    @functools.wraps(function)
    def synchronous(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        try:
            returned = function(completions=completions, **columns)
        except Exception as error:
            raise failed(error, completions, columns) from error
        return checked(returned, completions, columns)

    return synchronous


def _mistake(returned: Any, num_completions: int) -> str | None:
    """What is wrong with what a reward function returned, None if nothing is."""
    wanted = f"must return a list with one number or None for each of {num_completions} completions"
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
        return f"{wanted}, got a {type(returned).__name__}"
    if len(returned) != num_completions:
        return f"{wanted}, got {len(returned)}"
    number = _number_of_mistake(returned)
    return None if number is None else f"{wanted}, got {returned[number]!r}"


def _number_of_mistake(returned: Sequence[Any]) -> int | None:
    """The first entry that is neither a number nor None; NaN is as good as None, and infinity no number."""
    for number, reward in enumerate(returned):
        try:
            if reward is not None and math.isinf(reward.__float__()):
                return number
        except Exception:
            return number
    return None
