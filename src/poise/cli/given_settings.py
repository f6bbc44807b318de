"""Settings given in a file and on the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def config_file(path: Path) -> dict[str, Any]:
    """The settings in a yaml file.

    Raises:
        ValueError: If it is not a mapping from names to values.
        FileNotFoundError: If there is no such file.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not yaml: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path} must map names of settings to values, got a {type(settings).__name__}")
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


def extra_options(arguments: list[str]) -> dict[str, Any]:
    """Settings from `--a-name value`, `--a-name=value`, `--a-name` (True) and `--no-a-name` (False).

    Raises:
        ValueError: If a value belongs to no option, or an option comes twice.
    """
    given: dict[str, Any] = {}
    waiting: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            name, separator, value = argument[2:].partition("=")
            waiting = name = name.replace("-", "_")
            if name in given:
                raise ValueError(f"--{name.replace('_', '-')} is given twice")
            if separator:
                given[name], waiting = value, None
            elif name.startswith("no_"):
                given[name.removeprefix("no_")], waiting = False, None
            else:
                given[name] = True
        elif waiting is None:
            raise ValueError(f"{argument!r} belongs to no option")
        else:
            given[waiting], waiting = argument, None
    return given


def numbers(text: str, *, name: str, such_as: str) -> tuple[Any, ...]:
    """The numbers of a list with commas; whole ones where the example has such.

    Raises:
        ValueError: If one is none.
    """
    kind = int if such_as.replace(",", "").isdigit() else float
    try:
        return tuple(kind(each) for each in text.split(","))
    except ValueError:
        raise ValueError(f"{name} needs numbers such as {such_as}, got {text!r}") from None
