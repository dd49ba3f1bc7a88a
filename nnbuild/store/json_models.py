"""JSON files of a store, read through the pydantic model of what was written."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from nnbuild.errors import StoreError, one_line
from nnbuild.store.filesystem import read_json

M = TypeVar("M", bound=BaseModel)

_RESTORE = "restore it from a copy"
_LONGEST = 60


def _moment(text: str) -> str:
    """Refuse a text that is not a time with a zone which UTC has a time for."""
    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            datetime.fromisoformat(text).astimezone(UTC)
            return text
    except OverflowError:
        pass
    raise ValueError("expected a time with its zone, in the form of ISO 8601")


Moment = Annotated[str, AfterValidator(_moment)]
"""A time with its zone, as the text that `datetime.isoformat` makes."""


def read_model(path: Path, kind: type[M], what: str, *, remedy: str = _RESTORE) -> M:
    """Return the content of a JSON file as a model.

    Args:
        path: The file.
        kind: Model of what it holds.
        what: What to call it in an error, such as `a history of champions`.
        remedy: What a person can do if it is damaged.

    Raises:
        StoreError: The file cannot be read, or does not hold such a thing; the message names the
            field.
    """
    value = read_json(path)
    try:
        return validated(kind, value)
    except ValidationError as error:
        raise StoreError(f"{path} is not {what}: {problem(error)}; {remedy}") from error


def read_text(path: Path, *keys: str) -> str:
    """Return one text in a JSON file.

    Args:
        path: The file.
        keys: Names of the fields that lead to it.

    Raises:
        StoreError: The file cannot be read, or has no such text.
    """
    value = read_json(path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise StoreError(f"{path} has no text {'.'.join(keys)}; {_RESTORE}")
    return value


def validated(kind: type[M], value: Any) -> M:
    """Return a JSON value as a model; numbers must be numbers, and text must be text.

    Raises:
        ValidationError: It is something else.
    """
    # Through text, since JSON has neither tuples nor times, and strict validation knows that of text alone.
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "too many levels"
    return kind.model_validate_json(text, strict=True)


def lacks(*names: str) -> str:
    """Say that a field is missing, by the names that lead to it: `its row has no status`."""
    *holders, name = names
    return f"its {'.'.join(holders)} has no {name}" if holders else f"it has no {name}"


def problem(error: ValidationError, *above: str) -> str:
    """Return the first thing that is wrong, with the name of its field.

    Args:
        error: What pydantic says.
        above: Names of the fields that lead to the model.
    """
    first = error.errors(include_url=False)[0]
    names = [one_line(name) for name in (*above, *map(str, first["loc"]))]
    if first["type"] == "missing":
        return lacks(*names)
    field = ".".join(names) or "the whole"
    message = one_line(first["msg"]).removeprefix("Value error, ")
    value = one_line(repr(first["input"]))
    shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
    return f"{field} is {shown}: {message[:1].lower()}{message[1:]}"
