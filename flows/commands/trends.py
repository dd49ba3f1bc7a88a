"""`nnbuild trends`: the figures of every run, over time."""

from pathlib import Path

from flows.printing import jsonable, print_json, print_table
from nnbuild.across import trends as over_time
from nnbuild.report.across import trends_page
from nnbuild.store import Store
from nnbuild.store.files import write_bytes

_SHOWN = (
    "run_id",
    "model",
    "dataset",
    "accuracy",
    "loss",
    "expected_calibration_error",
    "seconds",
    "promoted",
    "drift",
)


def trends(root: str | None, *, html: Path | None, as_json: bool) -> None:
    """Show the runs that succeeded, oldest first."""
    store = Store(root)
    rows = over_time(store)
    if html is not None:
        write_bytes(store.require_outside(html), trends_page(rows).encode())
    if as_json:
        print_json({"store": str(store.root), "runs": [jsonable(row) for row in rows]})
    else:
        print_table(rows, _SHOWN, f"no runs in {store.root} yet; begin one by `nnbuild run`")
