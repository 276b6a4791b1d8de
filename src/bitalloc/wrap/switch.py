"""Switching a quantized model between widths."""

from collections.abc import Mapping

from torch import nn

from bitalloc.errors import PolicyError
from bitalloc.policy import FLOAT, Bits
from bitalloc.quantizers import Quantizer
from bitalloc.wrap.batchnorm import SwitchableBatchNorm
from bitalloc.wrap.functional import layers_of


def switch(model: nn.Module, bits: Mapping[str, Bits], branches: Mapping[str, Bits] | None = None) -> None:
    """Sets the active widths of the named layers and the batch norm branches that follow them.

    Args:
        model: from :func:`~bitalloc.wrap.quantize` or :func:`~bitalloc.wrap.prepare_joint`.
        bits: widths by layer name; layers that are not named keep theirs, unless they share a quantizer with one that is.
        branches: widths that choose the batch norm branches, where they are not to follow ``bits``.

    Raises:
        PolicyError: a name is not a quantized layer (a layer in floating point may be named with ``Bits(32, 32)``), or layers that
            share a quantizer get different widths.
        QuantizerError: a layer does not know the width; nothing is undone then.
    """
    layers = layers_of(model)
    chosen: dict[Quantizer, tuple[str, int]] = {}
    for name, widths in bits.items():
        if name in layers:
            for quantizer, width in ((layers[name].weight_quantizer, widths.weight), (layers[name].input_quantizer, widths.act)):
                other, before = chosen.setdefault(quantizer, (name, width))
                if before != width:
                    raise PolicyError(f"layers {other} and {name} share a quantizer and cannot have {before} and {width} bits.")
                quantizer.switch(width)
        elif widths != Bits(FLOAT, FLOAT) or not _exists(model, name):
            raise PolicyError(f"cannot switch layer {name!r} to {widths}: the model has no quantized layer of that name.")
    for module in model.modules():
        if isinstance(module, SwitchableBatchNorm) and module.follows in (branches or bits):
            module.switch((branches or bits)[module.follows])


def active_bits(model: nn.Module) -> dict[str, Bits]:
    """The active widths of every quantized layer, by name."""
    return {name: Bits(layer.weight_quantizer.bits, layer.input_quantizer.bits) for name, layer in layers_of(model).items()}


def _exists(model: nn.Module, name: str) -> bool:
    modules = dict(model.named_modules())
    owner, _, attribute = name.rpartition(".")
    return name in modules or (owner in modules and hasattr(modules[owner], attribute))
