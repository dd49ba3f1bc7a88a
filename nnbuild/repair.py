"""Put a store in order after accidents: what was begun is finished or cleared, and a lost row is written again.

Nothing that can still become a run is removed, unless it is named.
"""

import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from nnbuild import committing, schemas
from nnbuild.errors import LockedError, StoreError
from nnbuild.store import Run, Store, locks
from nnbuild.store.commit import PART
from nnbuild.store.files import explained, file_digest, move_folder
from nnbuild.store.manifests import read_manifest, runs_table
from nnbuild.store.names import is_run_id
from nnbuild.store.tables import write_table

_OLD = timedelta(hours=1)
_SCORE = "score-"


class Finding(NamedTuple):
    """One thing that was out of order.

    Attributes:
        path: relative to the store, or to its workshop.
        action: what is done about it; `keep` is nothing, `lost` cannot be mended.
        detail: what it is, and what a person can do.
    """

    path: str
    action: Literal["finish", "clear", "rebuild", "keep", "lost"]
    detail: str


def repair(store: Store, now: datetime, *, discard: Sequence[str] = ()) -> list[Finding]:
    """Look for everything that is out of order, and mend what can be mended.

    Args:
        store: a local one, or the workshop of a remote one.
        now: aware time; what was written aside an hour before was left by a process that died.
        discard: runs and scoring jobs in staging that are given up.

    Raises:
        StoreError: something cannot be read or written, or what is to be discarded is not there.
        LockedError: what is to be discarded is being worked on.
    """
    staging = store.workshop / "staging"
    there = (
        {path.name.removeprefix(_SCORE) for path in staging.iterdir()}
        if staging.is_dir()
        else set()
    )
    if missing := sorted(set(discard) - there):
        raise StoreError(
            f"{', '.join(missing)}: not in staging, there is nothing to discard; see `nnbuild runs`"
        )
    found = [
        *_staged_runs(store, discard),
        *_staged_jobs(store, discard),
        *_written_aside(store, now),
    ]
    return found if store.is_remote else [*found, *_lost_rows(store)]


def _staged_runs(store: Store, discard: Sequence[str]) -> Iterator[Finding]:
    for run_id in committing.finish_committed(store):
        yield Finding(f"staging/{run_id}", "finish", "was committed and is finished now")
    known = {*store.committed(), *(each.run_id for each in store.unfinished())}
    staging = store.workshop / "staging"
    for path in sorted(staging.iterdir()) if staging.is_dir() else []:
        if is_run_id(path.name) and path.name not in known and not locks.is_held(path):
            shutil.rmtree(path)
            yield Finding(f"staging/{path.name}", "clear", "had not begun when its process died")
    for waiting in store.unfinished():
        run = store.unfinished_run(waiting.run_id)
        place = f"staging/{waiting.run_id}"
        if waiting.run_id in discard:
            with locks.held(run.folder):
                run.clear()
            yield Finding(place, "clear", "was given up")
        elif waiting.held:
            yield Finding(place, "keep", "a living process works on it")
        elif not _is_readable(run):
            run.clear()
            yield Finding(place, "clear", "had no readable record, so nothing could go on with it")
        else:
            yield Finding(
                place, "keep", f"can be resumed: {_command(run)}; or discarded by --discard"
            )


def _command(run: Run) -> str:
    if run.config.trial is not None:
        return f"nnbuild sweep --id {run.config.trial.sweep}"
    return f"nnbuild run --resume {run.run_id}"


def _is_readable(run: Run) -> bool:
    try:
        return bool(run.config)
    except StoreError:
        return False


def _staged_jobs(store: Store, discard: Sequence[str]) -> Iterator[Finding]:
    folder = store.workshop / "staging"
    for path in sorted(folder.glob(f"{_SCORE}*")) if folder.is_dir() else []:
        score_id, place = path.name.removeprefix(_SCORE), f"staging/{path.name}"
        if locks.is_held(path):
            if score_id in discard:
                raise LockedError(f"scoring job {score_id} is being worked on; stop it first")
            yield Finding(place, "keep", "a living process works on it")
        elif score_id in discard or score_id in store.scored() or not (path / "job.json").exists():
            shutil.rmtree(path)
            yield Finding(
                place,
                "clear",
                "was given up" if score_id in discard else "was committed, or never began",
            )
        else:
            yield Finding(
                place, "keep", f"can be resumed: nnbuild score --resume {score_id}; or discarded"
            )


def _written_aside(store: Store, now: datetime) -> Iterator[Finding]:
    """Files that a process was writing when it died; they have names that no reader looks at."""
    roots = [store.workshop] if store.workshop.is_dir() else []
    for path in sorted(
        each for root in roots for each in root.rglob(".*.*") if each.suffix != ".lock"
    ):
        with explained(f"look at {path}"):
            if now - datetime.fromtimestamp(path.stat().st_mtime, now.tzinfo) > _OLD:
                path.unlink()
                yield Finding(
                    path.relative_to(store.workshop).as_posix(), "clear", "was left half written"
                )


def _lost_rows(store: Store) -> Iterator[Finding]:
    """Runs that have everything but their row in `runs`."""
    folder = store.root / "runs"
    known = {*store.committed(), *(each.run_id for each in store.unfinished())}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not is_run_id(path.name) or path.name in known:
            continue
        place = f"runs/{path.name}"
        try:
            manifest = read_manifest(path / "manifest.json")
            _require_whole(store, manifest)
            row = runs_table(manifest)
        except (StoreError, KeyError, TypeError, AttributeError) as error:
            yield Finding(
                place, "lost", f"has no row in runs, and it cannot be written again: {error}"
            )
            continue
        aside = store.workshop / "staging" / f"repair-{path.name}"
        write_table(aside / PART, row, schemas.RUNS)
        move_folder(aside, store.partition("runs", path.name))
        yield Finding(
            place, "rebuild", "its row in runs was lost, and is written again from the manifest"
        )


def _require_whole(store: Store, manifest: dict[str, Any]) -> None:
    for name, about in manifest["files"].items():
        path = store.root / name
        if name.startswith("tables/runs/"):
            continue
        if (
            not path.resolve().is_relative_to(store.root)
            or not path.is_file()
            or file_digest(path) != about["sha256"]
        ):
            raise StoreError(f"{name} is missing or was changed")
