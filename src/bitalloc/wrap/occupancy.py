"""How tensors fill the grids that they are quantized on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.placement import module_device, to_device
from bitalloc.quantizers import InputLSQ, WeightLSQ, positive
from bitalloc.quantizers.grid import levels
from bitalloc.quantizers.rounding import bounds
from bitalloc.wrap.calibrate import run_on_inputs
from bitalloc.wrap.functional import layers_of

_ENOUGH = 2**16


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How a tensor fills a grid.

    Attributes:
        clipped: share of the values that lie beyond the last level by more than half a step, so that rounding alone does not explain
            their error.
        one_level: whether all values (of every channel) fall on one level.
    """

    clipped: float
    one_level: bool


@torch.no_grad()
def of_weight(quantizer: WeightLSQ, weight: Tensor, bits: int) -> Occupancy:
    """How a weight fills its grid at a width."""
    axis = quantizer.channel_axis
    rows = weight.reshape(1, -1) if axis is None else weight.transpose(0, axis).flatten(1)
    return _occupancy(rows, positive(quantizer.raw_step(bits))[:, None], *bounds(bits, signed=True))


@torch.no_grad()
def of_inputs(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> dict[tuple[InputLSQ, int], Occupancy]:
    """How the activations of a model fill the grids of all widths, at the widths that it is switched to.

    The model runs in evaluation mode and stays as it is. Some ten thousand values of every tensor, evenly spread, are looked at.
    """
    values: dict[InputLSQ, list[Tensor]] = {}

    def look(bank: InputLSQ, quantizer: nn.Module, args: tuple[Any, ...]) -> None:
        flat = args[0].detach().float().flatten()
        # An odd stride: an even one would meet the same few channels or columns again and again, whose number is mostly even.
        values.setdefault(bank, []).append(flat[:: flat.numel() // _ENOUGH | 1])

    inputs = {layer.input_quantizer for layer in layers_of(model).values() if layer.input_quantizer.widths}
    # A mixture calls its bank once a width, so the mixture is watched.
    banks = [(quantizer, bank) for quantizer in inputs for bank in quantizer.modules() if isinstance(bank, InputLSQ)]
    hooks = [quantizer.register_forward_pre_hook(partial(look, bank)) for quantizer, bank in banks]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for batch in batches:
            (forward or run_on_inputs)(model, to_device(batch, module_device(model)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return {
        (quantizer, bits): _occupancy(torch.cat(seen)[None], positive(quantizer.raw_step(bits)), *levels(bits, quantizer.zero_point(bits)))
        for quantizer, seen in values.items()
        for bits in quantizer.widths
    }


def _occupancy(rows: Tensor, step: Tensor, low: int, high: int) -> Occupancy:
    scaled = rows.float() / step
    clipped = (scaled < low - 0.5) | (scaled > high + 0.5)
    level = scaled.round().clamp(low, high)
    return Occupancy(float(clipped.float().mean()), bool((level.amax(1) == level.amin(1)).all()))
