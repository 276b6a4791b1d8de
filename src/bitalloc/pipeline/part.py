"""A share of every epoch's batches."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any


def part(loader: Any, fraction: float) -> Any:
    """The first ``fraction`` (0 to 1, at least one batch) of the batches that ``loader`` gives in every epoch.

    A shuffling loader gives another share of the data in every epoch. What the loader can do beyond iterating
    (``set_epoch``, ``batch``, its generator), the part can do too.
    """
    if fraction >= 1:
        return loader
    count = math.ceil(fraction * len(loader))
    if not hasattr(loader, "batch"):
        return _Part(loader, count)
    if not hasattr(loader, "share"):
        return _IndexedPart(loader, count)
    return _ReadAheadPart(loader, count) if hasattr(loader, "batches_from") else _DivisiblePart(loader, count)


class _Part:
    def __init__(self, loader: Any, count: int) -> None:
        self._loader = loader
        self._count = count
        self.generator = getattr(loader, "generator", None)
        self.sampler = getattr(loader, "sampler", None)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._loader), self._count)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(epoch)


class _IndexedPart(_Part):
    def batch(self, index: int) -> Any:
        return self._loader.batch(index)


class _DivisiblePart(_IndexedPart):
    def share(self, rank: int, ranks: int) -> Any:
        return type(self)(self._loader.share(rank, ranks), self._count)


class _ReadAheadPart(_DivisiblePart):
    def batches_from(self, index: int) -> Iterator[Any]:
        return islice(self._loader.batches_from(index), self._count - index)
