"""`nnbuild doctor --repair`: put a store in order."""

from datetime import UTC, datetime

from flows.printing import print_json, print_table
from nnbuild.pipeline.repair import apply, plan
from nnbuild.store import Store


def repair(root: str | None, discard: list[str], *, dry_run: bool, as_json: bool) -> None:
    """List what is out of order in the store, then repair it.

    Args:
        root: Root of the store.
        discard: Runs and scoring jobs that are given up.
        dry_run: Only list.
        as_json: Print the list as JSON, after the repairs.
    """
    store = Store.open(root)
    repairs = plan(store, datetime.now(UTC), discard=discard)
    findings = [each.finding._asdict() for each in repairs]
    if not as_json:  # before anything is changed
        print_table(findings, ("action", "path", "detail"), f"{store.root} is in order")
    if not dry_run:
        apply(repairs)
    if as_json:
        print_json({"store": str(store.root), "dry_run": dry_run, "findings": findings})
