"""Make texts safe for terminals, HTML pages, Markdown and log records."""

import logging
import re
import traceback
from contextlib import suppress
from typing import Any

from nnbuild.errors import NnbuildError
from nnbuild.runtime.credentials import mask_credentials

_JOINERS = "\u200c\u200d"  # within words of Persian and Hindi, and within emoji
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_MARKDOWN = {**{each: f"\\{each}" for each in "\\`*_[]|~$@"}, "&": "&amp;"}
_MARKDOWN |= {"<": "&lt;", ">": "&gt;"}  # no tag, no quotation
_MARKDOWN_TABLE = str.maketrans(_MARKDOWN)
_OURS = ("nnbuild", "prefect.flow_runs", "prefect.task_runs")  # each line is one event
_PLAIN_CODE = re.compile(r"[\w./:=,+-]+(?: [\w./:=,+-]+)*")


def printable(text: str) -> str:
    r"""Escape characters that control a terminal or are invisible.

    Control characters (ANSI escape sequences begin with one), line breaks, bidirectional overrides,
    zero-width characters and lone surrogates become `\x1b`, `\n`, `\u202e`, … Other characters are
    unchanged.

    Args:
        text: Any text.
    """
    if text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable() or character in _JOINERS or _is_wide_space(character):
        return character
    return _SHORT.get(character) or repr(character)[1:-1]


def _is_wide_space(character: str) -> bool:
    """Return whether a character is a non-ASCII space, but not a line break."""
    return character.isspace() and character > "\x9f" and character not in "\u2028\u2029"


def encodable(text: str) -> str:
    r"""Return a text that UTF-8 can encode; an invalid byte in a file name becomes `\udce9`.

    Args:
        text: Any text, such as a path; valid text is unchanged.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sanitize(text: str) -> str:
    """Mask credentials and escape control characters in a text of one line."""
    return printable(mask_credentials(text))


def sanitize_lines(text: str) -> str:
    """Mask credentials and escape control characters in a text of several lines."""
    return "\n".join(
        "\t".join(map(printable, line.split("\t"))) for line in mask_credentials(text).splitlines()
    )


def join_lines(text: str) -> str:
    """Join the lines of a text, with single spaces between words."""
    return " ".join(text.split())


def markdown_text(text: str) -> str:
    """Escape a text for Markdown, within a sentence or a cell of a table."""
    escaped = sanitize(text.strip()).translate(_MARKDOWN_TABLE)
    escaped = escaped.replace("://", r"\://")  # no automatic links
    escaped = re.sub(r"\b(www)\.", r"\1\\.", escaped, flags=re.IGNORECASE)
    escaped = re.sub(r"!(?=\\\[)", r"\!", escaped)
    return re.sub(r"^(\d+)(?=[.)])|^(?=[#+=-])", lambda found: f"{found[1] or ''}\\", escaped)


def markdown_code(text: str) -> str:
    """Format a text as a code span; as escaped text if it cannot be one."""
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) else markdown_text(text)


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
    message = None
    with suppress(Exception):  # logging reports arguments that do not match
        message = record.getMessage()
    if message is None:
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
