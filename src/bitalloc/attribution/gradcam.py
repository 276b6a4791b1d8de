"""Grad-CAM: the feature map, its channels weighted by how much the class's logit rises with each.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017, arXiv 1610.02391,
equations 1 and 2; as the attribution of Wang et al., "Generalizable Mixed-Precision Quantization via Attribution Rank
Preservation", ICCV 2021, arXiv 2108.02720.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitalloc.attribution.base import Attributed, Attribution, explained, logits_of
from bitalloc.attribution.capture import capturing
from bitalloc.attribution.feature_map import find_feature_map, find_layers
from bitalloc.attribution.point import Point, channel_axis


@final
@dataclass(frozen=True, slots=True)
class GradCAM(Attribution):
    """Grad-CAM at a feature map.

    With the map f (N, C, H, W), and y_c the logit of the explained class::

        a_k = sum over h, w of  d y_c / d f_k          M = relu( sum_k a_k * f_k )          (N, 1, H, W)

    The sum over positions stands where Grad-CAM has the mean, as in GMPQ: the order of positions is the same.

    Tokens (N, T, D) are positions with D channels. If T is no square and T - 1 is one, the first is a class token and is left out.
    The map is (N, 1, h, h) where the tokens form a square, else (N, 1, T). A map with channels last, recognised by two equal
    sizes in front of another one, is read as such. Maps are computed in float32 or wider, whatever the network's precision is.

    Attributes:
        layers: patterns of module names whose outputs are explained, one map each: ``layer4`` is that block, ``layer[34]`` two, and
            ``layer4*`` every module inside it as well. By default the last feature map, see
            :func:`~bitalloc.attribution.find_feature_map`.
        points: where the maps are taken; found by ``layers`` when empty. :meth:`resolved` sets them.

    The gradient is taken by ``torch.autograd.grad(create_graph=True)``, so a loss on the maps has a gradient of its own, and nothing is
    left behind when the maps are dropped.
    """

    layers: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()

    def resolved(self, model: nn.Module, inputs: Tensor) -> "GradCAM":
        """The same with its points fixed to those found in ``model``; that costs a forward pass of two images."""
        if self.points:
            return self
        points = find_layers(model, inputs, self.layers) if self.layers else (find_feature_map(model, inputs),)
        return replace(self, points=points)

    def _attribute(self, model: nn.Module, inputs: Tensor, classes: Tensor | None) -> Attributed:
        points = self.resolved(model, inputs).points
        # What a function gives is no leaf then, which a later operation in place could not write to.
        leaf = inputs.detach().requires_grad_().clone() if any(point.function for point in points) else inputs
        with capturing(model, points, len(inputs), leaf.grad_fn) as capture:
            logits = logits_of(model(leaf), inputs)
        features = capture.maps()
        gradients = torch.autograd.grad(explained(logits, classes), features, create_graph=True, materialize_grads=True)
        return Attributed(tuple(_map(f, g) for f, g in zip(features, gradients, strict=True)), logits, tuple(map(str, points)))


def _map(features: Tensor, gradients: Tensor) -> Tensor:
    """Both (N, C, H, W), (N, H, W, C) or (N, T, D); the map (N, 1, H, W) or (N, 1, T)."""
    channels = channel_axis(features)
    # A sum over many positions in bfloat16 has hardly a digit left.
    wide = torch.promote_types(features.dtype, torch.float32)
    features, gradients = features.to(wide), gradients.to(wide)
    positions = [axis for axis in range(1, features.dim()) if axis != channels]
    weights = gradients.sum(positions, keepdim=True)
    found = functional.relu((weights * features).sum(channels))
    return _grid(found) if features.dim() == 3 else found.unsqueeze(1)


def _grid(tokens: Tensor) -> Tensor:
    """(N, T) as (N, 1, h, h) where that is possible, with or without the first token; else (N, 1, T)."""
    count = tokens.shape[1]
    for first in (0, 1):
        side = math.isqrt(count - first)
        if side > 1 and side * side == count - first:
            return tokens[:, first:].reshape(-1, 1, side, side)
    return tokens.unsqueeze(1)
