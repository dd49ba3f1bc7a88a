"""Fill a store with many runs and scoring jobs quickly: copies of one run under other IDs."""

import json
import shutil
from datetime import UTC, datetime, timedelta

from nnbuild.store import Store, champion, champion_history, schemas
from nnbuild.store.commit import PART
from nnbuild.store.filesystem import file_digest, write_json
from nnbuild.store.manifests import parse_manifest, runs_table
from nnbuild.store.tables import write_table

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def id_of(number: int, *, days_old: float) -> str:
    """Return the ID of a run or job that began so many days before `NOW`."""
    began = NOW - timedelta(days=days_old)
    return f"{began:%Y%m%dT%H%M%S}000Z-{number:06x}"


class StoreFiller:
    """Adds runs and jobs to an empty folder.

    Args:
        root: Root of the new store.
        template: Store with one run, whose files all runs get.
    """

    def __init__(self, root, template: Store):
        self.template, self.source = template, template.run_ids()[0]
        self.manifest = template.manifest(self.source).to_json()
        self.store = Store(root)
        self.store.create()
        self.count = 0

    def run(
        self,
        *,
        days_old=1.0,
        dataset="small",
        data=0,
        status="succeeded",
        sweep=None,
        anchor=None,
        like=None,
        start=None,
    ):
        """Add a run, and its dataset: one folder for each name and each number `data`.

        Its model differs from all others, unless it is `like` another run.
        """
        self.count += 1
        run_id, root = id_of(self.count, days_old=days_old), self.store.root
        digest = f"{data:064x}"
        if not self.store.has_dataset(dataset, digest):
            load = self.manifest["steps"]["load_data"]
            source = self.template.dataset_folder(load["name"], load["digest"])
            shutil.copytree(source, self.store.dataset_folder(dataset, digest))
        text = json.dumps(self.manifest).replace(self.source, run_id)
        manifest = json.loads(text)
        manifest["steps"]["load_data"] |= {"name": dataset, "digest": digest}
        manifest["steps"]["decide"]["next_anchor"] = anchor
        manifest["steps"]["build_model"]["start"] = start
        manifest["config"]["training"]["start"] = None if start is None else "champion"
        began = NOW - timedelta(days=days_old)
        manifest["config"]["trial"] = None if sweep is None else {"sweep": sweep, "number": 0}
        manifest["row"] |= {
            "status": status,
            "error": None if status == "succeeded" else "it failed",
            "dataset": dataset,
            "dataset_digest": digest,
            "started_at": began.isoformat(),
            "finished_at": (began + timedelta(minutes=1)).isoformat(),
            "config": json.dumps(manifest["config"]),
        }
        shutil.copytree(self.template.root / "runs" / self.source, root / "runs" / run_id)
        model = root / "runs" / run_id / "model.keras"
        model.write_bytes(model.read_bytes() + (like or run_id).encode())
        entry = {"sha256": file_digest(model), "bytes": model.stat().st_size}
        manifest["files"][f"runs/{run_id}/model.keras"] = entry
        for table in ("history", "predictions", "decisions"):
            part = self.template.partition(table, self.source)
            shutil.copytree(part, self.store.partition(table, run_id))
        manifest["files"] = {
            name: entry for name, entry in manifest["files"].items() if (root / name).exists()
        }
        write_json(root / "runs" / run_id / "manifest.json", manifest)
        row = runs_table(parse_manifest(manifest, run_id))
        write_table(self.store.partition("runs", run_id) / PART, row, schemas.RUNS)
        return run_id

    def job(self, run_id, *, days_old=1.0, shadow=None):
        """Add a scoring job with the model of a run, and the row of its shadow."""
        self.count += 1
        score_id = id_of(self.count, days_old=days_old)
        root, key = self.store.root, f"score_id={score_id}"
        began = NOW - timedelta(days=days_old)
        row = {
            "run_id": run_id,
            "model_digest": "0" * 64,
            "input": "in.parquet",
            "output": None,
            "rows": 45,
            "written": 45,
            "quarantined": 0,
            "engine": "onnx",
            "temperature": 1.0,
            "started_at": began,
            "finished_at": began,
            "day": None,
            "identifier": "row",
            "input_digest": "0" * 64,
            "shadow_run_id": shadow,
        }
        shutil.copytree(
            self.template.partition("predictions", self.source), root / "tables" / "scores" / key
        )
        write_json(root / "scores" / score_id / "manifest.json", {"score_id": score_id})
        write_json(root / "quarantine" / key / "part-0.json", {"row": 1})
        table = schemas.table_of(schemas.SCORE_JOBS, [row])
        write_table(root / "tables" / "score_jobs" / key / PART, table, schemas.SCORE_JOBS)
        return score_id

    def promote(self, run_id):
        """Make a run the champion of its dataset, as the gate does."""
        dataset = self.store.manifest(run_id).row.dataset
        current = champion.current(self.store, dataset)
        if current != run_id:
            with champion_history.lock(self.store):
                champion.change_locked(self.store, run_id, expected=current, now=NOW)

    def sweep(self, sweep_id):
        """Add the record of a sweep that began before the first run."""
        write_json(self.store.root / "staging" / f"sweep-{sweep_id}" / "sweep.json", {})


def size(root) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())


def require_intact(store: Store, run_id: str) -> None:
    """Require that every file of a run is there and has its digest, and so has its dataset."""
    manifest = store.manifest(run_id)
    for name, entry in manifest.files.items():
        if not name.startswith("tables/runs/"):
            assert file_digest(store.root / name) == entry.sha256
    row = store.read_table("runs", run_id).to_pylist()[0]
    assert store.has_dataset(row["dataset"], row["dataset_digest"])
    assert store.read_table("predictions", run_id).num_rows == 45
