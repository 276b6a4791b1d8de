"""The base of deployed layers: what is left of a quantized layer once its weights, or its input, or both are integers.

In eager mode a deployed layer computes on integers, so its output depends on no summation order. While it is exported
it shows the same arithmetic as quantize and dequantize nodes.
"""

from abc import ABC, abstractmethod
from copy import copy

import torch
from torch import Tensor, nn

from bitalloc.wrap.layers import QuantizedLayer


class DeployedLayer(nn.Module, ABC):
    """A layer whose weights, or input, or both are integers.

    Args:
        layer: the quantized layer; its geometry (stride, padding, groups and so on) is copied, its parameters are not.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        # A bound method, not a child: the model has no quantized layer left.
        self._compute = _without_parameters(layer).compute
        self.spatial = layer.weight.dim() - 2  # 0 for linear layers

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The layer's output, float32; only transposed convolutions know an output size."""
        if not torch.compiler.is_exporting():
            return self._integers(x, output_size)
        if self.spatial == 0 and x.dim() > 2:
            # One matrix product with its bias inside: a product of 3-D tensors would keep the bias apart and run in float.
            y = self._nodes(x.flatten(0, -2), None)
            return y.reshape(*x.shape[:-1], y.shape[-1])
        return self._nodes(x, output_size)

    @abstractmethod
    def _integers(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        """The output, computed on integers."""

    @abstractmethod
    def _nodes(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        """The output, computed with the operations of :mod:`bitalloc.export.ops`."""

    def _along_channels(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * self.spatial)


def _without_parameters(layer: QuantizedLayer) -> QuantizedLayer:
    """A shallow copy of the layer that keeps its attributes and methods, but no parameter, buffer, child or hook."""
    shell = copy(layer)
    fresh = nn.Module()
    for name in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"):
        shell.__dict__[name] = dict(fresh.__dict__[name])
    for side in ("weight_quantizer", "input_quantizer"):
        shell.__dict__.pop(side, None)  # a plain attribute where several layers share it
    return shell
