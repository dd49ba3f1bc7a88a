"""A network of the user's own: a function that is imported by name and returns an uncompiled Keras model."""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from nnbuild.config.schema import is_factory
from nnbuild.errors import ConfigError, ContractError, NnbuildError, RunError, raised, suggestion
from nnbuild.models.architectures import Shape
from nnbuild.runtime.tensorflow import keras, tf


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


_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def import_factory(name: str) -> Callable[..., Any]:
    """Import a user's function, from the current folder or the installed packages.

    Importing it also registers the custom layers that its module brings.

    Raises:
        ConfigError: the name is malformed, or the module or the function is missing or fails to import.
    """
    if not _FACTORY.fullmatch(name):
        raise ConfigError(
            f"model {name!r} is not of the form package.module:function; name it like mymodels.small:build"
        )
    module_name, function_name = name.split(":")
    try:
        module = import_module(module_name)
    except ConfigError as error:
        raise ConfigError(f"model {name!r}: {error}") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ConfigError(
            f"model {name!r}: cannot import {module_name} ({raised(error)}) from the current folder, "
            f"{Path.cwd()}, or the installed packages; run where it can be imported, or install it"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(
            f"model {name!r}: {module_name} has no function {function_name}; {suggestion(function_name, functions)}"
        )
    return function  # type: ignore[no-any-return]


def factory_digest(name: str) -> str:
    """sha256 of the source of a user's module, 64 hexadecimal digits: another source is another model.

    Raises:
        ConfigError: as `import_factory`; or the module has no source that can be read.
    """
    function = import_factory(name)
    module = inspect.getmodule(function) or sys.modules[name.partition(":")[0]]
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"model {name!r} has no source that can be read ({error}); give it as a .py file"
        ) from error
    return hashlib.sha256(source.encode()).hexdigest()


def build_user_model(name: str, shape: Shape, classes: int) -> Any:
    """Call a user's function with what it asks for: `input_shape`, `classes`, both or neither.

    Raises:
        ConfigError: the function raises.
        ContractError: it returns something else than an uncompiled Keras model.
    """
    function = import_factory(name)
    try:
        with current_folder_importable():  # the function may import more
            model = function(**_arguments(function, {"input_shape": shape, "classes": classes}))
    except (Exception, SystemExit) as error:  # the user's function may raise anything
        raise ConfigError(
            f"model {name!r} raised {raised(error)}; it is called with input_shape={shape} and "
            f"classes={classes}, as far as it has parameters of these names"
        ) from error
    if not isinstance(model, keras.Model):
        raise ContractError(
            f"model {name!r} returned {type(model).__name__}, expected an uncompiled keras.Model"
        )
    if model.compiled:
        raise ContractError(
            f"model {name!r} is compiled; return it uncompiled, the loss is given by the config"
        )
    return model


def _arguments(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Of what is offered, that which a function has parameters for."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have none
        return offered
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return offered
    return {each.name: offered[each.name] for each in parameters if each.name in offered}


@contextmanager
def refusing_user_model(name: str, doing: str) -> Iterator[None]:
    """Report what a user's model raises in a block, before it is trained, as a model that cannot be used.

    Args:
        name: Of the model, as in the config; a named network's errors pass unchanged.
        doing: What the model cannot be: `saved`, for example.

    Raises:
        ContractError: Something was raised.
    """
    with _reported(
        name, lambda problem: ContractError(f"model {name!r} cannot be {doing}: {problem}")
    ):
        yield


@contextmanager
def failing_user_model(name: str, doing: str) -> Iterator[None]:
    """Report what a user's model raises in a block as a run that failed.

    Args:
        name: As for `refusing_user_model`.
        doing: What was being done: `training`, for example.

    Raises:
        RunError: Something was raised.
    """
    with _reported(name, lambda problem: RunError(f"model {name!r} failed in {doing}: {problem}")):
        yield


@contextmanager
def _reported(name: str, as_error: Callable[[str], NnbuildError]) -> Iterator[None]:
    importable = current_folder_importable() if is_factory(name) else nullcontext()
    try:
        with importable:  # a layer may import more when it is called
            yield
    except (NnbuildError, OSError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except (Exception, SystemExit) as error:
        if not is_factory(name):
            raise
        raise as_error(raised(error)) from error
