"""Loading what a recipe names as ``package.module:function``."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
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
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key} = {name!r}: the module {module_name} cannot be imported ({reason}).") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{key} = {name!r}: the module {module_name} has no function {function_name}.")
    try:
        return function(**arguments)
    except BitallocError:
        raise
    except Exception as error:
        raise ConfigError(f"{key} = {name!r}: calling it with {dict(arguments)} failed ({type(error).__name__}: {error}).") from error
