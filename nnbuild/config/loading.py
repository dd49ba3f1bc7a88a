"""From a TOML file and from single settings to a checked config, with errors that name file, line and key."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nnbuild.config.schema import RunConfig
from nnbuild.errors import ConfigError, suggestion
from nnbuild.runtime.regular_files import read_regular

_MOST_BYTES = 2**20
Settings = dict[str, Any]


def read_toml(path: Path) -> Settings:
    """Read the settings of a TOML file.

    Raises:
        ConfigError: The file cannot be read, is not a regular file, or is not valid TOML.
    """
    try:
        content = read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot read config {path}: {error.strerror}; give the path of a TOML file"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"cannot read config {path}: it {error}; give the path of a small TOML file"
        ) from error
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also for integers of thousands of digits
        raise ConfigError(
            f"config {path} is not valid TOML: {error}; see docs/reference/settings.md"
        ) from error


def merge(base: Settings, over: Mapping[str, Any]) -> Settings:
    """Settings with others laid over them, section by section."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = (
            merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
        )
    return result


def parse_setting(text: str) -> Settings:
    """One setting as it is given on the command line: `training.learning_rate=0.01`.

    The value is read as TOML, and as plain text where it is none.

    Raises:
        ConfigError: there is no `=`, or no key before it.
    """
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", key.strip()):
        raise ConfigError(
            f"setting {text!r} is not of the form key=value; write it like training.learning_rate=0.01"
        )
    try:
        read: Settings = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        read = {"value": value.strip()}
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"setting {key.strip()} has a value that cannot be read: {error}"
        ) from error
    if len(read) > 1:
        raise ConfigError(
            f"setting {text!r} has more than one line, expected one value; give each by itself"
        )
    parsed: Any = read["value"]
    for name in reversed(key.strip().split(".")):
        parsed = {name: parsed}
    return dict(parsed)


def flatten(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings as one level: `training.epochs`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            flatten(value, f"{above}{name}.")
            if isinstance(value, Mapping)
            else {f"{above}{name}": value}
        )
    return flat


def parse_config(settings: Mapping[str, Any], path: Path | None = None) -> RunConfig:
    """Settings as a config.

    Args:
        settings: nested, section by section.
        path: the config file that some of them came from, for the message.

    Raises:
        ConfigError: a key is unknown, ill-typed or out of bounds; the message names it.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = [str(key) for key in first["loc"]]
        place = _place(path, keys)
        if first["type"] == "extra_forbidden":
            known = _fields_at(keys[:-1])
            told = f"unknown key {'.'.join(keys)!r}; {suggestion(keys[-1], known)}"
        else:
            told = f"{'.'.join(keys)} is {_shown(first['input'])}, {_lower(first['msg'])}"
        more = error.error_count() - 1
        raise ConfigError(f"{place}{told}" + (f" (and {more} more)" if more else "")) from error


def _lower(text: str) -> str:
    text = text.removeprefix("Input ").removeprefix("Value error, ")
    return f"it {text}" if text.startswith("should") else text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer that has more digits than Python writes
        return "a number of thousands of digits"


def _fields_at(keys: Sequence[str]) -> list[str]:
    """The fields of the section that the keys lead to."""
    section: type[BaseModel] = RunConfig
    for key in keys:
        kinds = [section.model_fields[key].annotation] if key in section.model_fields else []
        kinds += [each for kind in kinds for each in getattr(kind, "__args__", ())]
        found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        section = found[0] if found else section
    return list(section.model_fields)


def _place(path: Path | None, keys: Sequence[str]) -> str:
    """`FILE, line N: ` where the file has the key."""
    if path is None:
        return ""
    section = ""
    text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            section = header[1].strip()
            name = section
        elif assignment := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            name = ".".join(filter(None, (section, assignment[1].strip("\"'"))))
        else:
            continue
        if name == ".".join(keys) or (_is_inline(line) and ".".join(keys).startswith(f"{name}.")):
            return f"{path}, line {number}: "
    return f"{path}: "


def _is_inline(line: str) -> bool:
    """Whether a line assigns an inline table or a list."""
    return re.search(r"=\s*[\[{]", line) is not None
