"""From architecture logits to the shares in which the candidates of a mixture are added up."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from bitalloc.errors import TrainingError
from bitalloc.quantizers import straight_through

_SMALLEST = 1e-10


@dataclass(frozen=True, slots=True)
class Relaxation(ABC):
    """How a discrete choice becomes differentiable.

    Attributes:
        stochastic: whether the shares depend on a draw.
        sparse: whether most shares are exactly 0, so that it pays to look which, and to leave their candidates out.
    """

    stochastic: ClassVar[bool] = True
    sparse: ClassVar[bool] = False

    @abstractmethod
    def shares(self, logits: Tensor, uniform: Tensor, progress: float) -> Tensor:
        """The share of every candidate; they add up to 1, and gradients reach the logits.

        Args:
            logits: shape (candidates,).
            uniform: a draw from [0, 1), same shape; unused where not ``stochastic``.
            progress: share of the search that is done, 0 to 1.
        """


@final
@dataclass(frozen=True, slots=True)
class Softmax(Relaxation):
    """The softmax of the logits: every candidate takes part in every step, as EdMIPS and GMPQ publish it (arXiv 2108.02720)."""

    stochastic: ClassVar[bool] = False

    def shares(self, logits: Tensor, uniform: Tensor, progress: float) -> Tensor:
        """``softmax(logits)``."""
        return logits.softmax(0)


@final
@dataclass(frozen=True, slots=True)
class GumbelSoftmax(Relaxation):
    """``softmax((logits + gumbel) / T)`` with a temperature T that falls from ``start`` to ``end`` by the same factor at every step.

    Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017, arXiv 1611.01144, equation 2. Soft mixtures become
    draws of single candidates, so at the end the weights are trained at widths as they will be.

    Attributes:
        start: temperature of the first step; 5 mixes almost evenly.
        end: temperature of the last step; 0.5, below which gradients become noisy (section 2.2 there).
    """

    start: float = 5.0
    end: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.end <= self.start < float("inf"):
            raise TrainingError(f"the temperature goes from {self.start} to {self.end}, expected 0 < end <= start.")

    def shares(self, logits: Tensor, uniform: Tensor, progress: float) -> Tensor:
        """A relaxed sample."""
        temperature = float(self.start * (self.end / self.start) ** progress)
        return ((logits + _gumbel(uniform)) / temperature).softmax(0)


@final
@dataclass(frozen=True, slots=True)
class SinglePath(Relaxation):
    """One candidate drawn from the softmax, with the softmax's gradient (straight-through; Bengio et al., arXiv 1308.3432).

    The network of a step is a network of the search space; the gradient of the logits is that of the mixture, and biased. For it the
    backward pass quantizes at every candidate, also at those that the forward pass leaves out.
    """

    sparse: ClassVar[bool] = True

    def shares(self, logits: Tensor, uniform: Tensor, progress: float) -> Tensor:
        """1 at the drawn candidate, 0 elsewhere."""
        drawn = (logits.detach() + _gumbel(uniform)).argmax()
        one = torch.zeros_like(logits).index_fill_(0, drawn, 1.0)
        return straight_through(logits.softmax(0), one)


def _gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from a uniform draw: the argmax of logits with it is a sample from their softmax."""
    return -(-uniform.clamp(_SMALLEST, 1 - 1e-7).log()).log()
