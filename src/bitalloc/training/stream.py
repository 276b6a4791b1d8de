"""An endless stream of batches over any loader, with a position that can be saved and found again."""

import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from bitalloc.errors import FileError, TrainingError
from bitalloc.training.random_state import RandomState, agree_on_order, capture, restore
from bitalloc.training.shares import divide, generators_of


@runtime_checkable
class RandomAccess(Protocol):
    """A loader whose batches can be fetched by number, so that resuming does not have to read what it skips.

    ``set_epoch(epoch)`` is called before, if there is one. ``batch(index)`` must depend on the epoch and the index alone,
    or draw from the global random generators. A loader that reads ahead has ``batches_from(index)`` as well: an iterator over the
    rest of the epoch.
    """

    def __len__(self) -> int: ...

    def batch(self, index: int) -> Any:
        """The batch number ``index`` of the epoch, from 0."""
        ...


class BatchStream:
    """Goes through ``loader`` epoch after epoch. In a distributed launch it gives this rank's part of every batch.

    Three kinds of loader are found again bit for bit: those with ``batch(index)``; those whose order depends on
    ``set_epoch(epoch)``; and those that shuffle with the global random generators or with a ``torch.Generator`` of their own
    (``loader.generator``, ``loader.sampler.generator``: PyTorch's DataLoader). The last two read and drop what was used.
    """

    def __init__(self, loader: Iterable[Any] | RandomAccess) -> None:
        self.epoch = 0
        self.index = 0
        self.epoch_random: RandomState = {}
        self.images = 0
        self.waited = 0.0  # seconds that the last batch took to come
        self._source = loader
        self._loader, self._part = divide(loader)
        self._generators = generators_of(loader)
        self._iterator: Iterator[Any] | None = None

    def next(self) -> Any:
        """The next batch. Raises TrainingError if the loader gives no batch at the start of an epoch."""
        started = time.perf_counter()
        if self._iterator is None:
            self._start_epoch()
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._iterator = None
            if self.index == 0:
                raise TrainingError(self._why_empty()) from None
            self.epoch, self.index = self.epoch + 1, 0
            return self.next()
        self.index += 1
        self.waited = time.perf_counter() - started
        part, self.images = self._part(batch)
        return part

    @cached_property
    def data(self) -> str | None:
        """Identifies the data: the loader's own ``fingerprint()``, else the number of its batches, else None."""
        if hasattr(self._source, "fingerprint"):
            return str(self._source.fingerprint())
        try:
            return f"{len(self._source)} batches"  # type: ignore[arg-type]  # what has no length says so
        except TypeError:  # a DataLoader over an iterable data set has the method, but no length
            return None

    def random(self) -> RandomState:
        """The state of all generators now, those of the loader among them."""
        return capture(self._generators)

    def resume(self, *, epoch: int, index: int, epoch_random: RandomState, random: RandomState) -> None:
        """Goes to the place after batch ``index`` of ``epoch`` and sets the generators to ``random``.

        Raises:
            FileError: the loader has fewer batches or other generators than when the place was noted.
        """
        if not epoch_random:  # noted before the first epoch began
            self.epoch, self.index, self.epoch_random, self._iterator = epoch, index, {}, None
            restore(random, self._generators)
            return
        if len(epoch_random["generators"]) != len(self._generators):
            raise FileError("the checkpoint was made with a loader that has other random generators: use the same loader.")
        restore(epoch_random, self._generators)
        self.epoch = epoch
        self._start_epoch(index)
        if not isinstance(self._loader, RandomAccess):
            self._skip(index)
        self.index = index
        restore(random, self._generators)

    def _start_epoch(self, first: int = 0) -> None:
        agree_on_order(self._generators)
        self.epoch_random = capture(self._generators)
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(self.epoch)
        loader = self._loader
        if hasattr(loader, "batches_from"):
            self._iterator = loader.batches_from(first)
        elif isinstance(loader, RandomAccess) and (first or not isinstance(loader, Iterable)):
            self._iterator = (loader.batch(index) for index in range(first, len(loader)))
        else:
            # The loader iterates itself, with its worker processes if it has some.
            assert isinstance(loader, Iterable)
            self._iterator = iter(loader)

    def _skip(self, count: int) -> None:
        assert self._iterator is not None
        for done in range(count):
            try:
                next(self._iterator)
            except StopIteration:
                raise FileError(
                    f"the checkpoint stands after batch {count} of its epoch, but the loader has only {done}: use the same data."
                ) from None

    def _why_empty(self) -> str:
        if self.epoch == 0:
            return "the loader is empty: there is no data to train on. Check the data set and the batch size."
        return f"the loader gave no batch in epoch {self.epoch + 1}: it can be read only once. Give a DataLoader or a list."
