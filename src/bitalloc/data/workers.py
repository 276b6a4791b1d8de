"""Worker processes that make the next batches while the model computes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

import torch
import torch.multiprocessing  # tensors then come from a worker through shared memory
from torch import Tensor

from bitalloc.errors import TrainingError

_AHEAD = 2  # batches a worker that are made or waiting, so that memory is bounded

Made = tuple[Tensor, Tensor]


class Maker(Protocol):
    """Makes the batches of an epoch by number. A worker gets a copy."""

    num_workers: int

    def __len__(self) -> int: ...

    def pixels(self, index: int) -> Made:
        """One batch, on the CPU."""
        ...

    def origin(self, index: int) -> str:
        """Where its first image comes from."""
        ...


def from_workers(maker: Maker, first: int) -> Iterator[Made]:
    """Batches ``first``, ``first + 1``, ... in order, each made by one of ``maker.num_workers`` processes.

    Raises:
        TrainingError: a worker died. It is noticed when a batch is asked for, never in the middle of a training step.
        Exception: what making a batch raised in its worker.
    """
    # Not PyTorch's DataLoader: it raises from a signal handler when a worker dies, in whatever the training is doing then.
    pool = ProcessPoolExecutor(maker.num_workers, initializer=_start_worker, initargs=(maker,))
    waiting: deque[tuple[int, Future[Made]]] = deque()
    following = iter(range(first, len(maker)))
    awaited = first
    try:
        while True:
            while len(waiting) < _AHEAD * maker.num_workers and (index := next(following, None)) is not None:
                waiting.append((index, pool.submit(_make, index)))
            if not waiting:
                return
            awaited, made = waiting.popleft()
            yield made.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            f"a worker process that reads the data died before batch {awaited} of the epoch was there (its first image: "
            f"{maker.origin(awaited)}): it was killed, perhaps because memory ran out. Start again with fewer workers (num_workers) or "
            "smaller batches; a training with checkpoints goes on where it was."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_maker: Maker | None = None


def _start_worker(maker: Maker) -> None:
    global _maker  # noqa: PLW0603 (the one value that a worker lives for)
    _maker = maker
    torch.set_num_threads(1)  # threads of the parent do not survive a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the training decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a parent that was killed cannot tell its workers to stop


def _make(index: int) -> Made:
    assert _maker is not None
    return _maker.pixels(index)
