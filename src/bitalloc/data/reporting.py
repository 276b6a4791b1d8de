"""Where the decoding of a data set shows its progress."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol


class Reporter(Protocol):
    """What shows progress; :class:`bitalloc.training.Progress` is one."""

    def task(self, name: str, total: int | None) -> AbstractContextManager[None]:
        """Starts ``total`` units of work, and finishes it when the block ends."""
        ...

    def advance(self, n: int = 1) -> None:
        """``n`` more units are done."""
        ...


class _Nowhere:
    def task(self, name: str, total: int | None) -> AbstractContextManager[None]:
        return nullcontext()

    def advance(self, n: int = 1) -> None:
        pass


_NOWHERE = _Nowhere()
_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


@contextmanager
def showing_progress(reporter: Reporter) -> Iterator[None]:
    """Within the block, data sets that are decoded into memory show it on ``reporter``; by default nowhere.

    A data factory has no argument for it, because recipes call every factory with the same arguments.
    """
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def reporter() -> Reporter:
    """What shows progress at the moment."""
    return _reporter.get() or _NOWHERE
