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
    return _IndexedPart(loader, fraction) if hasattr(loader, "batch") else _Part(loader, fraction)


class _Part:
    def __init__(self, loader: Any, fraction: float) -> None:
        self._loader = loader
        self._count = math.ceil(fraction * len(loader))
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
