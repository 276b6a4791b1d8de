"""Which part of every batch a rank works on.

The batch size is that of the whole launch: a batch of N images is cut into one part a rank, in order, of sizes that differ by at most
one. So a run gives the same on one rank and on several, up to the order of sums.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from bitalloc.errors import ConfigError, TrainingError
from bitalloc.training.accumulate import split
from bitalloc.training.batches import image_count
from bitalloc.training.random_state import agree_on_order, own_random
from bitalloc.training.ranks import rank, world_size


@runtime_checkable
class Divisible(Protocol):
    """A loader that reads a part of every batch alone, so that no rank decodes the images of another."""

    def share(self, rank: int, ranks: int) -> Any:
        """A loader of as many batches, each part number ``rank`` of ``ranks``, never empty.

        Raises:
            ConfigError: a part would be empty; then every rank reads whole batches instead.
        """
        ...


Part = tuple[Any, int]
"""A rank's part of a batch, and how many images of it count.

That is all, but for a batch with fewer images than ranks: a rank that gets none gives an image of another with the number 0, so that all
ranks do the same. It weighs nothing.
"""


def divide(loader: Any) -> tuple[Any, Callable[[Any], Part]]:
    """A loader for this rank, and what makes a :data:`Part` of each of its batches.

    Loaders that can :meth:`~Divisible.share`, and PyTorch's DataLoaders over a data set with numbered samples, read the rank's part
    alone. All others are read whole by every rank, and cut.

    Raises:
        TrainingError: the loader is divided already.
    """
    if world_size() == 1:
        return loader, _counted
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler) or type(loader).__module__.startswith("accelerate."):
        raise TrainingError(
            "the loader is divided over the ranks already (a DistributedSampler or accelerator.prepare): give the plain loader, of which "
            "every rank takes its part of each batch itself."
        )
    if isinstance(loader, Divisible):
        with suppress(ConfigError):
            return loader.share(rank(), world_size()), _counted
    if isinstance(loader, DataLoader) and loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset):
        return DividedLoader(loader, rank(), world_size()), _as_it_is
    return loader, _cut


def one_pass(loader: Any) -> Iterator[Part]:
    """This rank's part of every batch, once through the loader. To be called by all ranks together."""
    divided, part = divide(loader)
    agree_on_order(generators_of(loader))
    return map(part, divided)


def generators_of(loader: object) -> list[torch.Generator]:
    """The generators that a loader owns (its own, its sampler's), each once."""
    owners = (loader, getattr(loader, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    unique = {id(item): item for item in found if isinstance(item, torch.Generator)}
    return list(unique.values())


def _counted(batch: Any) -> Part:
    return batch, image_count(batch)


def _as_it_is(part: Part) -> Part:
    return part


def _cut(batch: Any) -> Part:
    count = image_count(batch)
    if count == 0:
        raise TrainingError(
            f"a batch is a {type(batch).__name__} without a tensor of images, so it cannot be divided over {world_size()} ranks: "
            "give a loader with a method share(rank, ranks), see bitalloc.training.Divisible."
        )
    parts = [part for part, _ in split(batch, min(count, world_size()))]
    return (parts[rank()], image_count(parts[rank()])) if rank() < count else (parts[0], 0)


@final
class DividedLoader:
    """One rank's part of every batch of a DataLoader, with the order that one process would see.

    The order is drawn as in one process. Whatever else is drawn while samples are read (augmentation) comes from a random stream of
    each rank's own, in this process and in worker processes, and leaves the global generators as they were.
    """

    def __init__(self, loader: DataLoader[Any], rank: int, ranks: int) -> None:
        self._loader, self._rank, self._ranks = loader, rank, ranks

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Part]:
        loader = self._loader
        # A DataLoader draws a seed for its workers before its sampler draws the order.
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator))
        parts = [self._part(list(indices)) for indices in loader.batch_sampler or ()]
        options: dict[str, Any] = {"prefetch_factor": loader.prefetch_factor} if loader.num_workers else {}
        inner = DataLoader(
            loader.dataset,
            batch_sampler=[indices for indices, _ in parts],
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator().manual_seed(_mixed(seed, self._rank)),
            **options,
        )
        return self._read(iter(inner), [images for _, images in parts], seed)

    def set_epoch(self, epoch: int) -> None:
        """Passed on, if the loader has such a method."""
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(epoch)

    def _part(self, indices: Sequence[Any]) -> tuple[list[Any], int]:
        """The samples of this rank, and how many of them count."""
        start, end = (len(indices) * number // self._ranks for number in (self._rank, self._rank + 1))
        return list(indices[start:end] or indices[:1]), end - start

    def _read(self, batches: Iterator[Any], images: Sequence[int], seed: int) -> Iterator[Part]:
        for index, count in enumerate(images):
            with own_random(_mixed(seed, self._rank, index)) if self._loader.num_workers == 0 else nullcontext():
                batch = next(batches)
            yield batch, count


def _mixed(*key: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1
