"""Log records without credentials and control characters, whoever writes them."""

import logging
import traceback
from typing import Any

from nnbuild.errors import NnbuildError
from nnbuild.runtime.text import sanitize, sanitize_lines

_OURS = ("nnbuild", "prefect.flow_runs", "prefect.task_runs")  # a line of these is one event


def sanitize_log_records() -> None:
    """Make every log record of this process safe to show. A second call changes nothing.

    Libraries write URLs into their messages, and users' texts are in the messages of exceptions that
    Prefect logs. A handler's filter would not do: Prefect configures the handlers.
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
    except Exception:  # noqa: BLE001  (logging itself reports a message that does not fit its arguments)
        return
    clean = (
        sanitize(_on_one_line(message))
        if record.name.startswith(_OURS)
        else sanitize_lines(message)
    )
    if clean != message:
        record.msg, record.args = clean, ()
    if record.exc_info and isinstance(record.exc_info[1], (NnbuildError, KeyboardInterrupt)):
        record.exc_info = None  # the message is for the user, who is not to read our code
    if record.exc_info and record.exc_info[1] is not None:
        lines = "".join(traceback.format_exception(record.exc_info[1]))
        record.exc_text = sanitize_lines(lines).rstrip("\n")


def _on_one_line(message: str) -> str:
    """Join lines, and leave the spaces within a line as they are."""
    return message if message.isprintable() else " ".join(map(str.strip, message.splitlines()))
