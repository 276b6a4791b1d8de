"""Switching a quantized model between widths."""

from collections.abc import Mapping
from functools import cached_property
from typing import final

from torch import nn

from bitalloc.errors import PolicyError
from bitalloc.policy import FLOAT, Bits
from bitalloc.quantizers import Quantizer
from bitalloc.wrap.batchnorm import SwitchableBatchNorm
from bitalloc.wrap.functional import layers_of


@final
class Switch:
    """Sets active widths, many times on one model: its layers and batch norms are looked up once, when this is made.

    Args:
        model: from :func:`~bitalloc.wrap.quantize` or :func:`~bitalloc.wrap.prepare_joint`; its modules stay the same ones.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = layers_of(model)
        self._norms = [module for module in model.modules() if isinstance(module, SwitchableBatchNorm)]

    def __call__(self, bits: Mapping[str, Bits], branches: Mapping[str, Bits] | None = None) -> None:
        """See :func:`switch`."""
        chosen: dict[Quantizer, tuple[str, int]] = {}
        for name, widths in bits.items():
            if name in self._layers:
                layer = self._layers[name]
                for quantizer, width in ((layer.weight_quantizer, widths.weight), (layer.input_quantizer, widths.act)):
                    other, before = chosen.setdefault(quantizer, (name, width))
                    if before != width:
                        raise PolicyError(f"layers {other} and {name} share a quantizer and cannot have {before} and {width} bits.")
                    quantizer.switch(width)
            elif widths != Bits(FLOAT, FLOAT) or not self._exists(name):
                raise PolicyError(f"cannot switch layer {name!r} to {widths}: the model has no quantized layer of that name.")
        followed = branches or bits
        for norm in self._norms:
            if norm.follows in followed:
                norm.switch(followed[norm.follows])

    def _exists(self, name: str) -> bool:
        owner, _, attribute = name.rpartition(".")
        return name in self._modules or (owner in self._modules and hasattr(self._modules[owner], attribute))

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self._model.named_modules())


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
    Switch(model)(bits, branches)


def active_bits(model: nn.Module) -> dict[str, Bits]:
    """The active widths of every quantized layer, by name."""
    return {name: Bits(layer.weight_quantizer.bits, layer.input_quantizer.bits) for name, layer in layers_of(model).items()}
