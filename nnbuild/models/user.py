"""A network of the user's own: a function that is imported by name and returns an uncompiled Keras model."""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnbuild.backend import keras
from nnbuild.errors import ConfigError, ContractError, suggestion
from nnbuild.models.networks import Shape

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def import_factory(name: str) -> Callable[..., Any]:
    """Import a user's function, from the installed packages or the working folder.

    Importing it also registers the custom layers that its module brings.

    Raises:
        ConfigError: the name is malformed, or the module or the function is missing or fails to import.
    """
    if not _FACTORY.fullmatch(name):
        raise ConfigError(
            f"model {name!r} is not of the form package.module:function; name it like mymodels.small:build"
        )
    module_name, function_name = name.split(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(
            f"model {name!r}: cannot import {module_name} ({type(error).__name__}: {error}); "
            "run where it can be imported, or install it"
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
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
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
    offered = {"input_shape": shape, "classes": classes}
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    wanted = (
        offered
        if takes_any
        else {each.name: offered[each.name] for each in parameters if each.name in offered}
    )
    try:
        model = function(**wanted)
    except Exception as error:  # the user's function may raise anything
        raise ConfigError(
            f"model {name!r} raised {type(error).__name__}: {error}; it is called with input_shape={shape} and "
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
