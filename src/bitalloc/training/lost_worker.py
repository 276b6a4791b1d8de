"""A sentence for the death of a DataLoader's worker process."""

from collections.abc import Iterator
from contextlib import contextmanager

from bitalloc.errors import TrainingError


@contextmanager
def worker_deaths_explained() -> Iterator[None]:
    """Turns PyTorch's error about a dead worker into a TrainingError.

    PyTorch raises it from a signal handler, so it can come out of any line of a training step, not only where a batch is read.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"a worker process of the DataLoader died ({reason}): it was killed, perhaps because memory ran out. Start again with fewer "
            "workers (num_workers) or smaller batches; a training with checkpoints goes on from the last one."
        ) from error
