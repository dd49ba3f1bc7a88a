"""Names that are imported when they are first asked for: TensorFlow takes seconds, and much does without it."""

import gc
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def attach(name: str, places: Mapping[str, tuple[str, ...]], package: str) -> Any:
    """The object behind a name of a package, for its `__getattr__`.

    Args:
        name: what was asked for.
        places: the names of each module.
        package: who was asked.

    Raises:
        AttributeError: no module has the name.
    """
    for module, names in places.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import something large. Python's search for cycles rests meanwhile, and leaves alone what was made from then on.

    The imports make half a million objects that stay. Looking through them again and again took 0.8 of the 3 s of
    TensorFlow's import, and a part of each step behind it.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if searching:
            gc.enable()
