"""Training and evaluation mode, put back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def training_modes(model: nn.Module) -> Iterator[None]:
    """Puts the mode of every module of ``model`` back when the block ends, however it ends."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the modes as they were after it."""
    with training_modes(model):
        model.eval()
        yield
