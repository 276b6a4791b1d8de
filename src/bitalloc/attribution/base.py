"""What every attribution has in common: it takes a classifier and images, and gives maps and logits from one forward pass."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.attribution.freeze import frozen
from bitalloc.errors import TrainingError
from bitalloc.training import evaluating


@dataclass(frozen=True, slots=True)
class Attributed:
    """Attribution maps and the logits of the same forward pass.

    Attributes:
        maps: one a layer; non-negative, (N, 1, H, W), or (N, 1, T) for tokens that form no square. H and W are those of the layer.
        logits: (N, classes).
    """

    maps: tuple[Tensor, ...]
    logits: Tensor


class Attribution(ABC):
    """How much every position of an image speaks for a class."""

    def attribute(self, model: nn.Module, inputs: Tensor, classes: Tensor | None = None) -> Attributed:
        """Maps that can be differentiated with respect to the parameters, from one forward pass in the model's present modes.

        No gradient is left in any ``.grad``.

        Args:
            model: gives logits of shape (N, classes).
            inputs: floating-point images, (N, ...).
            classes: (N,), the class whose logit is explained; by default the one that the model itself predicts, as published for GMPQ.

        Raises:
            TrainingError: the inputs are no floating-point tensor, the model gives no logits, or there is no feature map.
        """
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 2:
            found = f"{inputs.dtype} of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
            raise TrainingError(f"the input is {found}, expected floating-point images of shape (N, ...): an attribution is a gradient.")
        with torch.inference_mode(False), torch.enable_grad():
            # A tensor made in inference mode can never take part in a gradient.
            return self._attribute(model, inputs.clone() if inputs.is_inference() else inputs, classes)

    def explain(self, model: nn.Module, inputs: Tensor, classes: Tensor | None = None) -> Attributed:
        """Maps without gradient, in evaluation mode; the model's modes, gradients and ``requires_grad`` are as before.

        Raises:
            TrainingError: as :meth:`attribute`, or a map is not finite.
        """
        with evaluating(model), frozen(model):
            found = self.attribute(model, inputs, classes)
        maps = tuple(each.detach() for each in found.maps)
        if not all(bool(torch.isfinite(each).all()) for each in maps):
            raise TrainingError("an attribution map is not finite: check the model's weights and the images.")
        return Attributed(maps, found.logits.detach())

    def resolved(self, model: nn.Module, inputs: Tensor) -> "Attribution":
        """The same with its layers fixed to those found in ``model``, so that it takes the same ones in another network."""
        return self

    @abstractmethod
    def _attribute(self, model: nn.Module, inputs: Tensor, classes: Tensor | None) -> Attributed:
        """See :meth:`attribute`; gradients are enabled and the inputs are floating-point."""


def logits_of(output: Any, inputs: Tensor) -> Tensor:
    """``output`` if it is logits (N, classes) for ``inputs``. Raises TrainingError otherwise."""
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(inputs) or not output.is_floating_point():
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise TrainingError(
            f"the model gave {found}, expected logits of shape ({len(inputs)}, classes): attribution needs a classifier; wrap the model."
        )
    return output


def explained(logits: Tensor, classes: Tensor | None) -> Tensor:
    """The logits of ``classes``, by default of the predicted ones, summed over the batch: each sample's gradient is its own."""
    chosen = logits.detach().argmax(dim=1) if classes is None else classes
    return logits.gather(1, chosen[:, None]).sum()
