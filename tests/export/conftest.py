"""Small quantized models for the tests of this folder."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from bitalloc.layers import Description
from bitalloc.policy import Bits, Policy
from bitalloc.wrap import QuantizerSettings, quantize
from bitalloc.wrap.describe import describe

Quantize = Callable[..., tuple[nn.Module, Description]]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def quantized() -> Quantize:
    """Quantizes a model with lively batch norms (random statistics, factors of both signs) and one weight step a channel."""

    def make(model: nn.Module, x: Tensor, bits: str, pins: Mapping[str, str] | None = None) -> tuple[nn.Module, Description]:
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.5, 2)
                    if module.affine:
                        module.weight.normal_()
                        module.bias.normal_()
        model.eval()
        description = describe(model, x[:2])
        policy = Policy.uniform(description.layers, Bits.parse(bits), {name: Bits.parse(text) for name, text in (pins or {}).items()})
        return quantize(model, policy, calibration=[x], settings=QuantizerSettings(per_channel=True)), description

    return make
