"""Tables for a notebook."""

from pathlib import Path
from typing import Any

from nnbuild.errors import StoreError
from nnbuild.schemas import OF_JOBS
from nnbuild.store import Store


def read_table(
    store: Store | Path | str | None,
    name: str,
    *,
    run_id: str | None = None,
    score_id: str | None = None,
    columns: list[str] | None = None,
) -> Any:
    """The committed rows of a table, as Arrow; `.to_pandas()` gives a DataFrame.

    Args:
        store: or its root.
        name: of the table: `runs`, `history`, `predictions`, `scores` and so on.
        run_id: of one run; of a table of scoring jobs, those that its model scored.
        score_id: of one scoring job, for `scores`, `score_runs` and `drift`.
        columns: which ones; all if not given.

    Returns:
        A `pyarrow.Table`, its first column the `run_id`, or the `score_id` of a table of scoring jobs.

    Raises:
        StoreError: no store, an unknown table, run, job or column, or a file of another schema version.
    """
    place = store if isinstance(store, Store) else Store.open(store)
    if name not in OF_JOBS:
        if score_id is not None:
            raise StoreError(
                f"score_id {score_id!r} with table {name!r}; give run_id, or read {' or '.join(OF_JOBS)}"
            )
        return place.read_table(name, run_id, columns)
    if run_id is None:
        return place.read_table(name, score_id, columns)
    jobs = place.read_table("score_runs", score_id).to_pylist()
    found = [
        each["score_id"]
        for each in jobs
        if each["run_id"] == run_id and (name != "scores" or not each["output"])
    ]
    if not found:
        raise StoreError(
            f"no scoring job by run {run_id} in {place.root}; see the table score_runs"
        )
    return place.read_table(name, found, columns)
