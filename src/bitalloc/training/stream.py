"""An endless stream of batches over any loader, with a position that can be saved and found again."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from bitalloc.errors import FileError, TrainingError
from bitalloc.training.random_state import RandomState, capture, restore


@runtime_checkable
class RandomAccess(Protocol):
    """A loader whose batches can be fetched by number, so that resuming does not have to read what it skips.

    ``set_epoch(epoch)`` is called before, if there is one. ``batch(index)`` must depend on the epoch and the index alone,
    or draw from the global random generators.
    """

    def __len__(self) -> int: ...

    def batch(self, index: int) -> Any:
        """The batch number ``index`` of the epoch, from 0."""
        ...


class BatchStream:
    """Goes through ``loader`` epoch after epoch.

    Three kinds of loader are found again bit for bit: those with ``batch(index)``; those whose order depends on
    ``set_epoch(epoch)``; and those that shuffle with the global random generators or with a ``torch.Generator`` of their own
    (``loader.generator``, ``loader.sampler.generator``: PyTorch's DataLoader). The last two read and drop what was used.
    """

    def __init__(self, loader: Iterable[Any] | RandomAccess) -> None:
        self.epoch = 0
        self.index = 0
        self.epoch_random: RandomState = {}
        self._loader = loader
        self._generators = _generators_of(loader)
        self._iterator: Iterator[Any] | None = None

    def next(self) -> Any:
        """The next batch. Raises TrainingError if the loader gives no batch at the start of an epoch."""
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
        return batch

    def random(self) -> RandomState:
        """The state of all generators now, those of the loader among them."""
        return capture(self._generators)

    def resume(self, *, epoch: int, index: int, epoch_random: RandomState, random: RandomState) -> None:
        """Goes to the place after batch ``index`` of ``epoch`` and sets the generators to ``random``.

        Raises:
            FileError: the loader has fewer batches or other generators than when the place was noted.
        """
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
        self.epoch_random = capture(self._generators)
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(self.epoch)
        loader = self._loader
        if isinstance(loader, RandomAccess) and (first or not isinstance(loader, Iterable)):
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


def _generators_of(loader: object) -> list[torch.Generator]:
    owners = (loader, getattr(loader, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    unique = {id(item): item for item in found if isinstance(item, torch.Generator)}
    return list(unique.values())
