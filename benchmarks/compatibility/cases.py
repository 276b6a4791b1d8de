"""What a model of the sweep is: how it is made, what it is called with, and what of its output is trained on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2
CLASSES = 10


@dataclass(frozen=True, slots=True)
class Case:
    """One model.

    Attributes:
        name: ``library/model``.
        build: makes the model with random weights.
        inputs: makes the example input: a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        training_inputs: makes the input of a training step, where it differs (a detector wants boxes).
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    training_inputs: Callable[[], Any] | None = None


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output on an example input."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def image(size: int, batch: int = BATCH) -> Callable[[], Tensor]:
    """Makes a batch of square images."""
    return lambda: torch.rand(batch, 3, size, size)


def first_sample(inputs: Any) -> Any:
    """The example input cut to a batch of one."""
    if isinstance(inputs, Tensor | list):
        return inputs[:1]
    if isinstance(inputs, Mapping):
        return {name: first_sample(value) for name, value in inputs.items()}
    return tuple(first_sample(value) for value in inputs)
