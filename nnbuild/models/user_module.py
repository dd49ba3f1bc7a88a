"""The module of a user's model function: imported from the current folder, or from the installed packages."""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from nnbuild.errors import ConfigError


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let modules of the current folder be imported in a block, after all others.

    Python itself puts the current folder first for `python script.py` and nowhere for an installed
    command, or under `-P`. First, a `json.py` beside the user's model would take the standard library's
    place.
    """
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def import_module(name: str) -> ModuleType:
    """Import a module by its name: the one in the current folder, if there is one, by its file.

    Raises:
        ConfigError: The current folder has a module of that name, and another one is in use by it.
        Exception: Whatever the module raises.
    """
    with current_folder_importable():
        top = name.partition(".")[0]
        spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd())])
        if spec is not None and spec.origin is not None:
            _load(top, spec)
        return importlib.import_module(name)


# Modules that were loaded from a current folder; the folder may be another the next time.
_loaded: dict[str, str] = {}


def _load(name: str, spec: importlib.machinery.ModuleSpec) -> None:
    """Load a module of the current folder, unless it is loaded already."""
    there = sys.modules.get(name)
    origin = str(spec.origin)
    if there is not None and _is_file(there, origin):
        return
    if name in sys.stdlib_module_names or (there is not None and name not in _loaded):
        other = getattr(there, "__file__", None) or "one of Python's own"
        raise ConfigError(
            f"{origin} has the name of another module, {other}; give your file another name"
        )
    for old in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
        del sys.modules[old]
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _loaded[name] = origin


def _is_file(module: ModuleType, path: str) -> bool:
    """Whether a module was loaded from a file, by whatever links its path leads there."""
    loaded = Path(getattr(module, "__file__", None) or "")
    return loaded.is_file() and loaded.samefile(path)
