"""`nnbuild compare`: runs side by side."""

from pathlib import Path

from flows.printing import jsonable, print_json, print_line, print_table
from nnbuild.report.comparison import comparison_page
from nnbuild.report.text import on_pair
from nnbuild.store import Store
from nnbuild.store.analysis import compare as compared
from nnbuild.store.outputs import is_stdout, write_output


def compare(run_ids: list[str], root: str | None, *, html: Path | None, as_json: bool) -> None:
    """Compare; print one row a figure, one column a run, and a sentence on each but the first."""
    store = Store.open(root)
    rows = compared(store, run_ids)
    if html is not None:
        histories = {run_id: store.read_table("history", run_id) for run_id in run_ids}
        write_output(store.ensure_outside(html), comparison_page(rows, histories).encode())
    if as_json:
        print_json({"store": str(store.root), "runs": [jsonable(row) for row in rows]})
        return
    if html is not None and is_stdout(html):  # the page alone, so that it can be piped
        return
    names = [name for name in rows[0] if name != "run_id"]
    turned = [{"figure": name, **{row["run_id"]: row[name] for row in rows}} for name in names]
    print_table(turned, ("figure", *run_ids), "")
    for row in rows[1:]:
        print_line(on_pair(row))
