"""`nnbuild doctor --repair`: a store put in order."""

from datetime import UTC, datetime

from flows.printing import print_json, print_table
from nnbuild.repair import repair as repaired
from nnbuild.store import Store


def repair(root: str | None, discard: list[str], *, as_json: bool) -> None:
    """Mend the store, and say what was done."""
    store = Store(root)
    found = [each._asdict() for each in repaired(store, datetime.now(UTC), discard=discard)]
    if as_json:
        print_json({"store": str(store.root), "findings": found})
    else:
        print_table(found, ("action", "path", "detail"), f"{store.root} is in order")
