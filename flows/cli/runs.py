"""`nnbuild runs`, `history` and `report`: the runs of a store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.app import EXPLORE, JsonOption, StoreOption, app
from flows.cli.console import (
    escape_for_terminal,
    print_json,
    print_line,
    print_table,
    to_json_row,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from nnbuild.store import Store

_RUN_COLUMNS = (
    "run_id",
    "status",
    "dataset",
    "model",
    "seed",
    "epochs",
    "test_accuracy",
    "test_loss",
    "promoted",
    "champion",
)
_CHAMPION_CELLS: dict[tuple[Any, Any], str] = {
    (True, True): "pinned",
    (True, False): "yes",
    (False, False): "no",
}


@app.command(rich_help_panel=EXPLORE, epilog="Example: nnbuild runs --json")
def runs(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the runs, including unfinished ones."""
    from nnbuild.store import Store

    opened = Store.open(store)
    unfinished = [_unfinished_row(opened, e.run_id, held=e.held) for e in opened.unfinished_runs()]
    rows = [*_committed_rows(opened), *unfinished]
    if as_json:
        print_json({"store": str(opened.root), "runs": [to_json_row(row) for row in rows]})
        return
    shown = [
        {name: row.get(name) for name in _RUN_COLUMNS}
        | {"champion": _CHAMPION_CELLS.get((row.get("champion"), row.get("pinned")))}
        for row in rows
    ]
    print_table(shown, _RUN_COLUMNS, f"no runs in {opened.root} yet; start one with `nnbuild run`")


def _committed_rows(store: Store) -> list[dict[str, Any]]:
    """Return the rows of `runs`, and for each whether the run is the champion of its dataset."""
    from nnbuild.store import champion

    pins = {each.run_id: each.pinned for each in champion.currents(store).values()}
    return [
        row | {"champion": row["run_id"] in pins, "pinned": pins.get(row["run_id"], False)}
        for row in store.read_table("runs").to_pylist()
    ]


def _unfinished_row(store: Store, run_id: str, *, held: bool) -> dict[str, Any]:
    from nnbuild.errors import StoreError

    row: dict[str, Any] = {"run_id": run_id, "status": "running" if held else "unfinished"}
    staged = store.staged_history(run_id)
    if staged is not None:
        row["epochs"] = max(staged["epoch"].to_pylist())
    try:
        config = store.unfinished_run(run_id).config
    except StoreError:
        return row
    return row | {
        "model": config.model.name,
        "seed": config.seed,
        "dataset": config.dataset.name,
    }


@app.command(
    rich_help_panel=EXPLORE,
    epilog="Example: nnbuild history 20261123T030000000Z-4f2a1c --wide --csv",
)
def history(
    run_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN_ID",
            help="Runs to show; champion or champion:DATASET stands for one.",
            show_default="all runs",
        ),
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="Print one row per epoch and one column per metric.")
    ] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the history of runs: every metric at every epoch."""
    from nnbuild.store import Store

    opened = Store.open(store)
    table = _history(opened, run_ids or [])
    if wide:
        import pyarrow as pa

        from nnbuild.training import history as histories

        table = pa.Table.from_pandas(histories.wide(table), preserve_index=False)
    if csv:
        frame = table.to_pandas()
        if sys.stdout.isatty():
            frame = frame.rename(columns=escape_for_terminal).map(escape_for_terminal)
        frame.to_csv(sys.stdout, index=False)
    elif as_json:
        rows = [to_json_row(row) for row in table.to_pylist()]
        print_json({"store": str(opened.root), "history": rows})
    else:
        message = f"no history in {opened.root} yet; start a run with `nnbuild run`"
        print_table(table.to_pylist(), table.column_names, message)


def _history(store: Store, run_ids: list[str]) -> pa.Table:
    """Return the history of some runs or of all, including the epochs of unfinished ones."""
    import pyarrow as pa

    from nnbuild.store import champion

    if run_ids:
        named = [champion.run_of(store, each) for each in run_ids]
        return pa.concat_tables([_history_of(store, run_id) for run_id in named])
    staged = [store.staged_history(each.run_id) for each in store.unfinished_runs()]
    return pa.concat_tables(
        [store.read_table("history"), *(table for table in staged if table is not None)]
    )


def _history_of(store: Store, run_id: str) -> pa.Table:
    staged = store.staged_history(run_id)
    return staged if staged is not None else store.read_table("history", run_id)


@app.command(rich_help_panel=EXPLORE, epilog="Example: nnbuild report 20261123T030000000Z-4f2a1c")
def report(
    run_id: Annotated[
        str,
        typer.Argument(metavar="RUN_ID", help="Committed run, champion or champion:DATASET."),
    ],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report of a committed run again, from its tables."""
    from nnbuild.report import rebuild
    from nnbuild.store import Store
    from nnbuild.store.champion import run_of

    opened = Store.open(store)
    run_id = run_of(opened, run_id)
    path = rebuild(opened, run_id)
    if as_json:
        print_json({"run_id": run_id, "report": str(path), "bytes": path.stat().st_size})
    else:
        print_line(str(path))
