"""From a float model to a quantized copy: by module swap, keyed by module name."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from bitalloc.errors import PolicyError
from bitalloc.layers import Description
from bitalloc.policy import FLOAT, Bits, Policy
from bitalloc.quantizers import ActGradient, InputLSQ, WeightLSQ
from bitalloc.space import Candidates, SearchSpace
from bitalloc.wrap.batchnorm import SwitchableBatchNorm, uniform_passes
from bitalloc.wrap.calibrate import calibrate
from bitalloc.wrap.kinds import kind_of
from bitalloc.wrap.layers import QUANTIZED, QuantizedLayer, channel_axis
from bitalloc.wrap.switch import switch


@dataclass(frozen=True, slots=True)
class QuantizerSettings:
    """How layers are quantized, whatever their widths.

    Attributes:
        per_channel: one weight step an output channel; default one a tensor, as LIMPQ publishes it.
        act_gradient: what the activation steps' gradient scale counts, see :class:`~bitalloc.quantizers.InputLSQ`.
    """

    per_channel: bool = False
    act_gradient: ActGradient = "features"

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def quantize(
    model: nn.Module,
    policy: Policy,
    *,
    calibration: Iterable[Any] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    settings: QuantizerSettings | None = None,
) -> nn.Module:
    """A copy of ``model`` whose layers are quantized as ``policy`` says; ``model`` stays as it is.

    Args:
        model: the float model.
        policy: widths by layer name.
        calibration: a few batches (8 to 32 do) that set sign and step of the activation quantizers. Without them call
            :func:`~bitalloc.wrap.calibrate` before the first forward pass, or load a quantized state dict.
        forward: ``forward(model, batch)`` runs the model on one batch; see :func:`~bitalloc.wrap.calibrate` for the default.
        settings: see :class:`QuantizerSettings`.

    Returns:
        The quantized copy, on the same device and in the same mode; state dict keys of the float model keep their names.

    Raises:
        PolicyError: the policy belongs to another model; it names the layers.
        QuantizerError: weights or calibration activations are not finite, or a layer was not reached.
    """
    check_policy(model, policy)
    quantized = _swap(model, {name: Candidates.pinned(bits) for name, bits in policy.bits.items()}, settings or QuantizerSettings())
    if calibration is not None:
        calibrate(quantized, calibration, forward)
    return quantized


def prepare_joint(model: nn.Module, space: SearchSpace, description: Description, settings: QuantizerSettings | None = None) -> nn.Module:
    """A copy of ``model`` that can be switched to every choice of ``space``, with switchable batch norms.

    A batch norm follows the last layer with a choice at or before the layer in front of it, and gets one branch for each
    uniform pass of that layer. Before the first such layer the statistics do not depend on the widths, so a batch norm there
    is shared by all (LIMPQ, section 3).

    Args:
        model: the float model; it stays as it is.
        space: the candidates of every layer.
        description: of ``model``, see :func:`~bitalloc.wrap.describe`.
        settings: see :class:`QuantizerSettings`.

    Returns:
        The copy, at the widest choice. :func:`~bitalloc.wrap.switch` sets other widths; calibrate it before use.

    Raises:
        PolicyError: the space belongs to another model; it names the layers.
    """
    _check_names(model, space.candidates, left_out=[entry.name for entry in description.not_counted])
    joint = _swap(model, space.candidates, settings or QuantizerSettings())
    modules = dict(joint.named_modules())
    for norm, producer in description.producers.items():
        follows = _last_choice(producer, space, description)
        if follows is not None:
            passes = uniform_passes(space.candidates[follows])
            _replace(joint, modules[norm], SwitchableBatchNorm(modules[norm], follows, passes))
    switch(joint, {name: candidates.pairs[0] for name, candidates in space.candidates.items()})
    return joint


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def check_policy(model: nn.Module, policy: Policy) -> None:
    """Raises PolicyError, naming the layers, unless ``policy`` fits the layers of the float model ``model``.

    Layers that a forward pass never calls are not in a policy; its provenance lists them under ``not_counted``.
    """
    _check_names(model, policy.bits, left_out=policy.provenance.get("not_counted", ()))
    modules = dict(model.named_modules())
    reshaped = [
        f"{name} (policy {shape}, model {tuple(modules[name].weight.shape)})"
        for name, shape in policy.weight_shapes.items()
        if tuple(modules[name].weight.shape) != shape
    ]
    if reshaped:
        raise PolicyError(f"the policy belongs to another model, the weight shapes differ: {', '.join(reshaped)}.")


def _check_names(model: nn.Module, names: Iterable[str], left_out: Iterable[str]) -> None:
    wanted = set(names)
    supported = {name: module for name, module in model.named_modules() if kind_of(module) is not None}
    unknown = sorted(wanted - set(supported))
    missing = sorted(set(supported) - wanted - set(left_out))
    if unknown:
        raise PolicyError(f"the policy belongs to another model, which has quantizable layers named: {', '.join(unknown)}.")
    if missing:
        raise PolicyError(f"the policy belongs to another model, it has no widths for the layers: {', '.join(missing)}.")


def _swap(model: nn.Module, candidates: Mapping[str, Candidates], settings: QuantizerSettings) -> nn.Module:
    copy = deepcopy(model)
    modules = dict(copy.named_modules())
    for name, choice in candidates.items():
        if choice.pairs != (Bits(FLOAT, FLOAT),):
            _convert(name, modules[name], choice, settings)
    return copy


def _convert(name: str, layer: nn.Module, choice: Candidates, settings: QuantizerSettings) -> None:
    # The class is changed in place, on the copy, so that hooks, parameter names and every reference to a shared layer stay.
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    layer.__class__ = QUANTIZED[type(layer)]
    axis = channel_axis(layer) if settings.per_channel else None
    weight_quantizer = WeightLSQ(f"the weight of layer {name}", choice.weight, weight, axis)
    input_quantizer = InputLSQ(f"the input of layer {name}", choice.act, settings.act_gradient).to(weight.device)
    layer.add_module("weight_quantizer", weight_quantizer)
    layer.add_module("input_quantizer", input_quantizer)
    weight_quantizer.train(layer.training)
    input_quantizer.train(layer.training)


def _last_choice(producer: str, space: SearchSpace, description: Description) -> str | None:
    names = [layer.name for layer in description.layers]
    before = names[: names.index(producer) + 1]
    free = set(space.free)
    return next((name for name in reversed(before) if name in free), None)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out a second name for the same module
            if child is old:
                setattr(parent, name, new)
