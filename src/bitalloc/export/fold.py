"""Which batch norms may be folded into the layer in front of them: found by trying on a float twin, not by guessing.

Folding is right if the batch norm reads just the output of its layer and nothing else reads that output. The graph of a
PyTorch model is not at hand, so the claim is tested: in a twin of the model with random weights and random statistics (trained
ones can hide a mistake: a scale of 0, a dead unit) the fold must leave the outputs unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.export.modules import replace_modules
from bitalloc.export.parts import is_grouped_transposed
from bitalloc.policy import FLOAT
from bitalloc.wrap import QuantizedLayer
from bitalloc.wrap.layers import channel_axis
from bitalloc.wrap.trace import tensors_in

BatchNorm = nn.modules.batchnorm._BatchNorm
TOLERANCE = 1e-4
"""Largest difference of the outputs, relative to their largest value; float32 rounding stays near 1e-6, a wrong fold is far above."""

Pair = tuple[str, str]


def foldable(model: nn.Module, arguments: tuple[Any, ...], producers: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Which batch norms of a quantized model can be folded.

    Args:
        model: a quantized model in eval mode, without switchable batch norms; left as it is.
        arguments: example inputs of ``model``.
        producers: batch norm name to the name of the layer in front of it, as ``Description.producers``.

    Returns:
        Batch norm name to the layer that it can be folded into; and, for every other batch norm, its name with the reason.
    """
    modules = dict(model.named_modules())
    kept: dict[str, str] = {}
    pairs: list[Pair] = []
    for name, module in modules.items():
        if isinstance(module, BatchNorm):
            layer = producers.get(name)
            reason = _obstacle(module, layer, modules.get(layer) if layer is not None else None)
            if reason is not None:
                kept[name] = reason
            elif layer is not None:
                pairs.append((name, layer))
    twin = _random_twin(model)
    good = _unchanged_by(twin, arguments, pairs)
    for name, layer in pairs:
        if (name, layer) not in good:
            kept[name] = f"folding it into {layer} changes the outputs: it does not read just that layer, or something else does too"
    return dict(good), kept


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The factor and the shift of a batch norm in eval mode, float64: ``y = factor * x + shift`` in each channel."""
    assert isinstance(norm, BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.detach().double(), norm.running_var.detach().double()
    factor = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    shift = -mean * factor
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return factor, shift


def _obstacle(norm: BatchNorm, name: str | None, layer: nn.Module | None) -> str | None:
    if name is None:
        return "no layer is in front of it"
    if not isinstance(layer, QuantizedLayer) or layer.weight_quantizer.bits == FLOAT:
        return f"the weights of {name} are not quantized; a runtime folds it without loss"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if is_grouped_transposed(layer):
        return f"{name} is a grouped transposed convolution, whose channels share their scales between groups"
    if layer.weight.shape[channel_axis(layer)] != norm.num_features:
        return f"it has {norm.num_features} channels and {name} has another number"
    return None


def _random_twin(model: nn.Module) -> nn.Module:
    twin = deepcopy(model)
    random = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor, make: Callable[..., Tensor] = torch.randn) -> Tensor:
        return make(tensor.shape, generator=random).to(tensor)

    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, QuantizedLayer):
                module.weight_quantizer.switch(FLOAT)
                module.input_quantizer.switch(FLOAT)
                fan_in = module.weight.numel() / module.weight.shape[channel_axis(module)]
                module.weight.copy_(draw(module.weight) / fan_in**0.5)
            elif isinstance(module, BatchNorm):
                for tensor in (module.weight, module.bias, module.running_mean):
                    if tensor is not None:
                        tensor.copy_(draw(tensor))
                if module.running_var is not None:
                    module.running_var.copy_(draw(module.running_var, torch.rand) + 0.5)
    return twin


def _unchanged_by(twin: nn.Module, arguments: tuple[Any, ...], pairs: Sequence[Pair]) -> set[Pair]:
    """The largest easily found set of pairs that can be folded at once: halves are tried where the whole fails."""
    before = _outputs(twin, arguments)
    good: set[Pair] = set()

    def attempt(some: Sequence[Pair]) -> None:
        if not some:
            return
        folded = _folded(twin, [*good, *some])
        if folded is not None and _close(_outputs(folded, arguments), before):
            good.update(some)
        elif len(some) > 1:
            attempt(some[: len(some) // 2])
            attempt(some[len(some) // 2 :])

    attempt(pairs)
    return good


def _folded(twin: nn.Module, pairs: Sequence[Pair]) -> nn.Module | None:
    """A copy with the pairs folded in float; None if two batch norms claim one layer."""
    if len({layer for _, layer in pairs}) < len(pairs):
        return None
    copy = deepcopy(twin)
    modules = dict(copy.named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    with torch.no_grad():
        for norm, name in pairs:
            layer = modules[name]
            assert isinstance(layer, QuantizedLayer)
            factor, shift = (values.to(layer.weight) for values in affine(modules[norm]))
            axis = channel_axis(layer)
            layer.weight.mul_(factor.reshape([-1 if index == axis else 1 for index in range(layer.weight.dim())]))
            bias = shift if layer.bias is None else layer.bias * factor + shift
            layer.bias = nn.Parameter(bias)
            replacements[modules[norm]] = nn.Identity()
    return replace_modules(copy, replacements)


def _outputs(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.double() for tensor in tensors_in(model(*arguments)) if tensor.is_floating_point()]


def _close(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return bool(others) and all(
        bool((one - other).abs().max() <= TOLERANCE * other.abs().max()) for one, other in zip(some, others, strict=True) if other.numel()
    )
