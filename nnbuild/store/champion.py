"""The champion: a pointer to a run that changes atomically and keeps its history.

`champion.json` contains every change, the newest last; the champion is the run of the newest one.
A change requires that the champion is still the one that the decision was based on (compare and
set).
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from nnbuild.errors import StoreError
from nnbuild.runtime import fault_injection
from nnbuild.store.filesystem import make_durable_dir, os_errors_as_store_errors, write_json
from nnbuild.store.ids import is_run_id
from nnbuild.store.json_models import read_model
from nnbuild.store.store import Store

FILE = "champion.json"


class Change(BaseModel):
    """One change of the pointer.

    Attributes:
        run_id: The new champion; None for no champion.
        previous: The champion before the change; None if there was none.
        at: Time of the change, UTC.
        by: Origin of the change: the gate, a person's `promote`, or a `rollback`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: str | None
    previous: str | None
    at: datetime
    by: Literal["gate", "promote", "rollback"]


class _Changes(BaseModel):
    """Content of `champion.json`."""

    changes: list[Change]

    @model_validator(mode="after")
    def _require_consistent_history(self) -> Self:
        champions = 0
        for each in self.changes:
            if each.run_id is not None and not is_run_id(each.run_id):
                raise ValueError(f"{each.run_id!r} is not a valid run ID")
            champions += -1 if each.by == "rollback" else 1
            if champions < 0:
                raise ValueError("a rollback has no champion to roll back")
        return self


class ChampionChangedError(StoreError):
    """The champion is no longer the one that a decision was based on."""


def history(store: Store) -> list[Change]:
    """Return every change of the champion, the oldest first.

    Raises:
        StoreError: `champion.json` is damaged.
    """
    path = store.root / FILE
    with os_errors_as_store_errors(f"look for {path}"):
        if not path.exists():
            return []
    return read_model(path, _Changes, "a history of champions").changes


def current(store: Store) -> str | None:
    """Return the run ID of the champion; None if there is no champion."""
    changes = history(store)
    return changes[-1].run_id if changes else None


def require(store: Store) -> str:
    """Return the run ID of the champion.

    Raises:
        StoreError: There is no champion.
    """
    run_id = current(store)
    if run_id is None:
        raise StoreError(
            f"{store.root} has no champion yet; train one by `nnbuild run`, or choose one by "
            "`nnbuild promote RUN_ID`"
        )
    return run_id


def change(
    store: Store,
    run_id: str | None,
    *,
    expected: str | None,
    by: Literal["gate", "promote", "rollback"],
    now: datetime | None = None,
) -> Change:
    """Make a run the champion.

    Args:
        store: Store of the run.
        run_id: ID of a committed run that succeeded; None for no champion.
        expected: The champion that the decision was based on.
        by: Origin of the change.
        now: Time of the change, with a time zone; the current time if not given.

    Raises:
        ChampionChangedError: The champion is not the expected one.
        StoreError: The run is not committed, or failed.
    """
    with lock(store):
        return change_locked(store, run_id, expected=expected, by=by, now=now)


def change_locked(
    store: Store,
    run_id: str | None,
    *,
    expected: str | None,
    by: Literal["gate", "promote", "rollback"],
    now: datetime | None = None,
) -> Change:
    """Make a run the champion as `change` does, for a caller that holds `lock`."""
    if run_id is not None and store.manifest(run_id).row.status != "succeeded":
        raise StoreError(f"run {run_id} failed, expected one that succeeded; see `nnbuild runs`")
    changes = history(store)
    previous = changes[-1].run_id if changes else None
    if previous != expected:
        raise ChampionChangedError(
            f"the champion is {previous} by now, expected {expected}; decide again"
        )
    new = Change(run_id=run_id, previous=previous, at=now or datetime.now(UTC), by=by)
    write_json(
        store.root / FILE, {"changes": [each.model_dump(mode="json") for each in [*changes, new]]}
    )
    fault_injection.failpoint("champion:changed")
    return new


def rollback(store: Store, *, now: datetime | None = None) -> Change:
    """Restore the previous champion; a second rollback restores the one before that.

    Args:
        store: Store of the champion.
        now: Time of the change, with a time zone; the current time if not given.

    Returns:
        The recorded change.

    Raises:
        StoreError: There is no champion to roll back.
    """
    champions: list[str | None] = []
    for each in history(store):
        if each.by == "rollback":
            champions.pop()
        else:
            champions.append(each.run_id)
    if not champions:
        raise StoreError(
            f"{store.root} has no champion to roll back; choose one by `nnbuild promote RUN_ID`"
        )
    previous = champions[-2] if len(champions) > 1 else None
    return change(store, previous, expected=champions[-1], by="rollback", now=now)


@contextmanager
def lock(store: Store) -> Iterator[None]:
    """Let only one process of this machine at a time change the champion.

    Raises:
        StoreError: There is no store.
    """
    store.require()
    if store.is_remote:
        make_durable_dir(store.local_root)
    path = store.local_root / ".champion.lock"
    with os_errors_as_store_errors(f"lock {path}"):
        file = path.open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
