"""Publish the rows of a job to a folder or URL instead of the table of the store."""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from nnbuild.errors import StoreError
from nnbuild.store import Store
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
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # the last for a file at its place
_CLAIM = "_claim"  # marks the job that is uploading; readers ignore names with this underscore


def location(output: str) -> Path:
    """Return the location of an output, with links and `..` resolved and no slash at the end."""
    if not is_url(output):
        return Path(os.path.realpath(output))
    root = open_root(output)
    return root if is_remote(root) else Path(os.path.realpath(root))


def display_address(output: str) -> str:
    """Return the absolute path or URL of an output, as recorded in tables and manifests."""
    return str(open_root(output) if is_url(output) else Path(output).absolute())


def require_outside(store: Store, output: str) -> Path:
    """Return the absolute path or URL of an output, unless it is in the store.

    Raises:
        StoreError: The output is in the store, or contains it.
    """
    return store.ensure_outside(open_root(output) if is_url(output) else Path(output).absolute())


def lock_file(output: Any) -> Path:
    """Return the file that a job locks while it writes to an output.

    The file is next to the folder, so that every process that sees the folder sees the lock,
    whatever its store. Object stores have no locks; for them it is a file of this machine.

    Args:
        output: As returned by `location`.
    """
    if is_remote(output):
        path = re.sub("/+", "/", output.path).strip("/")
        return local_root(f"{output.protocol}://{path}").with_suffix(".lock")
    # A digest, because the name of the output may already have the maximum length.
    digest = hashlib.sha256(os.fsencode(output.name)).hexdigest()
    return Path(output.with_name(f".nnbuild-output-{digest[:16]}.lock"))


def is_mount_point(output: Path) -> bool:
    """Return whether an output, as returned by `location`, is where a disk is mounted."""
    return not is_remote(output) and os.path.ismount(output)


def is_taken(output: Path, score_id: str) -> bool:
    """Return whether an output contains anything that this job did not write.

    Args:
        output: As returned by `location`.
        score_id: The job that is about to write there.
    """
    with os_errors_as_store_errors(f"list output {output}"):
        if not output.exists():
            return False
        if not output.is_dir():
            return True
        names = _names(output)
    return bool(names) and not _is_of(output, score_id)


def _names(output: Path) -> set[str]:
    return {path.name for path in output.iterdir()}


def _is_of(output: Path, score_id: str) -> bool:
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


def publish(rows: Path, output: Path, score_id: str, manifest: dict[str, Any]) -> None:
    """Move a job's rows and their manifest to its output atomically.

    The call can be repeated after a crash. The rows are removed once they are in the output.

    Args:
        rows: Folder with the finished files of the job; nothing happens if it does not exist.
        output: As returned by `location`.
        score_id: ID of the job.
        manifest: Manifest to write next to the files.

    Raises:
        StoreError: Another program wrote to the output meanwhile; the rows are kept.
    """
    if rows.is_dir():
        if is_taken(output, score_id):
            raise _taken(output)
        write_json(rows / _MANIFEST, manifest)  # readers of the folder ignore the underscore
        if is_remote(output):
            _upload(rows, output, score_id)
        else:
            _place(rows, output, score_id)
    if is_remote(output):
        with os_errors_as_store_errors(f"write output {output}"):
            (output / _CLAIM).unlink(missing_ok=True)


def _place(rows: Path, output: Path, score_id: str) -> None:
    """Copy the rows next to the output, which may be on another disk, and rename the copy."""
    copy = output.with_name(f".{score_id}")
    with os_errors_as_store_errors(f"write output {output}"):
        if not _is_of(output, score_id):
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir(parents=True)
            for path in rows.iterdir():  # not `copytree`, whose error lists all files
                fsync_file(Path(shutil.copy2(path, copy)))
            fsync_dir(copy)
            try:
                copy.rename(output)  # the system replaces an empty folder, and nothing else
            except OSError as error:
                shutil.rmtree(copy, ignore_errors=True)
                if error.errno in _NOT_EMPTY:
                    raise _taken(output) from error
                raise
            fsync_dir(output.parent)
        shutil.rmtree(rows, ignore_errors=True)


def _upload(rows: Path, output: Path, score_id: str) -> None:
    """Upload the rows after creating a claim, an object that only one job can create."""
    with os_errors_as_store_errors(f"write output {output}"):
        if _has_claimed(output, score_id) and _names(output) != {_CLAIM}:
            (output / _CLAIM).unlink()
            raise _taken(output)
    publish_dir(rows, output)


def _has_claimed(output: Any, score_id: str) -> bool:
    """Return whether this call created the claim, and not an earlier attempt of this job."""
    claim, content = output / _CLAIM, json.dumps({"score_id": score_id}).encode()
    try:
        output.fs.pipe_file(claim.path, content, mode="create")
    except OSError as error:
        if not claim.exists():  # a service without conditional writes
            claim.write_bytes(content)
            return True
        if not _is_of(output, score_id):
            raise _taken(output) from error
        return False
    return True


def _taken(output: Path) -> StoreError:
    return StoreError(
        f"output {output}: no longer empty since the job began; the rows of the job are kept: "
        "move the contents of the output away, then resume the job"
    )
