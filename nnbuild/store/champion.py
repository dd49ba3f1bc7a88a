"""The champion of each dataset: a pointer to a run that changes atomically and keeps its history.

`champion.json` contains every change, by dataset and in order; the champion of a dataset is the run
of the newest one. It is the source of truth. The table `champions` holds the same changes for
queries, one file each; it is written next, and a change that a killed process left out of it is
added by the next change, the next run, or `nnbuild doctor --repair`.

A change requires that the champion is still the one that the decision was based on (compare and
set). A person's change pins the champion: the gate leaves it alone until it is unpinned.
"""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from nnbuild.errors import StoreError, suggestion
from nnbuild.runtime import fault_injection
from nnbuild.store import schemas
from nnbuild.store.filesystem import make_durable_dir, os_errors_as_store_errors, write_json
from nnbuild.store.ids import is_run_id, require_id, require_name
from nnbuild.store.json_models import problem, read_model
from nnbuild.store.store import Store
from nnbuild.store.tables import publish_table

FILE = "champion.json"
NAME = "champion"
"""The word that stands for a run: the champion of the only dataset, or `champion:DATASET`."""
_PREFIX = f"{NAME}:"

Origin = Literal["gate", "promote", "rollback", "unpin"]


def _run_id(text: str) -> str:
    if not is_run_id(text):
        raise ValueError("expected a run ID")
    return text


def _dataset_name(text: str) -> str:
    try:
        return require_name(text)
    except StoreError as error:
        raise ValueError(str(error)) from error


RunId = Annotated[str, AfterValidator(_run_id)]


class Author(NamedTuple):
    """A person who changes the champion.

    Attributes:
        who: User and host, such as `ada@build-7`.
        note: Reason in the person's words; None if not given.
    """

    who: str
    note: str | None = None


class Change(BaseModel):
    """One change of the champion of a dataset, or of its pin.

    Attributes:
        run_id: The new champion.
        previous: The champion before the change; None if there was none.
        changed_at: Time of the change, UTC; later than that of the change before it.
        changed_by: Origin of the change: the gate, or a person's `promote`, `rollback` or `unpin`.
        who: The person as user and host; None for the gate.
        note: Reason; None if not given.
        pinned: Whether the gate has to leave this champion alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_id: RunId
    previous: RunId | None
    changed_at: datetime
    changed_by: Origin
    who: str | None = None
    note: str | None = None
    pinned: bool = False


class _Champions(BaseModel):
    """Content of `champion.json`."""

    model_config = ConfigDict(extra="forbid")
    datasets: dict[Annotated[str, AfterValidator(_dataset_name)], list[Change]]

    @model_validator(mode="after")
    def _require_consistent_history(self) -> Self:
        for dataset, changes in self.datasets.items():
            previous, at = None, datetime.min.replace(tzinfo=UTC)
            past: set[str] = set()
            for each in changes:
                if each.previous != previous:
                    raise ValueError(
                        f"a change of {dataset} follows {each.previous}, expected {previous}"
                    )
                if each.changed_at.tzinfo is None or each.changed_at <= at:
                    raise ValueError(f"the changes of {dataset} are not in the order of time")
                if each.changed_by == "unpin" and each.run_id != previous:
                    raise ValueError(f"an unpin of {dataset} changes the champion")
                if each.changed_by == "rollback" and each.run_id not in past:
                    raise ValueError(f"a rollback of {dataset} leads to a run that was no champion")
                previous, at = each.run_id, each.changed_at
                past.add(each.run_id)
        return self


class ChampionChangedError(StoreError):
    """The champion is no longer the one that a decision was based on."""


class PinnedError(StoreError):
    """A person has pinned the champion, so the gate may not replace it."""


# Reading


def histories(store: Store) -> dict[str, list[Change]]:
    """Return every change by dataset, the oldest first; datasets in alphabetical order.

    Raises:
        StoreError: `champion.json` is damaged.
    """
    path = store.root / FILE
    with os_errors_as_store_errors(f"look for {path}"):
        if not path.exists():
            return {}
    remedy = "rebuild it by `nnbuild doctor --repair`"
    found = read_model(path, _Champions, "a history of champions", remedy=remedy).datasets
    return {dataset: found[dataset] for dataset in sorted(found) if found[dataset]}


def history(store: Store, dataset: str | None = None) -> list[Change]:
    """Return every change of the champion of a dataset, the oldest first.

    Args:
        store: Store with the champions.
        dataset: Name of the dataset, as in `runs.dataset`; the only one with a champion if None.

    Raises:
        StoreError: `champion.json` is damaged, or no dataset is given and several have a champion.
    """
    known = histories(store)
    if dataset is not None:
        return known.get(dataset, [])
    return known[_only(known)] if known else []


def _only(known: Mapping[str, object]) -> str:
    if len(known) > 1:
        names = ", ".join(f"{_PREFIX}{each}" for each in known)
        raise StoreError(f"{len(known)} datasets have a champion; choose one of {names}")
    return next(iter(known))


def current(store: Store, dataset: str | None = None) -> str | None:
    """Return the run ID of the champion of a dataset, or None; arguments as in `history`."""
    changes = history(store, dataset)
    return changes[-1].run_id if changes else None


def currents(store: Store) -> dict[str, Change]:
    """Return the newest change of each dataset that has a champion, by dataset."""
    return {dataset: changes[-1] for dataset, changes in histories(store).items()}


def pin(store: Store, dataset: str) -> Change | None:
    """Return the change by which a person pinned the champion; None if it is not pinned."""
    changes = history(store, dataset)
    return changes[-1] if changes and changes[-1].pinned else None


def chain(store: Store, dataset: str) -> list[str]:
    """Return the past champions of a dataset that were not rolled back, the newest first.

    The current champion is not among them. `rollback` chooses one of them.
    """
    return _chain(history(store, dataset))


def _chain(changes: Sequence[Change]) -> list[str]:
    champions: list[str] = []
    for each in changes:
        if each.changed_by == "rollback":
            while champions and champions[-1] != each.run_id:
                champions.pop()
        if each.changed_by != "unpin" and each.run_id not in champions[-1:]:
            champions.append(each.run_id)
    past = dict.fromkeys(reversed(champions[:-1]))
    return [each for each in past if each != champions[-1]]


def require(store: Store, dataset: str | None = None) -> str:
    """Return the run ID of the champion of a dataset; arguments as in `history`.

    Raises:
        StoreError: There is no champion, or no dataset is given and several have a champion.
    """
    return _required(store, dataset)[1][-1].run_id


def _required(store: Store, dataset: str | None) -> tuple[str, list[Change]]:
    """Return a dataset that has a champion, and its changes."""
    known = histories(store)
    if not known:
        raise StoreError(
            f"{store.root} has no champion yet; train one by `nnbuild run`, or choose one by "
            "`nnbuild promote RUN_ID`"
        )
    name = _only(known) if dataset is None else dataset
    if name not in known:
        raise StoreError(
            f"dataset {name!r} has no champion in {store.root}; {suggestion(name, known)}"
        )
    return name, known[name]


def only_current(store: Store) -> tuple[str, str]:
    """Return the only dataset that has a champion, and the run ID of the champion.

    Raises:
        StoreError: There is no champion, or several datasets have one.
    """
    dataset, changes = _required(store, None)
    return dataset, changes[-1].run_id


def is_name(text: str) -> bool:
    """Return whether a text stands for a champion: `champion` or `champion:DATASET`."""
    return text == NAME or text.startswith(_PREFIX)


def run_of(store: Store, name: str) -> str:
    """Return the run ID that a text stands for.

    Args:
        store: Store with the champions.
        name: `champion`, `champion:DATASET`, or a run ID.

    Raises:
        StoreError: There is no such champion, or the text is not a run ID.
    """
    if is_name(name):
        return require(store, name.removeprefix(_PREFIX) if name != NAME else None)
    return require_id(name)


# Changing


def change_locked(
    store: Store,
    run_id: str,
    *,
    expected: str | None,
    note: str | None = None,
    now: datetime | None = None,
) -> Change:
    """Make a run the champion of its dataset by the gate, for a caller that holds `lock`.

    Args:
        store: Store of the run.
        run_id: ID of a committed run that succeeded.
        expected: The champion that the decision was based on.
        note: Reason of the gate.
        now: Time of the change, with a time zone; the current time if not given.

    Raises:
        ChampionChangedError: The champion is not the expected one.
        PinnedError: A person has pinned the champion.
        StoreError: The run is not committed, failed, or was trained on a fallback dataset.
    """
    dataset = dataset_of(store, run_id)
    if (pinned := pin(store, dataset)) is not None:
        raise PinnedError(pin_reason(dataset, pinned))
    return _change(store, dataset, run_id, "gate", expected=expected, note=note, now=now)


def promote(store: Store, run_id: str, author: Author, *, now: datetime | None = None) -> Change:
    """Make a run the champion of its dataset, and pin it.

    Args:
        store: Store of the run.
        run_id: ID of a committed run that succeeded; of the champion itself to pin it.
        author: Person who promotes it.
        now: Time of the change, with a time zone; the current time if not given.

    Raises:
        StoreError: The run is not committed, failed, was trained on a fallback dataset, or is
            already the pinned champion.
    """
    with lock(store):
        dataset = dataset_of(store, run_id)
        present = current(store, dataset)
        if run_id == present and pin(store, dataset) is not None:
            raise StoreError(
                f"run {run_id} is already the pinned champion of {dataset}; see `nnbuild champion`"
            )
        return _change(
            store, dataset, run_id, "promote", expected=present, author=author, pinned=True, now=now
        )


def replace(
    store: Store, run_id: str, author: Author, *, expected: str, now: datetime | None = None
) -> Change:
    """Make a run the champion by a test, without a pin, unless a person has pinned the present one.

    Args:
        store: Store of the run.
        run_id: ID of a committed run that succeeded.
        author: Person on whose behalf it is done, with the result of the test.
        expected: The champion that the run was compared with.
        now: Time of the change, with a time zone; the current time if not given.

    Raises:
        ChampionChangedError: The champion is not the expected one.
        PinnedError: A person has pinned the champion.
        StoreError: The run is not committed, failed, or was trained on a fallback dataset.
    """
    with lock(store):
        dataset = dataset_of(store, run_id)
        if (pinned := pin(store, dataset)) is not None:
            raise PinnedError(pin_reason(dataset, pinned))
        return _change(store, dataset, run_id, "promote", expected=expected, author=author, now=now)


def rollback(
    store: Store, author: Author, *, dataset: str | None = None, now: datetime | None = None
) -> Change:
    """Restore the last champion with another model, and pin it; repeated, go further back.

    Args:
        store: Store of the champion.
        author: Person who rolls back.
        dataset: Name of the dataset; the only one with a champion if not given.
        now: Time of the change, with a time zone; the current time if not given.

    Raises:
        StoreError: There is no champion, or no earlier one with other weights.
    """
    with lock(store):
        name, changes = _required(store, dataset)
        present, past = changes[-1].run_id, _chain(changes)
        target = _last_other_model(store, present, past)
        if target is None:
            reason = "every earlier one has the same model" if past else "it is the first one"
            raise StoreError(
                f"champion {present} of {name} cannot be rolled back: {reason}; choose a run by "
                "`nnbuild promote RUN_ID`"
            )
        return _change(
            store, name, target, "rollback", expected=present, author=author, pinned=True, now=now
        )


def rollback_target(store: Store, dataset: str) -> str | None:
    """Return the run that `rollback` would make the champion of a dataset, or None."""
    changes = history(store, dataset)
    return _last_other_model(store, changes[-1].run_id, _chain(changes)) if changes else None


def _last_other_model(store: Store, present: str, past: Sequence[str]) -> str | None:
    """Return the first of the past champions whose model differs from the present one's."""
    available = {*store.run_ids()}
    model = store.manifest(present).model_digest
    others = (each for each in past if each in available)
    return next((each for each in others if store.manifest(each).model_digest != model), None)


def unpin(
    store: Store, author: Author, *, dataset: str | None = None, now: datetime | None = None
) -> Change:
    """Unpin the champion of a dataset: the gate may replace it again; arguments as in `rollback`.

    Raises:
        StoreError: There is no champion, or it is not pinned.
    """
    with lock(store):
        name, changes = _required(store, dataset)
        present = changes[-1].run_id
        if not changes[-1].pinned:
            raise StoreError(
                f"champion {present} of {name} is not pinned, so there is nothing to unpin; "
                "see `nnbuild champion`"
            )
        return _change(store, name, present, "unpin", expected=present, author=author, now=now)


def pin_reason(dataset: str, pinned: Change) -> str:
    """Describe who pinned the champion of a dataset, when and why."""
    note = f": {pinned.note}" if pinned.note else ""
    return (
        f"champion {pinned.run_id} of {dataset} has been pinned by {pinned.who or 'a person'} "
        f"since {pinned.changed_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC{note}"
    )


def dataset_of(store: Store, run_id: str) -> str:
    """Return the dataset of a run that can be a champion.

    Raises:
        StoreError: The run is not committed, failed, or was trained on a fallback dataset.
    """
    manifest = store.manifest(run_id)
    if manifest.row.status != "succeeded":
        raise StoreError(f"run {run_id} failed, expected one that succeeded; see `nnbuild runs`")
    dataset = str(manifest.row.dataset)
    if manifest.fell_back:
        requested = manifest.settings.dataset.name
        raise StoreError(
            f"run {run_id} was trained on the fallback dataset {dataset}, because {requested} was "
            f"unavailable, so it cannot become a champion; train on {requested}, or set "
            f"dataset.name to {dataset}"
        )
    return dataset


def _change(
    store: Store,
    dataset: str,
    run_id: str,
    by: Origin,
    *,
    expected: str | None,
    author: Author | None = None,
    note: str | None = None,
    pinned: bool = False,
    now: datetime | None = None,
) -> Change:
    """Record a change, for a caller that holds `lock`."""
    known = histories(store)
    changes = known.get(dataset, [])
    previous = changes[-1].run_id if changes else None
    if previous != expected:
        raise ChampionChangedError(
            f"the champion of {dataset} is {previous} by now, expected {expected}; decide again"
        )
    at = (now or datetime.now(UTC)).astimezone(UTC)
    if changes:  # the clock may have been set back
        at = max(at, changes[-1].changed_at + timedelta(microseconds=1))
    who, reason = author if author is not None else (None, note)
    new = Change(
        run_id=run_id,
        previous=previous,
        changed_at=at,
        changed_by=by,
        who=who,
        note=reason,
        pinned=pinned,
    )
    known[dataset] = [*changes, new]
    _write(store, known)
    fault_injection.failpoint("champion:changed")
    sync_table(store)
    fault_injection.failpoint("champion:recorded")
    return new


def _write(store: Store, known: Mapping[str, Sequence[Change]]) -> None:
    datasets = {
        dataset: [each.model_dump(mode="json") for each in changes]
        for dataset, changes in known.items()
    }
    write_json(store.root / FILE, {"datasets": datasets})


@contextmanager
def lock(store: Store) -> Iterator[None]:
    """Let only one process of this machine at a time change a champion.

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


# The table `champions`


def sync_table(store: Store) -> None:
    """Add to the table `champions` what a killed process left out, for a caller that holds `lock`.

    Only the newest changes of a dataset can be missing, since each change adds those before it.
    """
    with os_errors_as_store_errors(f"write table {schemas.CHAMPIONS_TABLE} of {store.root}"):
        for dataset, changes in histories(store).items():
            for path, table in reversed(_parts(store, dataset, changes)):
                if path.exists():
                    break
                publish_table(path, table, schemas.CHAMPIONS)


def _parts(store: Store, dataset: str, changes: Sequence[Change]) -> list[tuple[Path, pa.Table]]:
    """Return the file of each change of a dataset in the table, and its rows."""
    parts = []
    for number, each in enumerate(changes):
        row = each.model_dump(exclude={"run_id"}) | {"dataset": dataset}
        folder = store.partition(schemas.CHAMPIONS_TABLE, each.run_id)
        table = schemas.table_of(schemas.CHAMPIONS, [row])
        parts.append((folder / f"part-{number:06}.parquet", table))
    return parts


def recorded(store: Store) -> dict[str, list[Change]]:
    """Return every change by dataset as the table `champions` has it.

    Raises:
        StoreError: The table is damaged.
    """
    found: dict[str, list[Change]] = {}
    try:
        for row in store.read_table(schemas.CHAMPIONS_TABLE).sort_by("changed_at").to_pylist():
            found.setdefault(row.pop("dataset"), []).append(Change.model_validate(row))
        _Champions(datasets=found)
    except ValidationError as error:
        raise StoreError(
            f"the table {schemas.CHAMPIONS_TABLE} of {store.root} is not a history of champions: "
            f"{problem(error)}; restore it from a copy"
        ) from error
    return found


def rebuild_table(store: Store) -> None:
    """Write the table `champions` again from `champion.json`."""
    with lock(store), os_errors_as_store_errors(f"write table {schemas.CHAMPIONS_TABLE}"):
        parts = [
            part
            for dataset, changes in histories(store).items()
            for part in _parts(store, dataset, changes)
        ]
        folder = store.root / "tables" / schemas.CHAMPIONS_TABLE
        expected = {path for path, _ in parts}
        for run_folder in folder.iterdir() if folder.is_dir() else ():
            for path in [each for each in run_folder.iterdir() if each not in expected]:
                path.unlink()
        for path, table in parts:
            publish_table(path, table, schemas.CHAMPIONS)


def rebuild_pointer(store: Store) -> None:
    """Write `champion.json` again from the table `champions`."""
    with lock(store):
        _write(store, recorded(store))
