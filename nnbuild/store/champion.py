"""The champion of each dataset: the run of the newest change of its history.

A change requires that the champion is still the one that the decision was based on (compare and
set). A person's change pins the champion: the gate leaves it alone until it is unpinned.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from nnbuild.errors import StoreError, suggestion
from nnbuild.runtime import fault_injection
from nnbuild.store import champion_history
from nnbuild.store.champion_history import Change, Origin, histories, lock
from nnbuild.store.ids import require_id
from nnbuild.store.store import Store

NAME = "champion"
"""The word that stands for a run: the champion of the only dataset, or `champion:DATASET`."""
_PREFIX = f"{NAME}:"


class Author(NamedTuple):
    """A person who changes the champion.

    Attributes:
        who: User and host, such as `ada@build-7`.
        note: Reason in the person's words; None if not given.
    """

    who: str
    note: str | None = None


class ChampionChangedError(StoreError):
    """The champion is no longer the one that a decision was based on."""


class PinnedError(StoreError):
    """A person has pinned the champion, so the gate may not replace it."""


# Reading


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
        raise StoreError(
            f"{len(known)} datasets have a champion; choose one of {names}", setting="dataset"
        )
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
            f"dataset {name!r} has no champion in {store.root}; {suggestion(name, known)}",
            setting="dataset",
            value=name,
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
        run_id: ID of a committed run that succeeded; the champion's own ID pins it.
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
    """Make a run the champion because of a test; without a pin, and not in place of a pinned one.

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
    """Restore the last champion with another model, and pin it; call it again to go further back.

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
    champion_history.write(store, known)
    fault_injection.failpoint("champion:changed")
    champion_history.sync_table(store)
    fault_injection.failpoint("champion:recorded")
    return new
