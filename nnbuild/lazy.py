"""Names that are imported when they are first asked for: TensorFlow takes seconds, and much does without it."""

import importlib
from collections.abc import Mapping
from typing import Any


def find(name: str, places: Mapping[str, tuple[str, ...]], package: str) -> Any:
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
