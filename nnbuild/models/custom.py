"""Import and call the user's function that builds a network, and report its errors."""

import asyncio
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
    """Add the current folder to the end of Python's search path in a block.

    For `python script.py`, Python puts the script's folder first; for an installed command, or with
    `-P`, nowhere. At the start of the path, a `json.py` next to the user's model would replace that
    of the standard library.
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
    """Import a module by name; one in the current folder takes precedence.

    Raises:
        ConfigError: The current folder has a module whose name another module already uses.
        Exception: The module raised it.
    """
    with current_folder_importable():
        top = name.partition(".")[0]
        spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd())])
        if spec is not None and spec.origin is not None:
            _load(top, spec)
        return importlib.import_module(name)


# Files of the modules that were loaded from the current folder, which may change.
_loaded: dict[str, str] = {}


def _load(name: str, spec: importlib.machinery.ModuleSpec) -> None:
    """Load a module of the current folder, unless it is loaded already."""
    known = sys.modules.get(name)
    origin = str(spec.origin)
    if known is not None and _is_file(known, origin):
        return
    if name in sys.stdlib_module_names or (known is not None and name not in _loaded):
        other = getattr(known, "__file__", None) or "a module of Python"
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
    """Return whether a module was loaded from a file; links are followed."""
    loaded = Path(getattr(module, "__file__", None) or "")
    return loaded.is_file() and loaded.samefile(path)


_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def import_factory(name: str) -> Callable[..., Any]:
    """Import the user's function from the current folder or the installed packages.

    The import also registers the custom layers of its module.

    Args:
        name: Name of the form `package.module:function`.

    Raises:
        ConfigError: The name is malformed, or the function or its module cannot be imported.
    """
    if not _FACTORY.fullmatch(name):
        raise ConfigError(
            f"model {name!r} does not have the form package.module:function; "
            "write it like mymodels.small:build"
        )
    module_name, function_name = name.split(":")
    try:
        module = import_module(module_name)
    except ConfigError as error:
        raise ConfigError(f"model {name!r}: {error}") from error
    except BaseException as error:  # the user's module can raise anything
        if _is_request_to_stop(error):
            raise
        raise ConfigError(
            f"model {name!r}: cannot import {module_name} ({raised(error)}) from the current "
            f"folder, {Path.cwd()}, or the installed packages; run nnbuild in the folder of the "
            "module, or install it"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(
            f"model {name!r}: {module_name} has no function {function_name}; "
            f"{suggestion(function_name, functions)}"
        )
    return function  # type: ignore[no-any-return]


def _is_request_to_stop(error: BaseException) -> bool:
    """Return whether an error asks the process or its flow run to stop, like Prefect's signals."""
    stops = (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
    return isinstance(error, stops) or type(error).__module__ == "prefect.exceptions"


def factory_digest(name: str) -> str:
    """Return the SHA-256 of the source of the user's module, 64 hexadecimal digits.

    Raises:
        ConfigError: The function cannot be imported, or its source cannot be read.
    """
    function = import_factory(name)
    module = inspect.getmodule(function) or sys.modules[name.partition(":")[0]]
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"model {name!r}: cannot read its source ({error}); give it as a .py file"
        ) from error
    return hashlib.sha256(source.encode()).hexdigest()


def build_user_model(name: str, shape: Shape, classes: int) -> keras.Model:
    """Call the user's function with those of `input_shape` and `classes` that it accepts.

    Args:
        name: Name of the form `package.module:function`.
        shape: Height and width of an image in pixels, and number of channels.
        classes: Number of classes.

    Raises:
        ConfigError: The function raised an error.
        ContractError: The function did not return an uncompiled Keras model.
    """
    function = import_factory(name)
    try:
        with current_folder_importable():  # the function may import modules
            model = function(**_arguments(function, {"input_shape": shape, "classes": classes}))
    except BaseException as error:  # the user's function can raise anything
        if _is_request_to_stop(error):
            raise
        raise ConfigError(
            f"model {name!r} raised {raised(error)}; it was called with those of "
            f"input_shape={shape} and classes={classes} that it has parameters for"
        ) from error
    if not isinstance(model, keras.Model):
        raise ContractError(
            f"model {name!r} returned {type(model).__name__}, expected an uncompiled keras.Model"
        )
    if model.compiled:
        raise ContractError(
            f"model {name!r} is compiled; return it uncompiled, nnbuild compiles it with its loss"
        )
    return model


def _arguments(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return those values for which a function has parameters."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have no signature
        return values
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return values
    return {each.name: values[each.name] for each in parameters if each.name in values}


@contextmanager
def refusing_user_model(name: str, doing: str) -> Iterator[None]:
    """Convert an error that the user's model raises before training: the model cannot be used.

    Args:
        name: Name of the model in the settings; errors of a named network pass unchanged.
        doing: Participle of what cannot be done with the model, such as `saved`.

    Raises:
        ContractError: The model raised an error.
    """
    with _converting(
        name, lambda problem: ContractError(f"model {name!r} cannot be {doing}: {problem}")
    ):
        yield


@contextmanager
def failing_user_model(name: str, doing: str) -> Iterator[None]:
    """Convert an error that the user's model raises during or after training: the run failed.

    Args:
        name: Name of the model in the settings; errors of a named network pass unchanged.
        doing: Name of the activity, such as `training`.

    Raises:
        RunError: The model raised an error.
    """
    with _converting(
        name, lambda problem: RunError(f"model {name!r} failed in {doing}: {problem}")
    ):
        yield


@contextmanager
def _converting(name: str, as_error: Callable[[str], NnbuildError]) -> Iterator[None]:
    importable = current_folder_importable() if is_factory(name) else nullcontext()
    try:
        with importable:  # a layer may import modules when it is called
            yield
    except (NnbuildError, OSError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except BaseException as error:
        if not is_factory(name) or _is_request_to_stop(error):
            raise
        raise as_error(raised(error)) from error
