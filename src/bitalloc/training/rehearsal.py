"""A few samples to try a training on before it begins, without leaving a trace."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitalloc.placement import to_device
from bitalloc.training.accumulate import split
from bitalloc.training.batches import image_count
from bitalloc.training.device import device
from bitalloc.training.engine import ENGINE, Engine
from bitalloc.training.modes import training_modes
from bitalloc.training.random_state import capture, restore
from bitalloc.training.shares import generators_of
from bitalloc.training.stream import BatchStream

SAMPLES = 8


@contextmanager
def rehearsal(model: nn.Module, loader: Iterable[Any], engine: Engine = ENGINE) -> Iterator[Any]:
    """Gives the first 8 to 15 samples of the loader's first batch (all of a smaller one), on the training device.

    The model is in training mode. Afterwards buffers, modes and random generators, those of the loader among them, are as they were, and
    gradients are empty. Parameters must not be changed within the block.

    Raises:
        TrainingError: the loader is empty.
    """
    generators = generators_of(loader)
    random = capture(generators)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with training_modes(model):
            batch = to_device(BatchStream(loader).next(), device(), engine.images)
            few, _ = split(batch, max(1, image_count(batch) // SAMPLES))[0]
            model.train()
            yield few
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        restore(random, generators)
