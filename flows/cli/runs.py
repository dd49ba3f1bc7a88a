"""`nnbuild runs` and `nnbuild history`: the store's tables in a terminal."""

import sys
from typing import Any

import pyarrow as pa

from flows.printing import for_output, jsonable, print_json, print_table
from nnbuild.errors import StoreError
from nnbuild.store import Store
from nnbuild.training import history as histories

_SHOWN = (
    "run_id",
    "status",
    "dataset",
    "model",
    "seed",
    "epochs",
    "test_accuracy",
    "test_loss",
    "promoted",
)


def runs(root: str | None, *, as_json: bool) -> None:
    """List committed runs and, below them, those in staging with the epochs so far."""
    store = Store.open(root)
    committed = store.read_table("runs").to_pylist()
    waiting = [_unfinished(store, each.run_id, held=each.held) for each in store.unfinished_runs()]
    if as_json:
        print_json(
            {"store": str(store.root), "runs": [jsonable(row) for row in [*committed, *waiting]]}
        )
        return
    rows = [{name: row.get(name) for name in _SHOWN} for row in [*committed, *waiting]]
    print_table(rows, _SHOWN, f"no runs in {store.root} yet; begin one by `nnbuild run`")


def _unfinished(store: Store, run_id: str, *, held: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"run_id": run_id, "status": "running" if held else "unfinished"}
    so_far = store.staged_history(run_id)
    if so_far is not None:
        row["epochs"] = max(so_far["epoch"].to_pylist())
    try:
        run = store.unfinished_run(run_id)
        return row | {
            "model": run.config.model.name,
            "seed": run.config.seed,
            "dataset": run.config.dataset.name,
        }
    except StoreError:
        return row


def history(run_ids: list[str], root: str | None, *, wide: bool, csv: bool, as_json: bool) -> None:
    """Show the history of some runs, or of all; the epochs so far of those that are unfinished."""
    store = Store.open(root)
    if run_ids:
        table = pa.concat_tables([_history_of(store, run_id) for run_id in run_ids])
    else:
        waiting = [store.staged_history(each.run_id) for each in store.unfinished_runs()]
        table = pa.concat_tables(
            [store.read_table("history"), *(part for part in waiting if part is not None)]
        )
    if wide:
        table = pa.Table.from_pandas(histories.wide(table), preserve_index=False)
    if csv:
        frame = table.to_pandas()
        if sys.stdout.isatty():
            frame = frame.rename(columns=for_output).map(for_output)
        frame.to_csv(sys.stdout, index=False)
    elif as_json:
        print_json(
            {"store": str(store.root), "history": [jsonable(row) for row in table.to_pylist()]}
        )
    else:
        print_table(
            table.to_pylist(),
            table.column_names,
            f"no history in {store.root} yet; begin a run by `nnbuild run`",
        )


def _history_of(store: Store, run_id: str) -> Any:
    staged = store.staged_history(run_id)
    return staged if staged is not None else store.read_table("history", run_id)
