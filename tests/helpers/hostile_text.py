"""Texts that a user can give to anything with a name, and that a display would interpret."""

import unicodedata

ESCAPE = "\x1b[31mred\x1b[0m"
HOSTILE = [
    ESCAPE,
    "\x1b]0;title\x07",
    "\x9b31mC1",
    "first\nnnbuild: forged line",
    "back\rover",
    "tab\tbell\x07\x08",
    "\u202egnp.exe",
    "\u2066isolated\u2069",
    "zero\u200bwidth\ufeff",
    "next\x85line\u2028separator",
    "lone\udc80surrogate",
    "[red]markup[/red] [/x] :smile:",
    "pipe | `tick` *star* _under_ ~~gone~~ $x$",
    "<img src=x onerror=alert(1)>",
    "<script>alert('1')</script> &amp; &lt;",
    (
        "[link](javascript:alert(1)) ![image](http://h/x) "
        "http://auto.example www.auto.example a@b.example"
    ),
    "# heading",
    "1. list",
    "- list",
    "> quotation",
    "plain ünïcödé 数字 👩\u200d🔬",
]
"""Terminal sequences, forged lines, Rich markup, Markdown, HTML, and valid text."""

SECRET = "pa@s/s?w#rd"  # noqa: S105  (not a real password)


def controls(text: str, *, allowed: str = "\n") -> set[str]:
    """Return the control and invisible characters of a text."""
    return {
        each
        for each in text
        if unicodedata.category(each) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        and each not in allowed + "\u200d"
    }
