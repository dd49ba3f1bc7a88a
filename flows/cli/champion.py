"""`nnbuild champion`, `promote` and `rollback`: the run whose model scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import PUBLISH, JsonOption, StoreOption, app
from flows.cli.console import print_json, print_line, print_table
from nnbuild.errors import StoreError

if TYPE_CHECKING:
    from nnbuild.store import Store
    from nnbuild.store.champion import Change

_COLUMNS = ("run_id", "previous", "by", "at")


@app.command(rich_help_panel=PUBLISH, epilog="Example: nnbuild champion")
def champion(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show the champion and the previous ones, newest first."""
    from nnbuild.store import Store
    from nnbuild.store import champion as pointer

    opened = Store.open(store)
    changes = [each.model_dump(mode="json") for each in reversed(pointer.history(opened))]
    current = pointer.current(opened)
    if as_json:
        print_json({"store": str(opened.root), "champion": current, "changes": changes})
        return
    print_line(f"champion {current or 'none'}")
    if changes:
        print_table(changes, _COLUMNS, "")


@app.command(rich_help_panel=PUBLISH, epilog="Example: nnbuild promote 20261123T030000000Z-4f2a1c")
def promote(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="Committed run that succeeded.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a run the champion, whatever the promotion gate decided."""
    from nnbuild.store import Store
    from nnbuild.store import champion as pointer
    from nnbuild.store.ids import require_run_id

    opened = Store.open(store)
    current = pointer.current(opened)
    if require_run_id(run_id) == current:
        raise StoreError(f"run {run_id} is already the champion; see `nnbuild champion`")
    change = pointer.change(opened, run_id, expected=current, by="promote")
    _print_change(opened, change, as_json=as_json)


@app.command(rich_help_panel=PUBLISH, epilog="Example: nnbuild rollback")
def rollback(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Restore the previous champion."""
    from nnbuild.store import Store
    from nnbuild.store import champion as pointer

    opened = Store.open(store)
    _print_change(opened, pointer.rollback(opened), as_json=as_json)


def _print_change(store: Store, change: Change, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {"store": str(store.root), "champion": change.run_id, **change.model_dump(mode="json")}
        )
    else:
        previous = change.previous or "none"
        print_line(f"champion {change.run_id or 'none'}, previous champion {previous}")
