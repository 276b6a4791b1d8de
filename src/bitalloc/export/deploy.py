"""From a quantized model to the form in which it is deployed: integer weights, folded batch norms, no quantizers."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitalloc.errors import ExportError
from bitalloc.export.embedding import deployed_embedding
from bitalloc.export.frozen import freeze
from bitalloc.export.layers import IntegerInputLayer, IntegerLayer, IntegerWeightLayer
from bitalloc.export.modules import without_switches
from bitalloc.export.parts import grid_of, scaled, weights_of
from bitalloc.placement import module_device, to_device
from bitalloc.policy import FLOAT
from bitalloc.wrap import QuantizedLayer, quantized_layers
from bitalloc.wrap.describe import arguments_of
from bitalloc.wrap.embedding import QuantizedEmbedding
from bitalloc.wrap.fold import affine, foldable, left_of, replace_modules
from bitalloc.wrap.functional import Watching


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployed model, and what became of its batch norms.

    Attributes:
        model: the deployed model, in eval mode, without gradients.
        folded: batch norm name to the name of the layer that it went into.
        kept: batch norm name to the reason why it stays.
    """

    model: nn.Module
    folded: Mapping[str, str]
    kept: Mapping[str, str]


def deploy(model: nn.Module, example: Any, producers: Mapping[str, str] | None = None) -> Deployed:
    """A deployed copy of a quantized model at its active widths; ``model`` stays as it is.

    Every quantized layer becomes a layer of integer weights that computes on integers. Batch norms are folded where that is exact:
    the magnitude of their factor goes into the scale of each channel, its sign into the codes, the shift into the bias. The bias
    is rounded to the grid of the products, ``input step * weight scale``, which is the only difference to the quantized
    model, and the form in which integer kernels take it. Embeddings become tables of integers. Where a model's own code multiplies with a
    parameter (attention projections, functional calls), the code stays, and the parameter is fake-quantized as it was.

    Args:
        model: from :func:`~bitalloc.wrap.quantize`, or :func:`~bitalloc.wrap.prepare_joint` and ``switch``; calibrated.
        example: inputs to try the folds on: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.
            One or two samples do.
        producers: batch norm name to the layer in front of it, ``Description.producers``; without it nothing is folded.

    Returns:
        The copy, with the names of folded and of kept batch norms.

    Raises:
        ExportError: the model has no quantized layer.
        DescribeError: the example is no tensor, tuple, list or mapping.
        QuantizerError: an input quantizer is not calibrated.
    """
    if not quantized_layers(model):
        raise ExportError(f"{type(model).__name__} has no quantized layer: pass the model that quantize(model, policy) returned.")
    args, kwargs = to_device(arguments_of(example), module_device(model))
    copy = without_switches(deepcopy(model).eval())
    bound = _used_by_other_code(copy)
    folded, kept = foldable(
        copy, lambda candidate: candidate(*args, **kwargs), producers or {}, lambda name, layer: _obstacle(name, layer, bound)
    )
    norm_of = {layer: norm for norm, layer in folded.items()}
    modules = dict(copy.named_modules())
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in quantized_layers(copy).items():
        if isinstance(layer, QuantizedEmbedding) and layer not in bound:
            replacements[layer] = deployed_embedding(name, layer)
            continue
        if layer in bound:
            freeze(layer)
            continue
        norm = norm_of.get(name)
        deployed, reason = _convert(layer, None if norm is None else modules[norm])
        replacements[layer] = deployed
        if norm is not None and reason is None:
            replacements[modules[norm]] = left_of(modules[norm])
        elif norm is not None and reason is not None:
            kept[norm] = reason
            del folded[norm]
    return Deployed(replace_modules(copy, replacements).eval().requires_grad_(False), folded, kept)


def _used_by_other_code(model: nn.Module) -> set[nn.Module]:
    """The quantized layers whose weight is multiplied with by code outside of them, which cannot be exchanged for integers."""
    return {layer for module in model.modules() if isinstance(module, Watching) for layer in module.watched}


def _obstacle(name: str, layer: nn.Module, bound: Collection[nn.Module]) -> str | None:
    if layer in bound:
        return f"the weight of {name} is used by other code than its own"
    if isinstance(layer, QuantizedLayer) and layer.weight_quantizer.bits != FLOAT:
        return None
    return f"the weights of {name} are not quantized; a runtime folds it without loss"


def _convert(layer: QuantizedLayer, norm: nn.Module | None) -> tuple[nn.Module, str | None]:
    """The deployed layer, and why ``norm`` could not be folded into it, if it could not."""
    weights, grid = weights_of(layer), grid_of(layer)
    if weights is None:
        return (layer if grid is None else IntegerInputLayer(layer, grid)), None
    reason = None
    if norm is not None:
        together = scaled(weights, *affine(norm), grid)
        if together is None:
            reason = "its factor is negative in a channel that has the weight code -128, whose opposite is no 8-bit integer"
        else:
            weights = together
    return (IntegerWeightLayer(layer, weights) if grid is None else IntegerLayer(layer, weights, grid)), reason
