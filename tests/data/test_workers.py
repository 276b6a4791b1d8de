"""Batches made by worker processes: the same as without, also after a kill."""

import multiprocessing
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitalloc.data import ImageSource, StreamedBatches
from bitalloc.errors import FileError, TrainingError
from bitalloc.training import CheckpointConfig, cross_entropy_loss, fit, loss_step, sgd

Image = pytest.importorskip("PIL.Image")
COUNT = 66


class Colours(ImageSource):
    """Images of one colour; number 50 can be made to fail."""

    num_classes = 3

    def __init__(self, broken: int = -1) -> None:
        self.labels = torch.arange(COUNT) % 3
        self.broken = broken

    def encoded(self, number: int) -> bytes:
        raise NotImplementedError

    def image(self, number: int) -> Any:
        if number == self.broken:
            raise FileError(f"{self.origin(number)} cannot be read.")
        return Image.new("RGB", (6, 5), (number, 255 - number, 9))

    def origin(self, number: int) -> str:
        return f"colour {number}"

    def fingerprint(self, numbers: Tensor) -> str:
        return str(numbers.tolist())


def make(workers: int, broken: int = -1) -> StreamedBatches:
    return StreamedBatches(Colours(broken), torch.arange(COUNT), 2, 4, workers, seed=1, shuffle=True, augment=True)


def children() -> list[Any]:
    return multiprocessing.active_children()


def test_batches_are_the_same_with_and_without_workers_from_any_position() -> None:
    plain, read_ahead = make(0), make(2)
    for epoch, first in ((0, 0), (3, 31), (3, 33)):
        plain.set_epoch(epoch)
        read_ahead.set_epoch(epoch)
        expected, found = list(plain)[first:], list(read_ahead.batches_from(first))
        assert len(found) == 33 - first
        for (images, labels), (other_images, other_labels) in zip(expected, found, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)


def test_shares_of_ranks_read_their_own_images_and_make_up_the_whole() -> None:
    whole = make(0)
    whole.set_epoch(3)
    parts = [whole.share(rank, 2) for rank in range(2)]
    images = torch.cat([part.batch(4)[0] for part in parts])
    assert torch.equal(images, whole.batch(4)[0])
    assert [part.image_count for part in parts] == [33, 33]


def test_batches_and_sources_can_be_sent_to_a_process() -> None:
    assert torch.equal(pickle.loads(pickle.dumps(make(2))).batch(3)[0], make(0).batch(3)[0])


def test_the_error_of_a_worker_is_the_error_of_the_reader() -> None:
    with pytest.raises(FileError, match=r"^colour 50 cannot be read\.$"):
        list(make(2, broken=50))


def killing(batches: StreamedBatches, after: int) -> Iterator[Any]:
    """The batches; the workers (all, so that none can do the work of another) are killed after some of them."""
    for index, batch in enumerate(batches.batches_from(0)):
        if index == after:
            for child in children():
                child.kill()
        yield batch


def test_a_killed_worker_is_named_with_what_it_read() -> None:
    batches = make(2)
    with pytest.raises(TrainingError, match=r"worker process .* died before batch \d+ .*first image: colour \d+.*num_workers"):
        list(killing(batches, after=1))


class Killed:
    """Batches whose workers are killed in one epoch."""

    def __init__(self, batches: StreamedBatches, epoch: int) -> None:
        self._batches, self._epoch, self._now = batches, epoch, 0
        self.fingerprint = batches.fingerprint

    def __len__(self) -> int:
        return len(self._batches)

    def set_epoch(self, epoch: int) -> None:
        self._now = epoch
        self._batches.set_epoch(epoch)

    def batch(self, index: int) -> Any:
        return self._batches.batch(index)

    def batches_from(self, index: int) -> Iterator[Any]:
        return killing(self._batches, 3) if self._now == self._epoch else self._batches.batches_from(index)


def train(loader: Any, checkpoint: Path | None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    config = CheckpointConfig(checkpoint, "run", steps=1) if checkpoint else None
    fit(model, loader, step=loss_step(cross_entropy_loss()), optimizer=sgd(model, 0.005), total_steps=50, checkpoint=config)
    return model.state_dict()


def test_a_training_whose_worker_was_killed_resumes_to_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    with pytest.raises(TrainingError, match="worker process"):
        train(Killed(make(2), epoch=1), path)
    assert path.exists()
    resumed, whole = train(make(2), path), train(make(0), None)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_workers_end_with_a_process_that_is_killed() -> None:
    code = """
import multiprocessing, os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_workers import make
batches = make(2).batches_from(0)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # The pipe of standard output is at its end only when no worker holds it any more.
    found = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, timeout=120)
    assert len(found.stdout.split()) == 2
    assert found.returncode == -signal.SIGKILL


def test_an_epoch_that_is_left_early_ends_its_workers() -> None:
    batches = make(2).batches_from(0)
    next(batches)
    workers = children()
    assert workers
    batches.close()  # type: ignore[attr-defined]
    # Not join(): the pool joins them too, and the one that comes second is not told.
    assert all(wait([worker.sentinel], timeout=60) for worker in workers)


def test_a_dataloader_whose_worker_died_gives_a_sentence() -> None:
    def step(model: nn.Module, batch: Any) -> float:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    model = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match=r"worker process of the DataLoader died \(DataLoader worker \(pid 7\).*num_workers"):
        fit(model, [torch.ones(1, 1)], step=step, optimizer=sgd(model, 0.1), total_steps=1)
