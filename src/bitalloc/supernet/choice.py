"""The architecture logits: what a search learns about one group of tied quantizers."""

import math
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn

from bitalloc.supernet.relaxation import Relaxation

START = 0.01
"""The published start of every logit; equal ones make an even mixture."""


@final
class WidthChoice(nn.Module):
    """One logit for every candidate width, shared by all quantizers that must get the same width.

    The parameter is called ``architecture_logits``, shape (widths,).

    Args:
        widths: the candidates, from most to fewest bits; 32 stands for floating point.
        relaxation: from logits to shares.
    """

    _uniform: Tensor | None

    def __init__(self, widths: Sequence[int], relaxation: Relaxation) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.relaxation = relaxation
        self.architecture_logits = nn.Parameter(torch.full((len(self.widths),), START))
        # A buffer, so that it goes where the logits go. Not in the state dict: a step draws anew.
        self.register_buffer("_uniform", None, persistent=False)
        self._progress = 0.0

    def probabilities(self) -> Tensor:
        """``softmax(logits)``, shape (widths,)."""
        return self.architecture_logits.softmax(0)

    def shares(self) -> Tensor:
        """What the mixture adds its candidates up with, shape (widths,): of the last draw, and the softmax before there was one."""
        if self._uniform is None:
            return self.probabilities()
        return self.relaxation.shares(self.architecture_logits, self._uniform, self._progress)

    def draw(self, progress: float) -> None:
        """Draws for a new step. From PyTorch's generator for the processor, so that checkpoints replay it and ranks agree on it."""
        if self.relaxation.stochastic:
            self._uniform = torch.rand(len(self.widths)).to(self.architecture_logits.device)
            self._progress = progress

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"widths={self.widths}, relaxation={self.relaxation}"


def is_architecture_logit(name: str, parameter: nn.Parameter) -> bool:
    """Whether a named parameter holds architecture logits; for optimisers that treat them apart."""
    return name.rpartition(".")[2] == "architecture_logits" and parameter.dim() == 1


def choices(supernet: nn.Module) -> Iterator[WidthChoice]:
    """The choices of a supernet, each once, in the order of its modules."""
    return (module for module in supernet.modules() if isinstance(module, WidthChoice))


def draw(supernet: nn.Module, progress: float) -> None:
    """Draws the mixtures of one training step; tied quantizers get the same draw, in every forward pass until the next.

    Does nothing where the relaxation draws nothing (softmax).

    Args:
        supernet: from :func:`~bitalloc.supernet.prepare_supernet`.
        progress: share of the search that is done, from 0 to 1, which temperatures depend on.
    """
    for choice in choices(supernet):
        choice.draw(progress)


def entropy(supernet: nn.Module) -> Tensor:
    """How undecided the choices are: the mean of ``-sum p log p / log n``, 1 at the start, 0 when all are certain.

    Float64, shape (); gradients reach the logits.
    """
    logarithms = [choice.architecture_logits.double().log_softmax(0) for choice in choices(supernet)]
    return torch.stack([-(p.exp() * p).sum() / math.log(len(p)) for p in logarithms]).mean()
