"""Load a config from a TOML file and single settings; errors name file, line and key."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nnbuild.config.schema import RunConfig
from nnbuild.errors import ConfigError, suggestion
from nnbuild.runtime.regular_files import read_regular

_MAX_BYTES = 2**20
_BY_VALIDATORS = {"value_error", "assertion_error"}
Settings = dict[str, Any]


def read_toml(path: Path) -> Settings:
    """Read the settings of a TOML file.

    Raises:
        ConfigError: The file cannot be read, is not a regular file, or is not valid TOML.
    """
    text = _read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for integers of thousands of digits
        raise ConfigError(
            f"config {path} is not valid TOML: {error}; see docs/reference/settings.md"
        ) from error


def _read_text(path: Path) -> str:
    try:
        content = read_regular(path, _MAX_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot read config {path}: {error.strerror}; give the path of a TOML file"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"cannot read config {path}: it {error}; give the path of a small TOML file"
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"config {path} is not valid TOML: {error}; see docs/reference/settings.md"
        ) from error


def merge(base: Settings, over: Mapping[str, Any]) -> Settings:
    """Merge settings section by section; those in `over` take precedence."""
    result = dict(base)
    for key, value in over.items():
        section = result.get(key)
        result[key] = (
            merge(section, value)
            if isinstance(section, dict) and isinstance(value, Mapping)
            else value
        )
    return result


def parse_setting(text: str) -> Settings:
    """Parse one setting, such as `training.learning_rate=0.01`, into nested settings.

    The value is read as TOML, or as plain text if it is not valid TOML.

    Raises:
        ConfigError: There is no `=`, no key before it, or more than one value.
    """
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", key.strip()):
        raise ConfigError(
            f"setting {text!r} does not have the form key=value; write it like "
            "training.learning_rate=0.01"
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
            f"setting {text!r} has several lines, expected one value; give each setting separately"
        )
    parsed: Any = read["value"]
    for name in reversed(key.strip().split(".")):
        parsed = {name: parsed}
    return dict(parsed)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to one level with dotted keys, such as `training.epochs`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": value}
        )
    return flat


def parse_config(settings: Mapping[str, Any], path: Path | None = None) -> RunConfig:
    """Validate nested settings as a config.

    Args:
        settings: Settings by section.
        path: Config file of some of the settings, for the message.

    Raises:
        ConfigError: A key is unknown, or its value is invalid; the message names it.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise _as_config_error(error.errors(include_url=False), path) from error


def require_valid_file(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse a file with an unknown key or a value of another type, also where options overlay it.

    What depends on several settings is not checked: options can complete it.

    Args:
        settings: Settings of the file.
        path: The file, for the message.

    Raises:
        ConfigError: The message names file, line and key.
    """
    try:
        RunConfig.model_validate(settings)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if own := [each for each in errors if each["type"] not in _BY_VALIDATORS]:
            raise _as_config_error(own, path) from error


def _as_config_error(errors: Sequence[Any], path: Path | None) -> ConfigError:
    """Return one error for those of pydantic, with the first of them."""
    first = errors[0]
    keys = [str(key) for key in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _fields_at(keys[:-1])
        message = f"unknown key {'.'.join(keys)!r}; {_remedy(keys, known)}"
    else:
        message = f"{'.'.join(keys)} is {_shown(first['input'])}, {as_clause(first['msg'])}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ConfigError(f"{_place(path, keys)}{message}{more}")


def _remedy(keys: Sequence[str], known: Iterable[str]) -> str:
    if keys == ["sweep"]:
        return "a file with a sweep is for `nnbuild sweep`"
    return suggestion(keys[-1], known)


def as_clause(text: str) -> str:
    """Return a message of pydantic as the second half of a sentence about a value."""
    text = text.removeprefix("Input ").removeprefix("Value error, ")
    return f"it {text}" if text.startswith("should") else text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer with more digits than Python converts
        return "a number with thousands of digits"


def _fields_at(keys: Sequence[str]) -> list[str]:
    """Return the fields of the section that the keys lead to."""
    section: type[BaseModel] = RunConfig
    for key in keys:
        kinds = [section.model_fields[key].annotation] if key in section.model_fields else []
        kinds += [each for kind in kinds for each in getattr(kind, "__args__", ())]
        sections = [
            each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)
        ]
        section = sections[0] if sections else section
    return list(section.model_fields)


def _place(path: Path | None, keys: Sequence[str]) -> str:
    """Return `FILE, line N: ` for the line of a key; empty without a file."""
    if path is None:
        return ""
    section = ""
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
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
    """Return whether a line assigns an inline table or a list."""
    return re.search(r"=\s*[\[{]", line) is not None
