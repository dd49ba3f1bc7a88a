"""Further committed runs of a store, copied from a trained one: cheap, and as complete."""

import json
import shutil
from datetime import datetime, timedelta

from nnbuild.store import Store, schemas
from nnbuild.store.ids import new_run_id
from nnbuild.store.manifests import read_manifest, runs_table
from nnbuild.store.tables import write_table


def clone_run(store: Store, run_id: str, *, dataset=None, other_model=False, fallback=False) -> str:
    """Commit a copy of a run under a new ID, and return it.

    Args:
        store: Store with the run.
        run_id: Run to copy.
        dataset: Another dataset name; that of the run if None.
        other_model: Whether the copy gets weights of its own, as its manifest has it.
        fallback: Whether the copy was trained on digits because mnist was unavailable.
    """
    source = store.manifest(run_id)
    new = new_run_id(_next_time(store))
    record = shutil.copytree(store.root / "runs" / run_id, store.root / "runs" / new)
    manifest = json.loads((record / "manifest.json").read_text().replace(run_id, new))
    if dataset is not None:
        manifest["row"]["dataset"] = dataset
    if fallback:
        manifest["row"]["dataset"] = "digits"
        manifest["config"]["dataset"] |= {"name": "mnist", "fallback": "digits"}
    if other_model:
        manifest["files"][f"runs/{new}/model.keras"]["sha256"] = new[-6:].rjust(64, "0")
    (record / "manifest.json").write_text(json.dumps(manifest))
    for name in source.files:
        if name.startswith("tables/") and "/runs/" not in name:
            target = store.root / name.replace(run_id, new)
            target.parent.mkdir(parents=True)
            shutil.copy(store.root / name, target)
    part = store.partition("runs", new) / "part-0.parquet"
    write_table(part, runs_table(read_manifest(record / "manifest.json")), schemas.RUNS)
    return new


def _next_time(store: Store) -> datetime:
    """Return a time right after the start of the newest run: IDs do not depend on the clock."""
    newest = f"{max(store.run_ids())[:18]}+0000"
    return datetime.strptime(newest, "%Y%m%dT%H%M%S%f%z") + timedelta(milliseconds=1)
