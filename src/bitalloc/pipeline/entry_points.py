"""Loading what a recipe names as ``package.module:function``."""

import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bitalloc.errors import BitallocError, ConfigError


def call_entry_point(name: str, key: str, arguments: Mapping[str, Any]) -> Any:
    """Imports ``package.module:function`` and calls the function.

    The current folder is searched as well, so a user's own file works without an installation.

    Args:
        name: what the recipe says.
        key: the recipe's key, for messages.
        arguments: keyword arguments of the call.

    Raises:
        ConfigError: the module or the function does not exist, or the call fails; the original error is the cause.
    """
    module_name, function_name = name.split(":")
    module = _import(name, key)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{key} = {name!r}: the module {module_name} has no function {function_name}.")
    try:
        return function(**arguments)
    except BitallocError:
        raise
    except Exception as error:
        raise ConfigError(f"{key} = {name!r}: calling it with {dict(arguments)} failed ({type(error).__name__}: {error}).") from error


def source_digest(name: str, key: str) -> str:
    """A SHA-256 of the source file that ``package.module:function`` lies in, so that an edited file is noticed.

    What that file imports is not followed. Empty for a module without a source file.

    Raises:
        ConfigError: the module cannot be imported.
    """
    path = getattr(_import(name, key), "__file__", None)
    return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _import(name: str, key: str) -> ModuleType:
    module_name = name.split(":", maxsplit=1)[0]
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that a file here hides no installed package
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key} = {name!r}: the module {module_name} cannot be imported ({reason}).") from error
