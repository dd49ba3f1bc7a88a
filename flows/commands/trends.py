"""`nnbuild trends`: the figures of every run, over time."""

from pathlib import Path

from flows.printing import jsonable, print_json, print_line, print_table
from nnbuild.report.comparison import trends_page
from nnbuild.store import Store
from nnbuild.store.analysis import drift_by_job
from nnbuild.store.analysis import trends as over_time
from nnbuild.store.outputs import is_stdout, write_output

_OF_RUNS = {
    "run_id": "run",
    "model": "model",
    "dataset": "dataset",
    "accuracy": "accuracy",
    "loss": "loss",
    "expected_calibration_error": "calibration error",
    "seconds": "seconds",
    "promoted": "promoted",
}
_OF_JOBS = {
    "score_id": "scoring job",
    "run_id": "model of run",
    "rows": "rows",
    "psi": "largest psi",
    "ks": "largest ks",
    "exceeded": "drifted",
}


def trends(root: str | None, *, html: Path | None, as_json: bool) -> None:
    """Show the runs that succeeded, oldest first, and the drift of what was scored."""
    store = Store.open(root)
    rows, jobs = over_time(store), drift_by_job(store)
    if html is not None:
        write_output(store.ensure_outside(html), trends_page(rows, jobs).encode())
    if as_json:
        shown = {
            "runs": [jsonable(row) for row in rows],
            "scoring_jobs": [jsonable(job) for job in jobs],
        }
        print_json({"store": str(store.root), **shown})
        return
    if html is not None and is_stdout(html):  # the page alone, so that it can be piped
        return
    marked = [row | {"promoted": "yes" if row["promoted"] else None} for row in rows]
    print_table(marked, _OF_RUNS, f"no runs in {store.root} yet; begin one by `nnbuild run`")
    if jobs:
        print_line("")
        print_table([job | {"exceeded": job["exceeded"] or None} for job in jobs], _OF_JOBS, "")
