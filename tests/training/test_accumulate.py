"""A batch in parts gives the gradients of the batch, and more parts where the memory is full."""

import logging
import re
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.training import CheckpointConfig, Engine, backward, cross_entropy_loss, fit, loss_step, sgd
from bitalloc.training.accumulate import split

PAIR = namedtuple("PAIR", "images labels")
CPU_FULL = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


class Hungry(nn.Module):
    """Runs out of memory above ``limit`` images, in the middle of its forward pass."""

    def __init__(self, limit, error=CPU_FULL, norm=True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.ReLU(), nn.Dropout(0.5 if norm else 0.0))
        self.head = nn.Linear(8, 3)
        self.limit, self.error = limit, error
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        x = self.body(x)
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("full") if self.error is None else RuntimeError(self.error)
        return self.head(x)


def batches(count=6, size=8):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 4, generator=generator), torch.randint(0, 3, (size,), generator=generator)) for _ in range(count)]


def run(limit, engine, *, steps=5, loader=None, error=CPU_FULL, norm=True, **options):
    torch.manual_seed(0)
    model = Hungry(limit, error, norm)
    step = loss_step(cross_entropy_loss())
    return model, fit(model, loader or batches(), step=step, optimizer=sgd(model, 0.1), total_steps=steps, engine=engine, **options)


def same(first, second):
    assert first[1].losses == second[1].losses
    for (name, value), other in zip(first[0].state_dict().items(), second[0].state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("parts", [2, 3, 8, 50])
def test_the_result_is_that_of_the_whole_batch(parts):
    """Parts of 3, 3 and 2 images count by their share. Up to the order of sums."""
    whole, split_up = run(99, Engine(), norm=False), run(99, Engine(accumulate=parts), norm=False)
    assert split_up[1].losses == pytest.approx(whole[1].losses, rel=1e-5)
    torch.testing.assert_close(split_up[0].state_dict(), whole[0].state_dict(), rtol=1e-4, atol=1e-6)
    assert set(split_up[0].sizes) == {-(-8 // parts), 8 // min(parts, 8)}
    assert split_up[1].images == 40
    assert split_up[1].parts == parts


def test_several_passes_a_part_add_up():
    """By hand: the gradient of a pass is the mean input, 2.5; two passes make 5."""

    def twice(model, batch):
        for _ in range(2):
            backward(model(batch).mean())
        return 7.0

    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    batch = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    result = fit(model, [batch], step=twice, optimizer=sgd(model, 1.0, momentum=0.0), total_steps=1, engine=Engine(accumulate=3))
    assert model.weight.item() == pytest.approx(before - 5)
    assert result.losses == (pytest.approx(7.0),)


def test_full_memory_says_what_was_tried_and_what_to_try():
    with pytest.raises(TrainingError, match="out of memory at step 1 with 8 images at a time: try a batch size of 4") as raised:
        run(5, Engine())
    assert "engine.accumulate to 2, or engine.split_on_memory" in str(raised.value)
    with pytest.raises(TrainingError, match=r"with 4 images at a time \(batches of 8 in 2 parts\).*engine.accumulate to 4"):
        run(3, Engine(accumulate=2))


@pytest.mark.parametrize("error", [CPU_FULL, None, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"])
def test_full_memory_splits_the_batch_and_goes_on_from_the_same_step(error, caplog):
    """With dropout and batch norms: nothing of the failed attempt is left, so it is as if so many parts had been asked for."""
    with caplog.at_level(logging.WARNING):
        found = run(2, Engine(split_on_memory=True), error=error)
    assert found[0].sizes[:3] == [8, 4, 2]
    assert set(found[0].sizes[2:]) == {2}
    assert found[1].parts == 4
    assert "out of memory at step 1 with 8 images at a time: from now on batches are split into 2 parts." in caplog.text
    assert "out of memory at step 1 with 4 images at a time (batches of 8 in 2 parts): from now on batches are split into 4" in caplog.text
    same(found, run(99, Engine(accumulate=4)))


def test_memory_that_gets_full_in_the_middle_of_a_run():
    """The third batch is larger."""
    loader = [*batches(2), *batches(1, size=16), *batches(2)]
    model, result = run(8, Engine(split_on_memory=True), loader=loader)
    assert model.sizes == [8, 8, 16, 8, 8, 4, 4, 4, 4]
    assert (result.parts, result.steps, result.images) == (2, 5, 48)


def test_the_split_is_remembered_over_a_resume(tmp_path):
    config = CheckpointConfig(tmp_path / "last", "", steps=1)
    engine = Engine(split_on_memory=True)
    whole = run(2, engine)

    class Cut(Exception):
        pass

    class Ending(list):
        def __iter__(self):
            yield from self[:3]
            raise Cut

    with pytest.raises(Cut):
        run(2, engine, loader=Ending(batches()), checkpoint=config)
    resumed = run(2, engine, checkpoint=config)
    assert set(resumed[0].sizes) == {2}
    assert resumed[1].parts == 4
    same(resumed, whole)


def test_one_image_is_the_end_and_other_errors_are_no_matter_of_memory():
    with pytest.raises(TrainingError, match=r"with 1 images at a time \(batches of 8 in 8 parts\), which cannot be split"):
        run(0, Engine(split_on_memory=True), norm=False)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        run(5, Engine(split_on_memory=True), error="a shape is wrong")


def test_the_steps_own_state_is_put_back():
    class Counting:
        def __init__(self):
            self.count = torch.zeros(())

        def __call__(self, model, batch):
            self.count += 1
            return loss_step(cross_entropy_loss())(model, batch)

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    step, model = Counting(), Hungry(4)
    fit(model, batches(), step=step, optimizer=sgd(model, 0.1), total_steps=1, engine=Engine(split_on_memory=True))
    assert step.count == 2


@dataclass
class Record:
    images: torch.Tensor
    masks: dict


@settings(max_examples=40)
@given(count=st.integers(2, 20), parts=st.integers(1, 20))
def test_parts_are_the_batch_cut_in_order(count, parts):
    numbers = torch.arange(count)
    scale = torch.tensor(3.0)
    texts = [f"{number}" for number in range(count)]
    batch = Record(numbers, {"pair": PAIR(numbers[:, None] * 2, [numbers + 1, texts, scale, None])})
    parts = min(parts, count)
    cut = split(batch, parts)
    assert sum(share for _, share in cut) == pytest.approx(1)
    sizes = [len(part.images) for part, _ in cut]
    assert max(sizes) - min(sizes) <= 1
    assert [share for _, share in cut] == [size / count for size in sizes]
    assert torch.equal(torch.cat([part.images for part, _ in cut]), numbers)
    pairs = [part.masks["pair"] for part, _ in cut]
    assert torch.equal(torch.cat([pair.images for pair in pairs]), numbers[:, None] * 2)
    assert torch.equal(torch.cat([pair.labels[0] for pair in pairs]), numbers + 1)
    assert [text for pair in pairs for text in pair.labels[1]] == texts
    assert all(pair.labels[2] is scale and pair.labels[3] is None for pair in pairs)


def test_a_batch_that_cannot_be_counted():
    class Own:
        pass

    def step(model, batch):
        raise RuntimeError(CPU_FULL)

    model = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match=re.escape("with uncounted images at a time, which cannot be split")):
        fit(model, [Own()], step=step, optimizer=sgd(model, 0.1), total_steps=1, engine=Engine(split_on_memory=True))
