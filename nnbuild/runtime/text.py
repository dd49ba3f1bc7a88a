"""Text of users, made safe for a terminal, a log, an HTML page and Markdown."""

import re

from nnbuild.runtime.credentials import mask_credentials

_JOINERS = "\u200c\u200d"  # within words of Persian and Hindi, and within emoji
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_MARKDOWN = {**{each: f"\\{each}" for each in "\\`*_[]|~$@"}, "&": "&amp;"}
_MARKDOWN |= {"<": "&lt;", ">": "&gt;"}  # no tag, no quotation
_MARKDOWN_TABLE = str.maketrans(_MARKDOWN)
_PLAIN_CODE = re.compile(r"[\w./:=,+-]+(?: [\w./:=,+-]+)*")


def printable(text: str) -> str:
    r"""Escape what a terminal would obey or a reader could not see.

    Control characters (ANSI escape sequences begin with one), line breaks, bidirectional overrides,
    zero-width characters and lone surrogates become `\x1b`, `\n`, `\u202e`, … Everything else stays.

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
    """Return whether a character is a space other than the ASCII one, and no line break."""
    return character.isspace() and character > "\x9f" and character not in "\u2028\u2029"


def encodable(text: str) -> str:
    r"""Return a text that UTF-8 can encode: a file name's byte that is not UTF-8 becomes `\udce9`.

    Args:
        text: Any text, such as a path; one that can be encoded stays as it is.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def sanitize(text: str) -> str:
    """Mask the credentials in a text and escape its control characters, for one line."""
    return printable(mask_credentials(text))


def sanitize_lines(text: str) -> str:
    """Do the same for a text of several lines, such as a traceback."""
    return "\n".join(
        "\t".join(map(printable, line.split("\t"))) for line in mask_credentials(text).splitlines()
    )


def join_lines(text: str) -> str:
    """Return a text of several lines as one, with single spaces between its words."""
    return " ".join(text.split())


def markdown_text(text: str) -> str:
    """Escape a text so that Markdown shows it literally, within a sentence or a cell of a table."""
    escaped = sanitize(text.strip()).translate(_MARKDOWN_TABLE)
    escaped = escaped.replace("://", r"\://")  # no automatic links
    escaped = re.sub(r"\b(www)\.", r"\1\\.", escaped, flags=re.IGNORECASE)
    escaped = re.sub(r"!(?=\\\[)", r"\!", escaped)
    return re.sub(r"^(\d+)(?=[.)])|^(?=[#+=-])", lambda found: f"{found[1] or ''}\\", escaped)


def markdown_code(text: str) -> str:
    """Return a text as a span of code; escaped as text, where it holds what a span cannot."""
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) else markdown_text(text)
