"""Names that users chose: short ones that still differ, and names within a sentence.

A name in a right-to-left script reorders the text around it: "x → y" would be shown as "y → x".
Pages put such a name into a `bdi` element; titles, charts and sentences, which are plain text, put
it between U+2068 and U+2069.
"""

import re
from collections import Counter
from collections.abc import Sequence

from nnbuild.runtime import text

_MAX_NAME = 12
_STEP = 2  # characters by which names that collide are lengthened, one at each end
_ISOLATE, _POP = "\u2068", "\u2069"
_OUTSIDE = f"[^{_ISOLATE}{_POP}]*"
_PAIRED = re.compile(f"{_OUTSIDE}(?:{_ISOLATE}{_OUTSIDE}{_POP}{_OUTSIDE})*")


def isolate(name: object) -> str:
    """Return a name that keeps its direction to itself, for plain text without markup."""
    return f"{_ISOLATE}{text.sanitize(str(name))}{_POP}"


def sanitize(value: str) -> str:
    """Mask credentials and escape control characters, except those of `isolate`.

    They are kept only in pairs, since an open isolate would reorder what follows the text.
    """
    if _ISOLATE not in value or not _PAIRED.fullmatch(value):
        return text.sanitize(value)
    pieces = re.split(f"([{_ISOLATE}{_POP}])", value)
    return "".join(each if each in {_ISOLATE, _POP} else text.sanitize(each) for each in pieces)


def shorten(names: Sequence[str]) -> dict[str, str]:
    """Shorten long names to beginning and end; those that would be equal are longer.

    Args:
        names: All names that appear together.

    Returns:
        A short name for each name; different names have different short names.
    """
    lengths = dict.fromkeys(names, _MAX_NAME)
    while True:
        short = {name: _shortened(name, length) for name, length in lengths.items()}
        counts = Counter(short.values())
        equal = [name for name in short if counts[short[name]] > 1 and lengths[name] < len(name)]
        if not equal:
            return short
        for name in equal:
            lengths[name] += _STEP


def _shortened(name: str, length: int) -> str:
    half = length // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-(half - 1) :]}"
