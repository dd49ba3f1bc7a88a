"""`nnbuild report`: the page of an old run, made anew from its manifest and tables."""

from pathlib import Path

from flows.printing import print_json, print_line
from nnbuild.report import rebuild
from nnbuild.store import Store


def report(run_id: str, root: Path | str | None, *, as_json: bool) -> None:
    """Write a committed run's report again, and say where it is."""
    path = rebuild(Store.open(root), run_id)
    if as_json:
        print_json({"run_id": run_id, "report": str(path), "bytes": path.stat().st_size})
    else:
        print_line(str(path))
