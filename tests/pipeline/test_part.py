"""A share of every epoch's batches, and what the loader can do stays possible."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bitalloc.data import ImageBatches
from bitalloc.pipeline.part import part


def images() -> ImageBatches:
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    return ImageBatches(pixels, torch.arange(10), 2, (0.0,), (1.0,), shuffle=True)


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 5), (0.8, 4), (0.5, 3), (0.01, 1)])
def test_gives_the_first_batches_of_every_epoch(fraction: float, count: int) -> None:
    share = part(images(), fraction)
    assert len(share) == count
    for epoch in range(2):
        whole = images()
        whole.set_epoch(epoch)
        share.set_epoch(epoch)
        expected = [labels.tolist() for _, labels in list(whole)[:count]]
        assert [labels.tolist() for _, labels in share] == expected
        assert [share.batch(index)[1].tolist() for index in range(count)] == expected


class ReadsAhead(ImageBatches):
    """Says from where on it was asked to read ahead."""

    asked: tuple[int, ...] = ()

    def batches_from(self, index: int) -> Iterator[Any]:
        self.asked += (index,)
        return (self.batch(number) for number in range(index, len(self)))


def test_a_loader_that_reads_ahead_does_so_up_to_the_end_of_the_part() -> None:
    whole = images()
    loader = ReadsAhead(whole.images, whole.labels, 2, (0.0,), (1.0,), shuffle=True)
    share = part(loader, 0.8)
    assert [labels.tolist() for _, labels in share.batches_from(1)] == [whole.batch(index)[1].tolist() for index in (1, 2, 3)]
    assert loader.asked == (1,)
    own = [share.share(rank, 2).batches_from(2) for rank in range(2)]
    assert [torch.cat([x[1], y[1]]).tolist() for x, y in zip(*own, strict=True)] == [whole.batch(index)[1].tolist() for index in (2, 3)]


def test_a_loader_without_positions_gets_none() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_size=2, generator=torch.Generator())
    share = part(loader, 0.5)
    assert not hasattr(share, "batch")
    assert share.generator is loader.generator
    assert [batch[0].tolist() for batch in share] == [[0, 1], [2, 3], [4, 5]]
