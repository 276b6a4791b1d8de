"""Folding batch norms into the layers in front of them: found by trying on a twin, not by guessing.

Folding is right if the batch norm reads just the output of its layer and nothing else reads that output. The claim is tested: in a
twin of the model with random weights and random statistics (trained ones can hide a mistake: a scale of 0, a dead unit) the fold must
leave the outputs unchanged.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.errors import DescribeError
from bitalloc.placement import module_device, to_device
from bitalloc.policy import FLOAT
from bitalloc.quantizers import Quantizer
from bitalloc.wrap.describe import arguments_of
from bitalloc.wrap.layers import channel_axis
from bitalloc.wrap.trace import tensors_in

BatchNorm = nn.modules.batchnorm._BatchNorm
TOLERANCE = 1e-4
"""Largest difference of the outputs, relative to their largest value; float32 rounding stays near 1e-6, a wrong fold is far above."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)

Run = Callable[[nn.Module], Any]
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Folded:
    """A float model without the batch norms that could be folded, and what became of each.

    Attributes:
        model: the copy; layer names are those of the original.
        folded: batch norm name to the name of the layer that it went into.
        kept: batch norm name to the reason why it stays.
    """

    model: nn.Module
    folded: Mapping[str, str]
    kept: Mapping[str, str]


def fold_batch_norms(model: nn.Module, example_inputs: Any, producers: Mapping[str, str]) -> Folded:
    """A copy of a float model whose batch norms are merged into the convolution or linear layer in front of them.

    In evaluation mode the copy computes the same up to rounding. Quantize and fine-tune it to train just what is deployed: without batch
    norms, whose statistics would otherwise move. Layers without a bias get one, folded batch norms become ``nn.Identity``, or
    what they have as submodules, such as an activation function.
    A batch norm that reads anything but one layer's output, as in front of the layers of pre-activation networks, is kept.

    Args:
        model: the float model; it stays as it is.
        example_inputs: to try the folds on: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments. One
            or two samples do.
        producers: batch norm name to the layer in front of it, ``describe(model, example_inputs).producers``.

    Raises:
        DescribeError: the forward pass fails on the example inputs.
    """
    args, kwargs = to_device(arguments_of(example_inputs), module_device(model))
    try:
        folded, kept = foldable(deepcopy(model).eval(), lambda candidate: candidate(*args, **kwargs), producers)
    except Exception as error:
        raise DescribeError(
            f"the forward pass of {type(model).__name__} failed on the example inputs: {type(error).__name__}: {error}. "
            "Give example inputs that the model accepts."
        ) from error
    return Folded(_folded(model, list(folded.items())), folded, kept)


def foldable(
    model: nn.Module, run: Run, producers: Mapping[str, str], obstacle: Callable[[str, nn.Module], str | None] = lambda name, layer: None
) -> tuple[dict[str, str], dict[str, str]]:
    """Which batch norms of a float or quantized model can be folded.

    Args:
        model: in eval mode, without switchable batch norms; left as it is.
        run: ``run(model)`` gives the outputs on an example.
        producers: batch norm name to the name of the layer in front of it, as ``Description.producers``.
        obstacle: why nothing can be folded into a layer, given its name and itself; None if something can.

    Returns:
        Batch norm name to the layer that it can be folded into; and, for every other batch norm, its name with the reason.
    """
    modules = dict(model.named_modules())
    kept: dict[str, str] = {}
    pairs: list[Pair] = []
    for norm, module in modules.items():
        if not isinstance(module, BatchNorm):
            continue
        name = producers.get(norm, "")
        layer = modules.get(name)
        if not name:
            reason: str | None = "no layer is in front of it"
        elif layer is None:
            reason = f"{name} is multiplied with by the model's own code, which nothing is folded into"
        else:
            reason = _obstacle(module, name, layer) or obstacle(name, layer)
        if reason is None:
            pairs.append((norm, name))
        else:
            kept[norm] = reason
    good = _unchanged_by(_random_twin(model), run, pairs) if pairs else set()
    for norm, name in pairs:
        if (norm, name) not in good:
            kept[norm] = f"folding it into {name} changes the outputs: it does not read just that layer, or something else does too"
    return {norm: name for norm, name in pairs if (norm, name) in good}, kept


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


def left_of(norm: nn.Module) -> nn.Module:
    """What stays in the place of a folded batch norm: nothing, or its submodules, such as the activation function of timm's ones."""
    parts = nn.Sequential(OrderedDict(norm.named_children())) if list(norm.children()) else nn.Identity()
    parts.training = norm.training
    return parts


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts new modules in the place of old ones, wherever they occur; returns the model, which may itself be a replacement."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(model, model)


def is_grouped_transposed(layer: nn.Module) -> bool:
    """Whether an entry of the weight's channel axis is shared by the output channels of all groups."""
    return isinstance(layer, _TRANSPOSED) and layer.groups != 1


def _obstacle(norm: BatchNorm, name: str, layer: nn.Module) -> str | None:
    if not isinstance(layer, _LAYERS):
        return f"{name} is a {type(layer).__name__}, which nothing is folded into"
    weight = layer._parameters.get("weight")
    if weight is None:
        return f"the weight of {name} is recomputed before every call (weight normalisation or pruning)"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if is_grouped_transposed(layer):
        return f"{name} is a grouped transposed convolution, whose channels share their scales between groups"
    if weight.shape[channel_axis(layer)] != norm.num_features:
        return f"it has {norm.num_features} channels and {name} has another number"
    return None


def _random_twin(model: nn.Module) -> nn.Module:
    twin = deepcopy(model)
    random = torch.Generator("cpu").manual_seed(0)

    def draw(tensor: Tensor, make: Callable[..., Tensor] = torch.randn) -> Tensor:
        return make(tensor.shape, generator=random, device="cpu").to(tensor)

    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, Quantizer):
                module.switch(FLOAT)
            elif isinstance(module, _LAYERS) and (weight := module._parameters.get("weight")) is not None:
                weight.copy_(draw(weight) / (weight.numel() / weight.shape[channel_axis(module)]) ** 0.5)
            elif isinstance(module, BatchNorm):
                for tensor in (module.weight, module.bias, module.running_mean):
                    if tensor is not None:
                        tensor.copy_(draw(tensor))
                if module.running_var is not None:
                    module.running_var.copy_(draw(module.running_var, torch.rand) + 0.5)
    return twin


def _unchanged_by(twin: nn.Module, run: Run, pairs: Sequence[Pair]) -> set[Pair]:
    """The largest easily found set of pairs that can be folded at once: halves are tried where the whole fails."""
    before = _outputs(twin, run)
    good: set[Pair] = set()

    def attempt(some: Sequence[Pair]) -> None:
        together = [*good, *some]
        one_each = len({layer for _, layer in together}) == len(together)
        if one_each and _close(_outputs(_folded(twin, together), run), before):
            good.update(some)
        elif len(some) > 1:
            attempt(some[: len(some) // 2])
            attempt(some[len(some) // 2 :])

    attempt(pairs)
    return good


def _folded(model: nn.Module, pairs: Sequence[Pair]) -> nn.Module:
    """A copy with the pairs folded in floating point; no layer is in two of them."""
    copy = deepcopy(model)
    modules = dict(copy.named_modules())
    with torch.no_grad():
        for norm, name in pairs:
            layer, (factor, shift) = modules[name], affine(modules[norm])
            weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
            assert weight is not None
            axis = channel_axis(layer)
            weight.copy_(weight.double() * factor.reshape([-1 if index == axis else 1 for index in range(weight.dim())]))
            merged = shift if bias is None else bias.double() * factor + shift
            if bias is None:
                layer.register_parameter("bias", nn.Parameter(merged.to(weight), requires_grad=weight.requires_grad))
            else:
                bias.copy_(merged)
    return replace_modules(copy, {modules[norm]: left_of(modules[norm]) for norm, _ in pairs})


def _outputs(model: nn.Module, run: Run) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.double() for tensor in tensors_in(run(model)) if tensor.is_floating_point()]


def _close(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return bool(others) and all(
        bool((one - other).abs().max() <= TOLERANCE * other.abs().max()) for one, other in zip(some, others, strict=True) if other.numel()
    )
