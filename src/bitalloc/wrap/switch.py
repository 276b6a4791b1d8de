"""Switching a quantized model between widths."""

from collections.abc import Mapping

from torch import nn

from bitalloc.errors import PolicyError
from bitalloc.policy import FLOAT, Bits
from bitalloc.wrap.batchnorm import SwitchableBatchNorm
from bitalloc.wrap.layers import QuantizedLayer


def switch(model: nn.Module, bits: Mapping[str, Bits], branches: Mapping[str, Bits] | None = None) -> None:
    """Sets the active widths of the named layers and the batch norm branches that follow them.

    Args:
        model: from :func:`~bitalloc.wrap.quantize` or :func:`~bitalloc.wrap.prepare_joint`.
        bits: widths by layer name; layers that are not named keep theirs.
        branches: widths that choose the batch norm branches, where they are not to follow ``bits``.

    Raises:
        PolicyError: a name is not a quantized layer (a layer in floating point may be named with ``Bits(32, 32)``).
        QuantizerError: a layer does not know the width; nothing is undone then.
    """
    modules = dict(model.named_modules())
    for name, widths in bits.items():
        layer = modules.get(name)
        if isinstance(layer, QuantizedLayer):
            layer.weight_quantizer.switch(widths.weight)
            layer.input_quantizer.switch(widths.act)
        elif layer is None or widths != Bits(FLOAT, FLOAT):
            raise PolicyError(f"cannot switch layer {name!r} to {widths}: the model has no quantized layer of that name.")
    for module in modules.values():
        if isinstance(module, SwitchableBatchNorm) and module.follows in (branches or bits):
            module.switch((branches or bits)[module.follows])


def active_bits(model: nn.Module) -> dict[str, Bits]:
    """The active widths of every quantized layer, by name."""
    return {
        name: Bits(module.weight_quantizer.bits, module.input_quantizer.bits)
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer)
    }
