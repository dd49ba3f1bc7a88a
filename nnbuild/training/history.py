"""Keras History ⇄ table, without loss: one row for each epoch and metric."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from nnbuild.errors import DataError
from nnbuild.store import schemas

SECONDS = "epoch_seconds"
Row = dict[str, Any]
_ELEMENT = re.compile(r"(?P<name>.+)\[(?P<index>\d+(?:,\d+)*)\]", re.DOTALL | re.ASCII)


def rows(epoch: int, metrics: Mapping[str, Any], seconds: float | None, at: datetime) -> list[Row]:
    """Return the rows of one epoch.

    Args:
        epoch: Number of the epoch, from 1.
        metrics: Values at the end of the epoch, by Keras's keys. An array of several values, such
            as an F1 score by class, has a row for each: `f1_score[0]`, `f1_score[1]`.
        seconds: How long the epoch took, if that is known.
        at: Aware time of its end.

    Raises:
        DataError: A value is not a number.
    """
    timed = metrics if seconds is None else {**metrics, SECONDS: seconds}
    return [
        {"epoch": epoch, "metric": key, "value": number, "logged_at": at}
        for name, value in timed.items()
        for key, number in _numbers(name, value)
    ]


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, (float, int)):
        yield name, float(value)
        return
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"metric {name!r} is {value!r}, expected a number or an array of numbers")
    if array.size == 1:
        yield name, float(array.item())
        return
    for index, number in np.ndenumerate(array):
        yield f"{name}[{','.join(map(str, index))}]", float(number)


def table(rows: Sequence[Row]) -> Any:
    """Rows as an Arrow table with the `history` schema."""
    return schemas.table_of(schemas.HISTORY, rows)


def table_of_history(
    history: Any, at: datetime, *, validation_freq: int | Collection[int] = 1
) -> Any:
    """Return the table of a Keras History, also of a plain `model.fit`.

    Args:
        history: What `fit` returned.
        at: Aware time to be written into `logged_at`.
        validation_freq: What `fit` was given: the `val_` metrics have a value at every so many
            epochs, or at the epochs listed.

    Raises:
        DataError: A key has values at some epochs only, and History does not say which; or a
            value is not a number.
    """
    found: list[Row] = []
    for name, values in history.history.items():
        for epoch, value in zip(
            _epochs_of(name, len(values), history.epoch, validation_freq), values, strict=True
        ):
            found += rows(epoch, {name: value}, None, at)
    return table(sorted(found, key=lambda row: int(row["epoch"])))


def _epochs_of(
    name: str, count: int, epochs: Sequence[int], validation_freq: int | Collection[int]
) -> list[int]:
    """Return the epochs, from 1, that a key has its values at."""
    every = [epoch + 1 for epoch in epochs]
    if count == len(every):
        return every
    if name.startswith("val_"):
        if isinstance(validation_freq, Collection):
            validated = [epoch for epoch in every if epoch in validation_freq]
        else:
            validated = [epoch for epoch in every if epoch % max(validation_freq, 1) == 0]
        if count == len(validated):
            return validated
    raise DataError(
        f"History has {count} values of {name!r} in {len(every)} epochs, and does not say at which; "
        "pass the validation_freq that fit was given, or remove the key"
    )


def history_of_table(table: Any) -> dict[str, list[Any]]:
    """Return `History.history` again: the metrics' values in the order of the epochs.

    The seconds, which the clock measured and not Keras, are left out.
    """
    ordered = table.sort_by("epoch")
    history: dict[str, list[float]] = {}
    for name, value in zip(
        ordered["metric"].to_pylist(), ordered["value"].to_pylist(), strict=True
    ):
        if name != SECONDS:
            history.setdefault(name, []).append(value)
    return _with_arrays(history)


def _with_arrays(history: Mapping[str, list[float]]) -> dict[str, list[Any]]:
    """Put values together that `rows` took apart."""
    elements: dict[str, dict[tuple[int, ...], list[float]]] = {}
    for name, values in history.items():
        if (found := _ELEMENT.fullmatch(name)) is not None:
            index = tuple(map(int, found["index"].split(",")))
            elements.setdefault(found["name"], {})[index] = values
    arrays = {
        name: array for name, each in elements.items() if (array := _arrays(each)) is not None
    }
    joined: dict[str, list[Any]] = {}
    for name, values in history.items():
        found = _ELEMENT.fullmatch(name)
        if found is not None and found["name"] in arrays and found["name"] not in history:
            joined[found["name"]] = arrays[found["name"]]
        else:
            joined[name] = values
    return joined


def _arrays(elements: Mapping[tuple[int, ...], list[float]]) -> list[Any] | None:
    """Return an array for each epoch; None if the elements do not make one."""
    lengths = {len(index) for index in elements}
    epochs = {len(values) for values in elements.values()}
    shape = tuple(max(places) + 1 for places in zip(*elements, strict=False))
    if len(lengths) != 1 or len(epochs) != 1 or not 1 < len(elements) == math.prod(shape):
        return None
    stacked = np.array([elements[index] for index in np.ndindex(shape)])
    return list(stacked.T.reshape(-1, *shape))


def wide(table: Any) -> Any:
    """Return a pandas DataFrame with a row for each run and epoch and a column for each metric."""
    frame = table.to_pandas()
    index = [name for name in ("run_id", "epoch") if name in frame.columns]
    order = list(dict.fromkeys(frame["metric"]))
    # Not `pivot_table`, which drops a metric that is NaN throughout, as a diverged loss can be.
    values = frame.groupby([*index, "metric"])["value"].mean().unstack("metric")
    return values[order].reset_index()


def as_json(rows: Sequence[Row]) -> list[Row]:
    """Rows with their times as text."""
    return [{**row, "logged_at": row["logged_at"].isoformat()} for row in rows]


def from_json(rows: Sequence[Row]) -> list[Row]:
    """What `as_json` was given."""
    return [
        {**row, "logged_at": datetime.fromisoformat(row["logged_at"]).astimezone(UTC)}
        for row in rows
    ]
