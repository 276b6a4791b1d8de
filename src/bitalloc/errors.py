"""Errors that are meant for the user: one clear sentence, no traceback needed to understand it."""


class BitallocError(Exception):
    """Base of every error that bitalloc raises on purpose.

    The message names the layer, the file or the key, says what was expected and what to do. The command line prints it
    alone and shows the traceback only with ``--debug``.
    """


class DescribeError(BitallocError):
    """A model could not be described on the example input."""


class SpaceError(BitallocError):
    """A search space, a table or a pattern does not fit the layers."""


class PolicyError(BitallocError):
    """A policy is malformed or belongs to another model."""


class FileError(BitallocError):
    """A file is missing, truncated, edited by hand, of another schema version, or cannot be written."""


class BudgetError(BitallocError):
    """A budget is written in a way that cannot be understood."""


class InfeasibleError(BitallocError):
    """No policy of the search space meets all budgets."""


class QuantizerError(BitallocError):
    """A quantizer is used before it is initialised, or with a width that it has no step size for."""


class TrainingError(BitallocError):
    """Training cannot start or cannot go on (empty loader, loss or weights not finite)."""


class ExportError(BitallocError):
    """A model cannot be written to the target format, or the file does not agree with the model."""


class ConfigError(BitallocError):
    """A recipe or a command-line option is not valid."""


class MissingDependencyError(BitallocError):
    """An optional package is needed and not installed."""
