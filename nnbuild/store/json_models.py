"""Read the JSON files of a store through pydantic models."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from nnbuild.errors import StoreError, one_line
from nnbuild.store.filesystem import read_json

M = TypeVar("M", bound=BaseModel)

_RESTORE = "restore it from a copy"
_MAX_VALUE_LENGTH = 60


def _moment(text: str) -> str:
    """Return a text that is a time with a zone, within the range of UTC times."""
    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            datetime.fromisoformat(text).astimezone(UTC)
            return text
    except OverflowError:
        pass
    raise ValueError("expected a time with a time zone, in ISO 8601 format")


Moment = Annotated[str, AfterValidator(_moment)]
"""A time with a time zone, in the format of `datetime.isoformat`."""


def read_model(path: Path, kind: type[M], what: str, *, remedy: str = _RESTORE) -> M:
    """Return the content of a JSON file as a model.

    Args:
        path: Path of the file.
        kind: Model of its content.
        what: Description of the content for messages, such as `a history of champions`.
        remedy: Advice for the case that it is damaged.

    Raises:
        StoreError: The file cannot be read, or does not match the model; the message names the
            field.
    """
    value = read_json(path)
    try:
        return validated(kind, value)
    except ValidationError as error:
        raise StoreError(f"{path} is not {what}: {problem(error)}; {remedy}") from error


def validated(kind: type[M], value: Any) -> M:
    """Return a JSON value as a model, without converting between types.

    Raises:
        ValidationError: The value does not match the model.
    """
    # From text, since strict validation accepts a list as a tuple only there.
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except RecursionError:
        text = "too many levels"
    except UnicodeEncodeError:
        # Names of files that are not UTF-8, as recorded for an input, are no JSON to pydantic.
        return kind.model_validate(value, strict=True)
    return kind.model_validate_json(text, strict=True)


def lacks(*names: str) -> str:
    """Return the message about a missing field, by its path: `its row has no status`."""
    *holders, name = names
    return f"its {'.'.join(holders)} has no {name}" if holders else f"it has no {name}"


def problem(error: ValidationError, *above: str) -> str:
    """Describe the first problem of a validation, with the name of its field.

    Args:
        error: Error of pydantic.
        above: Names of the fields that lead to the model.
    """
    first = error.errors(include_url=False)[0]
    names = [one_line(name) for name in (*above, *map(str, first["loc"]))]
    if first["type"] == "missing":
        return lacks(*names)
    field = ".".join(names) or "the value"
    message = one_line(first["msg"]).removeprefix("Value error, ")
    value = one_line(repr(first["input"]))
    shown = value if len(value) <= _MAX_VALUE_LENGTH else f"{value[:_MAX_VALUE_LENGTH]}…"
    return f"{field} is {shown}: {message[:1].lower()}{message[1:]}"
