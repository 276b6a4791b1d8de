"""Putting quantizers into a copy of a model."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from bitalloc.choices import matching
from bitalloc.policy import FLOAT, Bits
from bitalloc.quantizers import ActGradient, InputGrid, InputLSQ, WeightLSQ
from bitalloc.space import Candidates
from bitalloc.wrap.attention import SlowEncoder, SlowEncoderLayer
from bitalloc.wrap.dynamic import change_class
from bitalloc.wrap.functional import QuantizedParameter, watch
from bitalloc.wrap.layers import QUANTIZED, QuantizedLayer
from bitalloc.wrap.target import Target, find_targets, tied_weights, weight_of


@dataclass(frozen=True, slots=True)
class QuantizerSettings:
    """How layers are quantized, whatever their widths.

    Attributes:
        per_channel: one weight step an output channel; default one a tensor, as LIMPQ publishes it. Parameters that a custom module
            multiplies with have one a tensor in any case, because only its code knows which axis the channels are.
        act_gradient: what the activation steps' gradient scale counts, see :class:`~bitalloc.quantizers.InputLSQ`.
        act_grids: layer name or pattern (``fnmatch``) to the levels of the layer's input: ``auto`` (as the calibration data say),
            ``unsigned``, ``signed`` or ``asymmetric``; ``auto`` for all others. Later patterns win.
    """

    per_channel: bool = False
    act_gradient: ActGradient = "features"
    act_grids: Mapping[str, InputGrid] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def converted(
    model: nn.Module, candidates: Mapping[str, Candidates], shared_inputs: Sequence[Sequence[str]], settings: QuantizerSettings
) -> nn.Module:
    """A copy of a float model whose layers have quantizers with the steps of their candidate widths.

    Layers of one group of ``shared_inputs`` have one input quantizer, and layers with the same parameter one weight quantizer. It is a
    child of the first of them; the others refer to it, so that parameters and state dict have it once.
    """
    grids: dict[str, InputGrid] = {}
    for pattern, grid in settings.act_grids.items():
        grids.update(dict.fromkeys(matching(pattern, list(candidates)), grid))
    copy = _copy(model)
    modules = dict(copy.named_modules())
    chosen = {name: choice for name, choice in candidates.items() if choice.pairs != (Bits(FLOAT, FLOAT),)}
    targets = find_targets(copy, chosen)
    weight_groups = _groups(chosen, tied_weights(modules, targets))
    weights = {names[0]: _weight_quantizer(names, modules, targets, chosen, settings) for names in weight_groups}
    input_groups = _groups(chosen, shared_inputs)
    inputs = {names[0]: _input_quantizer(names, chosen, grids, settings) for names in input_groups}
    layers = {name: _layer(modules, target) for name, target in targets.items()}
    for names in weight_groups:
        attach("weight_quantizer", weights[names[0]], [layers[name] for name in names])
    for names in input_groups:
        device = layers[names[0]].weight.device
        attach("input_quantizer", inputs[names[0]].to(device), [layers[name] for name in names])
    for name, target in targets.items():
        if target.scope is not None:
            watch(modules[target.scope], layers[name])
    _close_shortcuts(copy)
    return copy


def _copy(model: nn.Module) -> nn.Module:
    # Weight normalisation and pruning of the old kind leave computed tensors in the modules, which deepcopy refuses to copy.
    held = (value for module in model.modules() for value in vars(module).values())
    return deepcopy(model, {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and not value.is_leaf})


def _groups(chosen: Mapping[str, Candidates], together: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """All layers, each in its group or alone, in the order of the layers."""
    group_of = {name: tuple(n for n in chosen if n in set(group)) for group in together for name in group}
    return list(dict.fromkeys(group_of.get(name, (name,)) for name in chosen))


def _weight_quantizer(
    names: Sequence[str],
    modules: Mapping[str, nn.Module],
    targets: Mapping[str, Target],
    chosen: Mapping[str, Candidates],
    settings: QuantizerSettings,
) -> WeightLSQ:
    axes = {targets[name].axis for name in names}
    axis = axes.pop() if settings.per_channel and len(axes) == 1 else None
    widths = sorted({width for name in names for width in chosen[name].weight})
    return WeightLSQ(f"the weight of {_called(names)}", widths, weight_of(modules, targets[names[0]]), axis)


def _input_quantizer(
    names: Sequence[str], chosen: Mapping[str, Candidates], grids: Mapping[str, InputGrid], settings: QuantizerSettings
) -> InputLSQ:
    widths = sorted({width for name in names for width in chosen[name].act})
    asked = [grids[name] for name in names if name in grids]
    return InputLSQ(f"the input of {_called(names)}", widths, settings.act_gradient, asked[-1] if asked else "auto")


def _called(names: Sequence[str]) -> str:
    return f"layer {names[0]}" if len(names) == 1 else f"layers {', '.join(names)}"


def _layer(modules: Mapping[str, nn.Module], target: Target) -> QuantizedLayer:
    owner = modules[target.owner]
    if target.swap is None:
        layer: QuantizedLayer = QuantizedParameter(owner, target.attribute)
        owner.add_module(f"{target.attribute}_quantizers", layer)
        layer.training = owner.training
        return layer
    if type(owner) in QUANTIZED:
        owner.__class__ = target.swap
    else:
        change_class(owner, target.swap)
    assert isinstance(owner, QuantizedLayer)
    return owner


def attach(side: str, quantizer: nn.Module, layers: Sequence[QuantizedLayer]) -> None:
    """Makes ``quantizer`` that of all ``layers``: a child of the first, which the others refer to; ``side`` is the attribute's name."""
    first, *others = layers
    first.add_module(side, quantizer)
    quantizer.train(first.training)
    for layer in others:
        layer.__dict__[side] = quantizer


def _close_shortcuts(model: nn.Module) -> None:
    for module in model.modules():
        for kind, slow in ((nn.TransformerEncoderLayer, SlowEncoderLayer), (nn.TransformerEncoder, SlowEncoder)):
            if isinstance(module, kind) and any(isinstance(part, QuantizedLayer) for part in module.modules()):
                change_class(module, slow)
