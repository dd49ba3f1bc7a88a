"""Remove credentials and control characters from all log records of the process."""

import logging
import traceback
from typing import Any

from nnbuild.errors import NnbuildError
from nnbuild.runtime.text import sanitize, sanitize_lines

_OURS = ("nnbuild", "prefect.flow_runs", "prefect.task_runs")  # each line is one event


def sanitize_log_records() -> None:
    """Make every log record of this process safe to display; repeated calls change nothing.

    Libraries log URLs, and Prefect logs exceptions whose messages contain texts of users. A filter
    of a handler is not enough, since Prefect configures the handlers.
    """
    factory = logging.getLogRecordFactory()
    if getattr(factory, "sanitizes", False):
        return

    def make(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = factory(*arguments, **options)
        _sanitize(record)
        return record

    make.sanitizes = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)


def _sanitize(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001  (logging reports arguments that do not match)
        return
    clean = (
        sanitize(_on_one_line(message))
        if record.name.startswith(_OURS)
        else sanitize_lines(message)
    )
    if clean != message:
        record.msg, record.args = clean, ()
    if record.exc_info and isinstance(record.exc_info[1], (NnbuildError, KeyboardInterrupt)):
        record.exc_info = None  # the message is enough for the user
    if record.exc_info and record.exc_info[1] is not None:
        lines = "".join(traceback.format_exception(record.exc_info[1]))
        record.exc_text = sanitize_lines(lines).rstrip("\n")


def _on_one_line(message: str) -> str:
    """Join lines without changing the spaces within a line."""
    return message if message.isprintable() else " ".join(map(str.strip, message.splitlines()))
