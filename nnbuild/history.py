"""Keras History ⇄ table, without loss: one row for each epoch and metric."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from nnbuild import schemas

SECONDS = "epoch_seconds"
Row = dict[str, Any]


def rows(epoch: int, metrics: dict[str, float], seconds: float | None, at: datetime) -> list[Row]:
    """The rows of one epoch.

    Args:
        epoch: from 1.
        metrics: Keras's keys, and their values at the end of the epoch.
        seconds: how long it took, if that is known.
        at: aware time of its end.
    """
    timed = metrics if seconds is None else {**metrics, SECONDS: seconds}
    return [
        {"epoch": epoch, "metric": name, "value": float(value), "logged_at": at}
        for name, value in timed.items()
    ]


def table(rows: Sequence[Row]) -> Any:
    """Rows as an Arrow table with the `history` schema."""
    return schemas.table_of(schemas.HISTORY, rows)


def table_of_history(history: Any, at: datetime, *, validation_freq: int = 1) -> Any:
    """The table of any Keras History, also of a plain `model.fit`.

    Args:
        history: what `fit` returned.
        at: aware time to be written into `logged_at`.
        validation_freq: what `fit` was given: the `val_` metrics have a value at every so many epochs.
    """
    found: list[Row] = []
    for name, values in history.history.items():
        epochs = [epoch + 1 for epoch in history.epoch]
        if len(values) != len(epochs):
            epochs = [epoch for epoch in epochs if epoch % validation_freq == 0]
        for epoch, value in zip(epochs, values, strict=True):
            found += rows(epoch, {name: value}, None, at)
    return table(sorted(found, key=lambda row: int(row["epoch"])))


def history_of_table(table: Any) -> dict[str, list[float]]:
    """`History.history` again: the metrics' values in the order of the epochs.

    The seconds, which the clock measured and not Keras, are left out.
    """
    ordered = table.sort_by("epoch")
    history: dict[str, list[float]] = {}
    for name, value in zip(
        ordered["metric"].to_pylist(), ordered["value"].to_pylist(), strict=True
    ):
        if name != SECONDS:
            history.setdefault(name, []).append(value)
    return history


def wide(table: Any) -> Any:
    """A pandas DataFrame with a row for each run and epoch and a column for each metric."""
    frame = table.to_pandas()
    index = [name for name in ("run_id", "epoch") if name in frame.columns]
    order = list(dict.fromkeys(frame["metric"]))
    return frame.pivot_table(index=index, columns="metric", values="value")[order].reset_index()


def as_json(rows: Sequence[Row]) -> list[Row]:
    """Rows with their times as text."""
    return [{**row, "logged_at": row["logged_at"].isoformat()} for row in rows]


def from_json(rows: Sequence[Row]) -> list[Row]:
    """What `as_json` was given."""
    return [
        {**row, "logged_at": datetime.fromisoformat(row["logged_at"]).astimezone(UTC)}
        for row in rows
    ]
