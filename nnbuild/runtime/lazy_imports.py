"""Import names on first use, since TensorFlow takes seconds and many commands do not need it."""

import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any


def attach(name: str, exports: Mapping[str, tuple[str, ...]], package: str) -> Any:
    """Return an attribute of a package that a module exports, for the package's `__getattr__`.

    Args:
        name: Name of the attribute.
        exports: Exported names by module.
        package: Name of the package.

    Raises:
        AttributeError: No module exports the name.
    """
    for module, names in exports.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector during a large import, and exempt the new objects afterwards.

    The import of TensorFlow creates half a million permanent objects. Searching them for cycles
    took 0.8 s of the 3 s of the import, and slowed down every later step.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def import_blocked(name: str) -> Iterator[None]:
    """Make a package that is not imported yet look as if it were not installed, in this block.

    Args:
        name: Name of an optional dependency that another package imports, but that is not needed.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # documented: makes the import fail
    try:
        yield
    finally:
        del sys.modules[name]


def start_arrow_without_pandas() -> None:
    """Make PyArrow's first conversion of a list, for which it would import pandas, without pandas.

    The import takes a quarter of a second and 40 MB. PyArrow drops any error in it, also that of a
    Ctrl-C, and does not import pandas later either. A program can still do so.
    """
    import pyarrow as pa

    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0.0])
    finally:
        sys.meta_path.remove(finder)


class _WithoutPandas(MetaPathFinder):
    """Finder that makes pandas look as if it were not installed.

    A module that is None in `sys.modules` would trip libraries that look there.
    """

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> None:
        """Refuse pandas, and leave other modules to the next finder.

        Raises:
            ModuleNotFoundError: The module is pandas.
        """
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not used here", name=fullname)
