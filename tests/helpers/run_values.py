"""Results of a run that its seed determines."""

from nnbuild.store import Store
from nnbuild.store.filesystem import file_digest

TABLES = {
    "runs",
    "history",
    "evaluation",
    "confusion",
    "calibration",
    "classes",
    "predictions",
    "decisions",
}


def values(store: Store, run_id: str) -> dict:
    """Return all results of a run that its seed determines."""
    history = [
        (row["epoch"], row["metric"], row["value"])
        for row in store.read_table("history", run_id).to_pylist()
        if row["metric"] != "epoch_seconds"
    ]
    tables = {
        name: store.read_table(name, run_id).drop_columns(["run_id"])
        for name in TABLES - {"runs", "history", "decisions"}
    }
    model = file_digest(store.root / "runs" / run_id / "model.keras")
    return {"history": history, "model": model, **tables}
