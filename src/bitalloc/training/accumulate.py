"""One batch in several parts whose gradients add up to the batch's, and more parts where the memory does not hold them."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, Final, final

import torch
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.training.batches import image_count
from bitalloc.training.device import weighted
from bitalloc.training.engine import Engine
from bitalloc.training.random_state import capture, restore
from bitalloc.training.ranks import gathered
from bitalloc.training.steps import Stateful, TrainStep

_FULL: Final = (
    "can't allocate memory",
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

_log = logging.getLogger(__name__)


@final
class Accumulation:
    """Makes the gradients of one batch, in ``parts`` parts.

    Gradients and loss are the means over the parts, each weighted by its share of the batch's images: those of the whole batch where
    the loss is a mean over images. What sees more than one image at a time sees a part: batch norms normalize by it and update their
    running averages once a part. A step that draws at random draws for every part.

    Attributes:
        parts: parts of a batch, at most one an image.
    """

    def __init__(self, engine: Engine) -> None:
        self.parts = engine.accumulate
        self._engine = engine

    def gradients(self, model: nn.Module, step: TrainStep, batch: Any, number: int) -> float:
        """Adds the gradients of ``batch`` to ``.grad`` and gives its loss.

        Where the memory is full and ``engine.split_on_memory`` allows it, the step begins again with twice as many parts, which the
        following steps keep. All that the attempt had changed (gradients, buffers, random generators, the step's own state) is put
        back before, so the result is that of a run with so many parts.

        Args:
            model: with empty gradients.
            step: one training step.
            batch: tensors with the images in the first dimension, in tuples, lists, mappings or dataclasses.
            number: of the step, from 1, for messages.

        Raises:
            TrainingError: the memory is full; it says what was tried and what to try.
        """
        while True:
            before = _State(model, step) if self._engine.split_on_memory else None
            try:
                return self._sum(model, step, batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._split_more(image_count(batch), number, error)
            # Outside the except clause: the error holds the frames, and with them the tensors, of the failed attempt.
            assert before is not None
            model.zero_grad(set_to_none=True)
            before.put_back()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _sum(self, model: nn.Module, step: TrainStep, batch: Any) -> float:
        parts = self._parts(image_count(batch))
        if parts == 1:
            return float(step(model, batch))
        loss = 0.0
        for part, share in split(batch, parts):
            with weighted(share):
                loss += share * float(step(model, part))
        return loss

    def _parts(self, count: int) -> int:
        parts = max(1, min(self.parts, count))
        # Spread weights are gathered from all ranks in every pass, so a rank with an image more must not do one more than the others.
        return min(gathered(parts)) if self.parts > 1 and self._engine.sharding == "full" else parts

    def _split_more(self, count: int, number: int, error: RuntimeError) -> None:
        """Doubles the number of parts. Raises TrainingError if that is not allowed or there is no smaller part."""
        size = -(-count // self.parts)
        tried = f"out of memory at step {number} with {size or 'uncounted'} images at a time"
        if self.parts > 1:
            tried += f" (batches of {count} in {self.parts} parts)"
        if size < 2:
            raise TrainingError(f"{tried}, which cannot be split: use smaller images, smaller batches or a smaller model.") from error
        if not self._engine.split_on_memory:
            raise TrainingError(
                f"{tried}: try a batch size of {count // 2}. Or keep the batch size and have every batch split into parts whose gradients "
                f"add up: set engine.accumulate to {2 * self.parts}, or engine.split_on_memory to true, which finds the number itself."
            ) from error
        self.parts = min(2 * self.parts, count)
        _log.warning("%s: from now on batches are split into %d parts.", tried, self.parts)


def split(batch: Any, parts: int) -> list[tuple[Any, float]]:
    """``batch`` in ``parts`` parts of sizes that differ by at most one image, each with its share of the images.

    Tensors with as many rows as the batch has images are cut, and lists and tuples of other things (texts) of that length; all else
    goes whole into every part. Goes into tuples (named ones too), lists, mappings and dataclasses; a mapping becomes a dict.
    """
    count = image_count(batch)
    ends = [count * index // parts for index in range(parts + 1)]
    return [(_rows(batch, start, end, count), (end - start) / count) for start, end in pairwise(ends)]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's or the processor's memory was full. Libraries under PyTorch say so only in words."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)


def _rows(value: Any, start: int, end: int, count: int) -> Any:
    def part(item: Any) -> Any:
        return _rows(item, start, end, count)

    if isinstance(value, torch.Tensor):
        return value[start:end] if value.dim() and value.shape[0] == count else value
    if isinstance(value, Mapping):
        return {key: part(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        if len(value) == count and not image_count(value):
            return type(value)(value[start:end])
        items = [part(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{entry.name: part(getattr(value, entry.name)) for entry in fields(value) if entry.init})
    return value


class _State:
    """What a training step changes before it is over, but for the gradients."""

    def __init__(self, model: nn.Module, step: TrainStep) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._random = capture()
        self._step = step
        self._own = deepcopy(step.state_dict()) if isinstance(step, Stateful) else {}

    @torch.no_grad()
    def put_back(self) -> None:
        for buffer, value in self._buffers:
            buffer.copy_(value)
        restore(self._random)
        if isinstance(self._step, Stateful):
            self._step.load_state_dict(self._own)
