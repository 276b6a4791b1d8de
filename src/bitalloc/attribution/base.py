"""What every attribution has in common: it takes a classifier and images, and gives maps and logits from one forward pass."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitalloc.attribution.freeze import frozen
from bitalloc.errors import TrainingError
from bitalloc.training import evaluating


@dataclass(frozen=True, slots=True)
class Attributed:
    """Attribution maps and the logits of the same forward pass.

    Attributes:
        maps: one a layer; non-negative, (N, 1, H, W), or (N, 1, T) for tokens that form no square. H and W are those of the layer.
        logits: (N, classes).
        places: where each map was taken, for messages.
    """

    maps: tuple[Tensor, ...]
    logits: Tensor
    places: tuple[str, ...]

    def check_finite(self) -> None:
        """Raises TrainingError, naming the place, if a map is not finite."""
        for place, each in zip(self.places, self.maps, strict=True):
            if not bool(torch.isfinite(each.detach()).all()):
                raise TrainingError(f"the attribution map at {place} is not finite: check the network's weights and the images.")


class Attribution(ABC):
    """How much every position of an image speaks for a class."""

    def attribute(self, model: nn.Module, inputs: Tensor, classes: Tensor | None = None) -> Attributed:
        """Maps that can be differentiated with respect to the parameters, from one forward pass in the model's present modes.

        No gradient is left in any ``.grad``. Attention is computed by PyTorch's plain operations, as its fused kernels have no second
        derivative.

        Args:
            model: gives logits of shape (N, classes).
            inputs: floating-point images, (N, ...).
            classes: (N,), the class whose logit is explained; by default the one that the model itself predicts, as published for GMPQ.

        Raises:
            TrainingError: the inputs are no floating-point tensor, the model gives no logits, or there is no feature map.
        """
        check_inputs(inputs)
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            # A tensor made in inference mode can never take part in a gradient.
            return self._attribute(model, inputs.clone() if inputs.is_inference() else inputs, classes)

    def explain(self, model: nn.Module, inputs: Tensor, classes: Tensor | None = None) -> Attributed:
        """Maps without gradient, in evaluation mode; the model's modes, gradients and ``requires_grad`` are as before.

        Raises:
            TrainingError: as :meth:`attribute`, or a map is not finite.
        """
        with evaluating(model), frozen(model):
            found = self.attribute(model, inputs, classes)
        found.check_finite()
        return Attributed(tuple(each.detach() for each in found.maps), found.logits.detach(), found.places)

    def resolved(self, model: nn.Module, inputs: Tensor) -> "Attribution":
        """The same with its layers fixed to those found in ``model``, so that it takes the same ones in another network.

        Raises:
            TrainingError: as :meth:`attribute`.
        """
        return self

    @abstractmethod
    def _attribute(self, model: nn.Module, inputs: Tensor, classes: Tensor | None) -> Attributed:
        """See :meth:`attribute`; gradients are enabled and the inputs are floating-point."""


def check_inputs(inputs: object) -> None:
    """Raises TrainingError unless ``inputs`` are floating-point images (N, ...)."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 2:
        found = f"{inputs.dtype} of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
        raise TrainingError(f"the input is {found}, expected floating-point images of shape (N, ...): an attribution is a gradient.")


@contextmanager
def about(what: str) -> Iterator[None]:
    """Says of which network or place a TrainingError is that is raised inside the block."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"{what}: {error}") from error


def logits_of(output: Any, inputs: Tensor) -> Tensor:
    """``output`` if it is logits (N, classes) for ``inputs``. Raises TrainingError otherwise."""
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(inputs) or not output.is_floating_point():
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise TrainingError(
            f"the model gave {found}, expected logits of shape ({len(inputs)}, classes): attribution needs a classifier; wrap the model."
        )
    return output


def explained(logits: Tensor, classes: Tensor | None) -> Tensor:
    """The logits of ``classes``, by default of the predicted ones, summed over the batch.

    A sample's gradient is that of its own logit, but for batch norms in training mode, whose statistics tie the samples of a batch.
    """
    chosen = logits.detach().argmax(dim=1) if classes is None else classes
    return logits.gather(1, chosen[:, None]).sum()
