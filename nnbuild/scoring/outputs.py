"""The folder or URL that a scoring job writes to instead of the store's table."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from nnbuild.errors import StoreError
from nnbuild.store.filesystem import (
    fsync_dir,
    fsync_file,
    is_remote,
    is_url,
    local_root,
    open_root,
    os_errors_as_store_errors,
    publish_dir,
    read_json,
    write_json,
)

_MANIFEST = "_manifest.json"
_CLAIM = "_claim"  # of the job that is uploading; readers pass over such names


def location(output: str) -> Any:
    """Return the place that an output names: links, `..` and slashes at its end are resolved."""
    if not is_url(output):
        return Path(os.path.realpath(output))
    root = open_root(output)
    return root if is_remote(root) else Path(os.path.realpath(root))


def shown(output: str) -> str:
    """Return the absolute path or URL of an output, as it is recorded."""
    return str(open_root(output) if is_url(output) else Path(output).absolute())


def lock_file(output: Any) -> Path:
    """Return the file that is locked for as long as a job writes to an output.

    It is next to a folder, so that every process that sees the folder sees the lock, whatever its
    store. Object stores have no locks: there it is a file of this machine.

    Args:
        output: As returned by `location`.
    """
    if is_remote(output):
        path = re.sub("/+", "/", output.path).strip("/")
        return local_root(f"{output.protocol}://{path}").with_suffix(".lock")
    # Of one length, since the name of the output can be as long as a name can be.
    digest = hashlib.sha256(os.fsencode(output.name)).hexdigest()
    return Path(output.with_name(f".nnbuild-output-{digest[:16]}.lock"))


def is_taken(output: Any, score_id: str) -> bool:
    """Return whether an output holds anything that was not written by this job.

    Args:
        output: As returned by `location`.
        score_id: The job that is about to write there.
    """
    with os_errors_as_store_errors(f"look into --output {output}"):
        if not output.exists():
            return False
        if not output.is_dir():
            return True
        names = _names(output)
    return bool(names) and not _is_of(output, score_id)


def _names(output: Any) -> set[str]:
    return {path.name for path in output.iterdir()}


def _is_of(output: Any, score_id: str) -> bool:
    for name in (_MANIFEST, _CLAIM):
        path = output / name
        with os_errors_as_store_errors(f"read {path}"):
            there = path.is_file()
        if there:
            try:
                record = read_json(path)
            except StoreError:
                continue
            if isinstance(record, dict) and record.get("score_id") == score_id:
                return True
    return False


def publish(rows: Path, output: Any, score_id: str, manifest: dict[str, Any]) -> None:
    """Move a job's rows and their manifest to its output, all at once or not at all.

    May be called again after a crash. The rows are removed only when they are in the output.

    Args:
        rows: The folder with the job's finished parts; nothing happens if it is gone.
        output: As returned by `location`.
        score_id: The job.
        manifest: What is written next to the parts.

    Raises:
        StoreError: The output was taken by somebody else meanwhile; the rows are kept.
    """
    if rows.is_dir():
        if is_taken(output, score_id):
            raise _taken(output)
        write_json(rows / _MANIFEST, manifest)  # readers of the folder pass over such names
        if is_remote(output):
            _upload(rows, output, score_id)
        else:
            _place(rows, output, score_id)
    if is_remote(output):
        with os_errors_as_store_errors(f"write --output {output}"):
            (output / _CLAIM).unlink(missing_ok=True)


def _place(rows: Path, output: Path, score_id: str) -> None:
    """Copy the rows next to their output, which can be on another disk, and rename the copy."""
    aside = output.with_name(f".{score_id}")
    with os_errors_as_store_errors(f"write --output {output}"):
        if not _is_of(output, score_id):
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(rows, aside)
            for path in aside.iterdir():
                fsync_file(path)
            fsync_dir(aside)
            try:
                aside.rename(output)  # the system replaces an empty folder, and nothing else
            except OSError as error:
                shutil.rmtree(aside, ignore_errors=True)
                if output.exists():
                    raise _taken(output) from error
                raise
            fsync_dir(output.parent)
        shutil.rmtree(rows, ignore_errors=True)


def _upload(rows: Path, output: Any, score_id: str) -> None:
    """Upload the rows behind a claim, an object that only one of several jobs can create."""
    with os_errors_as_store_errors(f"write --output {output}"):
        if _has_claimed(output, score_id) and _names(output) != {_CLAIM}:
            (output / _CLAIM).unlink()
            raise _taken(output)
    publish_dir(rows, output)


def _has_claimed(output: Any, score_id: str) -> bool:
    """Return whether the claim was created now, and not by an earlier try of this job."""
    claim, content = output / _CLAIM, json.dumps({"score_id": score_id}).encode()
    try:
        output.fs.pipe_file(claim.path, content, mode="create")
    except OSError as error:
        if not claim.exists():  # a service that cannot write on a condition
            claim.write_bytes(content)
            return True
        if not _is_of(output, score_id):
            raise _taken(output) from error
        return False
    return True


def _taken(output: Any) -> StoreError:
    return StoreError(
        f"--output {output}: holds something that was not there when the job began; "
        "the job's rows are kept: move that away, then resume the job"
    )
