"""Quantized layers: the layer of PyTorch, with one quantizer for its weight and one for the tensor that it reads."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.policy import FLOAT
from bitalloc.quantizers import InputLSQ, WeightLSQ, computed_again


class QuantizedLayer(nn.Module, ABC):
    """What a quantized layer adds to a layer: nothing but two quantizers.

    Parameters keep their names, so a float state dict loads into a quantized layer and back.
    """

    weight: Tensor
    bias: Any
    weight_quantizer: WeightLSQ
    input_quantizer: InputLSQ

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The layer's output from the fake-quantized input and weight; only transposed convolutions know an output size."""
        x, weight = self.input_quantizer(input), self.weight_quantizer(self.weight)
        with computed_again(x, weight):
            return self.compute(x, weight, self.bias, output_size)

    @property
    def idle(self) -> bool:
        """Whether input and weight pass through unchanged and unobserved: both are at 32 bits, and no calibration is on."""
        inputs = self.input_quantizer
        return self.weight_quantizer.bits == FLOAT and inputs.bits == FLOAT and not inputs.observing

    @abstractmethod
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        """The layer's plain arithmetic on the given tensors."""


class _QuantizedConv(QuantizedLayer):
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        out: Tensor = self._conv_forward(x, weight, bias)  # type: ignore[operator]
        return out


class QuantizedConv1d(_QuantizedConv, nn.Conv1d):
    """A quantized ``nn.Conv1d``."""


class QuantizedConv2d(_QuantizedConv, nn.Conv2d):
    """A quantized ``nn.Conv2d``."""


class QuantizedConv3d(_QuantizedConv, nn.Conv3d):
    """A quantized ``nn.Conv3d``."""


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A quantized ``nn.Linear``."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        """``x @ weight.T + bias``."""
        return F.linear(x, weight, bias)


class QuantizedConvTranspose1d(QuantizedLayer, nn.ConvTranspose1d):
    """A quantized ``nn.ConvTranspose1d``."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution."""
        padding = _output_padding(self, x, output_size, 1)
        return F.conv_transpose1d(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)  # type: ignore[arg-type]


class QuantizedConvTranspose2d(QuantizedLayer, nn.ConvTranspose2d):
    """A quantized ``nn.ConvTranspose2d``."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution."""
        padding = _output_padding(self, x, output_size, 2)
        return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)  # type: ignore[arg-type]


class QuantizedConvTranspose3d(QuantizedLayer, nn.ConvTranspose3d):
    """A quantized ``nn.ConvTranspose3d``."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution."""
        padding = _output_padding(self, x, output_size, 3)
        return F.conv_transpose3d(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)  # type: ignore[arg-type]


def _output_padding(layer: Any, x: Tensor, size: list[int] | None, dims: int) -> list[int]:
    padding: list[int] = layer._output_padding(x, size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation)
    return padding


QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
    nn.Linear: QuantizedLinear,
}
"""Layer type to its quantized twin. Subclasses are not in it: their forward may differ."""


def channel_axis(layer: nn.Module) -> int:
    """The axis of the weight that counts output channels; for a grouped transposed convolution the one within a group."""
    return 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 0
