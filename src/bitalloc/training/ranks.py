"""The processes of a distributed launch, called ranks, and what they tell each other. With one process all this does nothing.

Every function here but :func:`world_size`, :func:`rank` and :func:`is_main` has to be called by all ranks, in the same order.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast, final

import torch
from torch import Tensor, distributed

from bitalloc.errors import TrainingError
from bitalloc.training.device import device, processes

T = TypeVar("T")

_BUCKET = 1 << 24
"""Elements that are sent at once: enough to be limited by the network's rate, few enough that the copy is small."""


@final
class LostRankError(TrainingError):
    """Another rank does not answer any more."""


def world_size() -> int:
    """How many processes were launched; 1 without a launcher."""
    return processes()[1]


def rank() -> int:
    """The number of this process, from 0."""
    return processes()[0]


def is_main() -> bool:
    """Whether this is the process that writes files and prints: rank 0."""
    return rank() == 0


def summed(values: Sequence[float]) -> list[float]:
    """The sum over all ranks of every value, in float64."""
    if world_size() == 1:
        return [float(value) for value in values]
    # Numbers that leave the machine are kept in the precision that counts have, however large the data is.
    total = torch.tensor(values, dtype=torch.float64, device=device())
    with _connected():
        distributed.all_reduce(total)
    return cast("list[float]", total.tolist())


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """For every flag, whether it is set on any rank."""
    return flags if world_size() == 1 else tuple(count > 0 for count in summed(flags))


def sum_in_place(tensors: Sequence[Tensor], factor: float) -> None:
    """Every tensor becomes the sum over all ranks of ``factor`` (each rank's own) times it."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).mul_(factor)
        with _connected():
            distributed.all_reduce(flat)
        _spread(flat, bucket)


def take_from_main(tensors: Sequence[Tensor]) -> None:
    """Every tensor becomes that of rank 0."""
    if world_size() == 1:
        return
    for bucket in _buckets([tensor for tensor in tensors if tensor.numel()]):
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket]).to(device())
        with _connected():
            distributed.broadcast(flat.view(torch.uint8), 0)  # as bytes: not every backend sends every type
        _spread(flat, bucket)


def from_main(value: T) -> T:
    """The value of rank 0, on all ranks."""
    if world_size() == 1:
        return value
    box = [value]
    with _connected():
        distributed.broadcast_object_list(box, 0, device=device())
    return box[0]


def gathered(value: T) -> list[T]:
    """The values of all ranks, on all ranks."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    with _connected():
        distributed.all_gather_object(values, value)
    return cast("list[T]", values)


@contextmanager
def together() -> Iterator[None]:
    """Ends when the block has ended on all ranks; an error on one of them is raised on all.

    The block must not talk to other ranks itself: a rank that failed would miss the conversation.

    Raises:
        TrainingError: another rank failed; it says which and why.
    """
    if world_size() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except LostRankError:
        raise
    except Exception as error:
        failure = error
    if any_rank(failure is not None)[0]:
        raise_everywhere(failure)


def raise_everywhere(failure: Exception | None) -> None:
    """Raises this rank's failure, or where there is none, a TrainingError that tells what happened on another. One must have failed."""
    texts = gathered(None if failure is None else " ".join(f"{failure}".split()) or type(failure).__name__)
    if failure is not None:
        setattr(failure, TOLD, True)
        raise failure
    where, text = next((index, text) for index, text in enumerate(texts) if text is not None)
    error = TrainingError(f"rank {where} of {len(texts)} stopped: {text}")
    setattr(error, TOLD, True)
    raise error


TOLD = "told_to_all_ranks"
"""The attribute of errors that rank 0 knows of, so that it alone has to print them."""


@contextmanager
def _connected() -> Iterator[None]:
    """Turns the failure of a connection into a sentence."""
    try:
        yield
    except RuntimeError as error:
        # The first sentence, without the place in a library's source that it begins with.
        reason = re.sub(r"^\[[^\]]*\] ", "", " ".join(str(error).split())).split(". ")[0] or type(error).__name__
        raise LostRankError(
            f"rank {rank()} of {world_size()} lost the others: one of them was killed or is out of reach ({reason}). Look at its output; "
            "started again with the same number of processes, the run goes on from its last checkpoint."
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in groups of one dtype and limited size."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        if bucket and (held + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    if bucket:
        yield bucket


@torch.no_grad()
def _spread(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
