"""The champion: a pointer to a run, which changes in one step and remembers where it pointed before.

`champion.json` holds every change, the newest last; the champion is what that one names. A change is made only
if the champion is still the one that the change was decided against (compare and set).
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
        run_id: the champion from then on; None if there was none any more.
        previous: the champion before.
        at: when, UTC.
        by: what made it: the gate, a person's `promote`, or a `rollback`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: str | None
    previous: str | None
    at: datetime
    by: Literal["gate", "promote", "rollback"]


class _Changes(BaseModel):
    """What `champion.json` holds."""

    changes: list[Change]

    @model_validator(mode="after")
    def _lead_from_one_to_the_next(self) -> Self:
        standing: list[str | None] = []
        for each in self.changes:
            if each.run_id is not None and not is_run_id(each.run_id):
                raise ValueError(f"{each.run_id!r} is not a valid run ID")
            if each.by != "rollback":
                standing.append(each.run_id)
            elif standing:
                standing.pop()
            else:
                raise ValueError("a rollback has no champion to go back from")
        return self


class ChampionChangedError(StoreError):
    """The champion is no longer the one that a change was decided against."""


def history(store: Store) -> list[Change]:
    """Every change of the pointer, the oldest first.

    Raises:
        StoreError: `champion.json` is damaged.
    """
    path = store.root / FILE
    with os_errors_as_store_errors(f"look for {path}"):
        if not path.exists():
            return []
    return read_model(path, _Changes, "a history of champions").changes


def current(store: Store) -> str | None:
    """The champion's run id; None if there is none."""
    changes = history(store)
    return changes[-1].run_id if changes else None


def require(store: Store) -> str:
    """The champion's run id.

    Raises:
        StoreError: there is none.
    """
    found = current(store)
    if found is None:
        raise StoreError(
            f"{store.root} has no champion yet; nnbuild run or nnbuild promote RUN_ID makes one"
        )
    return found


def change(
    store: Store,
    run_id: str | None,
    *,
    expected: str | None,
    by: Literal["gate", "promote", "rollback"],
    now: datetime | None = None,
) -> Change:
    """Point to another run.

    Args:
        store: where.
        run_id: a committed run that succeeded; None to have no champion.
        expected: the champion that the change was decided against.
        by: what makes the change.
        now: aware time; the clock's if not given.

    Raises:
        ChampionChangedError: the champion is another by now.
        StoreError: the run is not committed, or failed.
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
    """As `change`, for a caller that holds `lock`.

    Raises:
        ChampionChangedError: as `change`.
        StoreError: as `change`.
    """
    if run_id is not None and store.manifest(run_id).row.status != "succeeded":
        raise StoreError(f"run {run_id} failed, expected one that succeeded; see `nnbuild runs`")
    changes = history(store)
    found = changes[-1].run_id if changes else None
    if found != expected:
        raise ChampionChangedError(
            f"the champion is {found} by now, expected {expected}; decide again"
        )
    made = Change(run_id=run_id, previous=found, at=now or datetime.now(UTC), by=by)
    write_json(
        store.root / FILE, {"changes": [each.model_dump(mode="json") for each in [*changes, made]]}
    )
    fault_injection.failpoint("champion:changed")
    return made


def rollback(store: Store, *, now: datetime | None = None) -> Change:
    """Point to the champion before this one; a second rollback goes one further back.

    Args:
        store: where.
        now: aware time of the change; the clock's if not given.

    Returns:
        The change, as it is kept.

    Raises:
        StoreError: there is none before it.
    """
    changes = history(store)
    standing: list[str | None] = []
    for each in changes:
        if each.by == "rollback":
            standing.pop()
        else:
            standing.append(each.run_id)
    if not standing:
        raise StoreError(
            f"{store.root} has no champion to go back from; nnbuild promote RUN_ID makes one"
        )
    before = standing[-2] if len(standing) > 1 else None
    return change(store, before, expected=standing[-1], by="rollback", now=now)


@contextmanager
def lock(store: Store) -> Iterator[None]:
    """Let one process of this machine at a time change the pointer.

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
