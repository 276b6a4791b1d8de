"""Attributions at the input itself: no feature map is needed, and the map is as fine as the image."""

from typing import final

import torch
from torch import Tensor, nn

from bitalloc.attribution.base import Attributed, Attribution, explained, logits_of

_PLACES = ("the input",)


@final
class InputGradient(Attribution):
    """The magnitude of the logit's gradient: ``M = max over channels of |d y_c / d x|``, (N, 1, H, W).

    Simonyan et al., "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps", 2013,
    arXiv 1312.6034, section 3.1. Inputs have their channels in dimension 1.
    """

    def _attribute(self, model: nn.Module, inputs: Tensor, classes: Tensor | None) -> Attributed:
        gradient, logits = _gradient(model, inputs, classes)
        return Attributed((gradient.abs().amax(1, keepdim=True),), logits, _PLACES)


@final
class GradientTimesInput(Attribution):
    """The magnitude of what a position contributes to first order: ``M = | sum over channels of x * d y_c / d x |``, (N, 1, H, W).

    Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences", 2016,
    arXiv 1605.01713. Inputs have their channels in dimension 1.
    """

    def _attribute(self, model: nn.Module, inputs: Tensor, classes: Tensor | None) -> Attributed:
        gradient, logits = _gradient(model, inputs, classes)
        return Attributed(((inputs.detach() * gradient).sum(1, keepdim=True).abs(),), logits, _PLACES)


def _gradient(model: nn.Module, inputs: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    leaf = inputs.detach().requires_grad_()
    logits = logits_of(model(leaf.clone()), inputs)  # a copy, which the model may write to
    (gradient,) = torch.autograd.grad(explained(logits, classes), leaf, create_graph=True, materialize_grads=True)
    return gradient, logits
