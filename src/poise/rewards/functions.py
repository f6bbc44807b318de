"""Which function of the user's gives the rewards?

The rule: it has the signature of TRL's reward functions, `(completions, **columns) -> list[float | None]`, and is tried
on gold answers before the first step, so that a mistake in it costs no training.
"""

import asyncio
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RewardFunction = Callable[..., Any]


def reward_function(spec: str) -> RewardFunction:
    """The function that "package.module:function" names; modules of the working directory are found too.

    Raises:
        ValueError: If it has another form, cannot be imported, or is no function.
    """
    module_name, separator, name = spec.partition(":")
    if not (separator and module_name and name.isidentifier()):
        raise ValueError(f"a reward needs the form package.module:function, got {spec!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"reward {spec!r} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if inspect.isfunction(value) and not each.startswith("_")]
        raise ValueError(f"module {module_name} has no function {name!r}: it has {', '.join(known) or 'none'}")
    return function


def rewards_of(
    function: RewardFunction,
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
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
    columns: Mapping[str, Sequence[Any]],
) -> None:
    """Try a reward function on completions that are gold answers.

    Raises:
        ValueError: If it raises, or returns anything but a list with one number or None a completion.
    """
    try:
        returned = rewards_of(function, prompts=prompts, completions=completions, columns=columns)
    except Exception as error:
        raise ValueError(f"reward {spec!r} raised {type(error).__name__} on gold answers: {error}") from error
    wanted = f"reward {spec!r} must return a list with one number or None for each of {len(completions)} completions"
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
        raise ValueError(f"{wanted}, got a {type(returned).__name__}")
    if len(returned) != len(completions):
        raise ValueError(f"{wanted}, got {len(returned)}")
    for reward in returned:
        if reward is not None and not hasattr(reward, "__float__"):
            raise ValueError(f"{wanted}, got {reward!r}")
