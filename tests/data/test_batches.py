from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitalloc.data import ImageBatches
from bitalloc.data.splits import stratified_order
from bitalloc.errors import ConfigError

COUNT = 11


def make(**changes: Any) -> ImageBatches:
    images = torch.randint(1, 256, (COUNT, 2, 5, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    options: dict[str, Any] = {
        "images": images,
        "labels": torch.arange(COUNT),
        "batch_size": 4,
        "mean": (0.25, 0.5),
        "std": (0.5, 0.25),
        "seed": 3,
    }
    return ImageBatches(**(options | changes))


def pixels(batch: Tensor) -> Tensor:
    """Undoes the normalisation of :func:`make`."""
    return ((batch * torch.tensor([0.5, 0.25]).view(2, 1, 1) + torch.tensor([0.25, 0.5]).view(2, 1, 1)) * 255).round().to(torch.uint8)


def test_an_epoch_shows_every_image_once_normalised() -> None:
    batches = make()
    seen = list(batches)
    assert [len(labels) for _, labels in seen] == [4, 4, 3]
    assert len(batches) == 3
    images, labels = torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])
    assert torch.equal(labels, torch.arange(COUNT))
    assert images.dtype == torch.float32
    assert torch.equal(pixels(images), batches.images)


def test_shuffling_differs_by_epoch_and_seed_and_keeps_pairs() -> None:
    batches = make(shuffle=True)
    orders = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        assert sorted(labels.tolist()) == list(range(COUNT))
        assert torch.equal(pixels(images), batches.images[labels])
        orders.append(labels.tolist())
    other = torch.cat([y for _, y in make(shuffle=True, seed=4)]).tolist()
    assert orders[0] != orders[1]
    assert other not in orders


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2**30), st.booleans())
def test_a_batch_depends_on_seed_epoch_and_position_alone(epoch: int, index: int, global_seed: int, read_before: bool) -> None:
    options: dict[str, Any] = {"shuffle": True, "crop_padding": 2, "flip": True}
    reference = make(**options)
    reference.set_epoch(epoch)
    expected = list(reference)[index]
    resumed = make(**options)
    torch.manual_seed(global_seed)
    if read_before:
        list(resumed)
    state = torch.get_rng_state()
    resumed.set_epoch(epoch)
    images, labels = resumed.batch(index)
    assert torch.equal(images, expected[0])
    assert torch.equal(labels, expected[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_augmented_image_is_a_crop_of_the_padded_one_and_all_crops_come() -> None:
    padding = 1
    batches = make(crop_padding=padding, flip=True, batch_size=COUNT)
    padded = torch.nn.functional.pad(batches.images, (padding,) * 4)
    seen = set()
    for epoch in range(30):
        batches.set_epoch(epoch)
        for number, image in enumerate(pixels(batches.batch(0)[0])):
            candidates = {
                (top, left, flip): padded[number, :, top : top + 5, left : left + 4].flip(2 if flip else ())
                for top in range(3)
                for left in range(3)
                for flip in (False, True)
            }
            matches = [key for key, candidate in candidates.items() if torch.equal(image, candidate)]
            assert len(matches) == 1
            seen.update(matches)
    assert len(seen) == 18


def test_without_flips_nothing_is_mirrored() -> None:
    batches = make(crop_padding=1, batch_size=COUNT)
    padded = torch.nn.functional.pad(batches.images, (1,) * 4)
    for number, image in enumerate(pixels(batches.batch(0)[0])):
        assert any(torch.equal(image, padded[number, :, top : top + 5, left : left + 4]) for top in range(3) for left in range(3))


@given(st.integers(1, 12), st.integers(1, 4))
def test_the_shares_of_all_ranks_are_the_batch_of_one_process(batch_size: int, ranks: int) -> None:
    whole = make(batch_size=batch_size, shuffle=True, crop_padding=1, flip=True)
    smallest = COUNT % batch_size or min(batch_size, COUNT)
    if smallest < ranks:
        with pytest.raises(ConfigError, match=rf"11 images has {smallest} of them, fewer than the {ranks} processes"):
            whole.share(0, ranks)
        return
    parts = [whole.share(rank, ranks) for rank in range(ranks)]
    assert sum(part.image_count for part in parts) == COUNT
    for epoch in (0, 1):
        for batches in (whole, *parts):
            batches.set_epoch(epoch)
        for index, (images, labels) in enumerate(whole):
            shares = [part.batch(index) for part in parts]
            assert torch.equal(torch.cat([x for x, _ in shares]), images)
            assert torch.equal(torch.cat([y for _, y in shares]), labels)
            assert max(len(y) for _, y in shares) - min(len(y) for _, y in shares) <= 1
    assert {len(part) for part in parts} == {len(whole)}


def test_fingerprint_is_of_the_content() -> None:
    one = make().fingerprint()
    assert one == make(seed=9, shuffle=True).fingerprint()
    images = make().images.clone()
    images[3, 1, 2, 2] ^= 1
    labels = torch.arange(COUNT)
    labels[0] = 5
    assert len({one, make(images=images).fingerprint(), make(labels=labels).fingerprint()}) == 3
    assert len(one) == 64


def test_moving_and_sharing_keep_the_epoch() -> None:
    batches = make(shuffle=True)
    batches.set_epoch(2)
    assert torch.equal(batches.to("cpu").batch(1)[0], batches.batch(1)[0])
    assert torch.equal(batches.share(0, 1).batch(1)[0], batches.batch(1)[0])


@pytest.mark.parametrize("index", [-1, 3])
def test_a_position_beyond_the_epoch(index: int) -> None:
    with pytest.raises(IndexError, match="of 3"):
        make().batch(index)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"images": torch.zeros(COUNT, 2, 5, 4)}, "expected uint8"),
        ({"images": torch.zeros(COUNT, 5, 4, dtype=torch.uint8)}, "expected uint8"),
        ({"labels": torch.arange(3)}, "one an image"),
        ({"labels": torch.zeros(COUNT)}, "expected int64"),
        ({"mean": (0.5,)}, "one a channel"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.data())
def test_every_stretch_of_a_stratified_order_has_the_shares_of_the_whole(values: list[int], data: st.DataObject) -> None:
    labels = torch.tensor(values)
    order = stratified_order(labels)
    assert sorted(order.tolist()) == list(range(len(values)))
    stop = data.draw(st.integers(0, len(values)))
    for label in set(values):
        expected = values.count(label) * stop / len(values)
        assert abs((labels[order[:stop]] == label).sum().item() - expected) <= len(set(values))
