"""`nnbuild champion`, `promote` and `rollback`: the pointer to the run that scores."""

from flows.printing import print_json, print_line, print_table
from nnbuild.errors import StoreError
from nnbuild.store import Store
from nnbuild.store import champion as pointer
from nnbuild.store.ids import require_run_id

_SHOWN = ("run_id", "previous", "by", "at")


def champion(root: str | None, *, as_json: bool) -> None:
    """Show the champion and the changes that led to it, the newest first."""
    store = Store.open(root)
    changes = [each.model_dump(mode="json") for each in reversed(pointer.history(store))]
    if as_json:
        print_json(
            {"store": str(store.root), "champion": pointer.current(store), "changes": changes}
        )
        return
    print_line(f"champion {pointer.current(store) or 'none'}")
    if changes:
        print_table(changes, _SHOWN, "")


def promote(run_id: str, root: str | None, *, as_json: bool) -> None:
    """Point to a run.

    Raises:
        StoreError: it is not committed, failed, or is the champion already.
    """
    store = Store.open(root)
    before = pointer.current(store)
    if require_run_id(run_id) == before:
        raise StoreError(f"run {run_id} is the champion already; see `nnbuild champion`")
    _told(store, pointer.change(store, run_id, expected=before, by="promote"), as_json=as_json)


def rollback(root: str | None, *, as_json: bool) -> None:
    """Point to the champion before this one.

    Raises:
        StoreError: there is none to go back from.
    """
    store = Store.open(root)
    _told(store, pointer.rollback(store), as_json=as_json)


def _told(store: Store, change: pointer.Change, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {"store": str(store.root), "champion": change.run_id, **change.model_dump(mode="json")}
        )
    else:
        print_line(f"champion {change.run_id or 'none'}, before it {change.previous or 'none'}")
