"""What is read out of a batch: inputs, labels, number of images."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from bitalloc.errors import TrainingError


def inputs_of(batch: Any) -> Any:
    """The model's input: the batch itself if it is a tensor, else the first element of a tuple or list.

    Raises:
        TrainingError: the batch is something else.
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, tuple | list) and batch:
        return batch[0]
    raise TrainingError(f"a batch is a {type(batch).__name__}, expected a tensor or a pair (inputs, labels): give a loader of pairs.")


def pair_of(batch: Any) -> tuple[Any, Tensor]:
    """``(inputs, labels)`` of a batch.

    Raises:
        TrainingError: the batch is not a pair with a tensor of labels.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    raise TrainingError(
        f"a batch is a {type(batch).__name__}, expected a pair (inputs, labels) of tensors: give a loader of pairs or your own loss_fn."
    )


def image_count(batch: Any) -> int:
    """The first dimension of the first tensor found in ``batch``; 0 where there is none."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 1
    if is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, entry.name) for entry in fields(batch)]
    values: Iterable[Any] = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((count for count in map(image_count, values) if count), 0)


def non_empty(loader: Iterable[Any], purpose: str) -> Iterator[Any]:
    """The batches of ``loader``.

    Raises:
        TrainingError: there is none; ``purpose`` completes the sentence "no data to ...".
    """
    empty = True
    for batch in loader:
        empty = False
        yield batch
    if empty:
        raise no_data(purpose)


def no_data(purpose: str) -> TrainingError:
    """The error of an empty loader; ``purpose`` completes the sentence "no data to ..."."""
    return TrainingError(f"the loader is empty: there is no data to {purpose}. Check the data set and the batch size.")


def image_total(loader: object) -> int | None:
    """The number of images where the loader knows it, up to the last batch's size where it only knows its batches; else None."""
    count = getattr(loader, "image_count", None)
    if isinstance(count, int):
        return count
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, Sized):
        return len(dataset)
    batch_size = getattr(loader, "batch_size", None)
    return len(loader) * batch_size if isinstance(loader, Sized) and isinstance(batch_size, int) else None
