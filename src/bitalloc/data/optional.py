"""Optional packages that fail with a sentence that says what to install."""

import importlib
from typing import Any

from bitalloc.errors import MissingDependencyError


def load(module: str, package: str, purpose: str) -> Any:
    """Imports ``module``. Raises MissingDependencyError, naming ``package`` and the extra, if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{purpose} needs {package}, which is not installed: run pip install 'bitalloc[data]'.") from error
