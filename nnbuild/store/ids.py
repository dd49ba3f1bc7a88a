"""Names and IDs in a store; a valid one never leads out of the store."""

import re
import secrets
from datetime import UTC, datetime, timedelta

from nnbuild.errors import StoreError

_RUN_ID = re.compile(r"\d{8}T\d{9}Z-[0-9a-f]{6}", re.ASCII)
_TEMPORARY = re.compile(r"\.nnbuild-[0-9a-f]{12}\..+", re.ASCII | re.DOTALL)
_INPUT_LOCK = re.compile(r"\.scoring-[0-9a-f]{32}\.lock", re.ASCII)
_STAMP = "%Y%m%dT%H%M%S%f"  # with microseconds, of which an ID has the milliseconds
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.ASCII)


def new_run_id(now: datetime, newest: str | None = None) -> str:
    """Return an ID that sorts by time: UTC in milliseconds, then six random hexadecimal digits.

    Args:
        now: Start time, with a time zone.
        newest: Newest ID in the store. The new one sorts after it, even if both are of one
            millisecond or the clock was set back.
    """
    stamp = _stamp(now)
    if newest is not None and stamp <= newest[: len(stamp)]:
        ahead = datetime.strptime(f"{newest[: len(stamp) - 1]}+0000", f"{_STAMP}%z")
        stamp = _stamp(ahead + timedelta(milliseconds=1))
    return f"{stamp}-{secrets.token_hex(3)}"


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_STAMP)[:-3] + "Z"


_NAMED_BY = {
    "run_id": ("run ID", "`nnbuild runs`"),
    "score_id": ("ID of a scoring job", "the table score_jobs"),
    "label_id": ("ID of a set of labels", "the table label_jobs"),
}


def require_id(text: str, key: str = "run_id") -> str:
    """Return the ID of a run, a scoring job or a set of labels if it is valid.

    Args:
        text: The ID; all of them have the same form.
        key: Partition key that it is a value of: `run_id`, `score_id` or `label_id`.

    Raises:
        StoreError: It is not valid.
    """
    if not _RUN_ID.fullmatch(text):
        what, place = _NAMED_BY[key]
        raise StoreError(
            f"invalid {what} {text!r} (expected e.g. 20261123T030000000Z-4f2a1c); see {place}"
        )
    return text


def is_run_id(name: str) -> bool:
    """Return whether the name of a folder has the form of a run ID."""
    return _RUN_ID.fullmatch(name) is not None


def require_name(name: str) -> str:
    """Return the name of a table or a dataset if it can be the name of a folder.

    Raises:
        StoreError: It has other characters than lower-case letters, digits, dots, dashes and
            underscores.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise StoreError(
            f"{name!r} is not a valid name in a store; use lower-case letters, digits, "
            "dots, dashes and underscores"
        )
    return name


def temporary_name(name: str) -> str:
    """Return a new name for a file that will be renamed to `name`, with the same ending.

    `nnbuild doctor` recognises the files that a killed process left behind by these names.
    """
    # Cut, since the name may be as long as the file system allows.
    return f".nnbuild-{secrets.token_hex(6)}.{name[-32:]}"


def is_temporary_name(name: str) -> bool:
    """Return whether `temporary_name` made the name."""
    return _TEMPORARY.fullmatch(name) is not None


def input_lock_name(fingerprint: str) -> str:
    """Return the name of the lock file that is shared by the jobs that would write the same rows.

    Args:
        fingerprint: At least 32 hexadecimal digits that are equal for such jobs.
    """
    return f".scoring-{fingerprint[:32]}.lock"


def is_input_lock_name(name: str) -> bool:
    """Return whether `input_lock_name` made the name."""
    return _INPUT_LOCK.fullmatch(name) is not None
