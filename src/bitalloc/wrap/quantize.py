"""From a float model to a quantized copy: by module swap, keyed by module name."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from bitalloc.errors import PolicyError
from bitalloc.layers import Description
from bitalloc.policy import FLOAT, Bits, Policy
from bitalloc.space import Candidates, SearchSpace
from bitalloc.wrap.batchnorm import SwitchableBatchNorm, uniform_passes
from bitalloc.wrap.calibrate import calibrate
from bitalloc.wrap.convert import QuantizerSettings, converted
from bitalloc.wrap.embedding import QuantizedEmbedding
from bitalloc.wrap.functional import layers_of
from bitalloc.wrap.layers import QuantizedLayer
from bitalloc.wrap.switch import switch
from bitalloc.wrap.target import Target, always_quantizable, find_targets, tied_weights, weight_of


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
    choices = {name: Candidates.pinned(bits) for name, bits in policy.bits.items()}
    quantized = converted(model, choices, policy.shared_inputs, settings or QuantizerSettings())
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
    check_layers(model, space.candidates, left_out=[entry.name for entry in description.not_counted])
    joint = converted(model, space.candidates, space.shared_inputs, settings or QuantizerSettings())
    modules = dict(joint.named_modules())
    for norm, producer in description.producers.items():
        follows = _last_choice(producer, space, description)
        if follows is not None:
            passes = uniform_passes(space.candidates[follows])
            _replace(joint, modules[norm], SwitchableBatchNorm(modules[norm], follows, passes))
    switch(joint, _widest(space))
    return joint


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model, by name.

    A :class:`~bitalloc.wrap.functional.QuantizedParameter` among them has quantizers and a weight, and no arithmetic of its own.
    """
    return layers_of(model)


def check_policy(model: nn.Module, policy: Policy) -> None:
    """Raises PolicyError, naming the layers, unless ``policy`` fits the layers of the float model ``model``.

    Every layer of an exactly supported type must be in it. Layers that a forward pass never calls need not: its provenance lists them
    under ``not_counted``. Neither need embeddings, subclasses, computed weights and parameters of custom modules, which then stay in
    floating point.
    """
    targets = check_layers(model, policy.bits, left_out=policy.provenance.get("not_counted", ()))
    modules = dict(model.named_modules())
    shapes = {name: tuple(weight_of(modules, target).shape) for name, target in targets.items()}
    reshaped = [name for name, shape in policy.weight_shapes.items() if shapes[name] != shape]
    if reshaped:
        which = ", ".join(f"{name} (policy {policy.weight_shapes[name]}, model {shapes[name]})" for name in reshaped)
        head = reshaped == list(policy.bits)[-1:]  # layers stand in the order of their calls
        hint = " For the same network with another head take policy.transferred(describe(model, example))." if head else ""
        raise PolicyError(f"the policy belongs to another model, the weight shapes differ: {which}.{hint}")
    for group in tied_weights(modules, targets):
        if len({policy.bits[name].weight for name in group}) > 1:
            widths = ", ".join(f"{name} {policy.bits[name]}" for name in group)
            raise PolicyError(f"layers with the same weight tensor need one weight width, and have: {widths}.")
    for name, target in targets.items():
        if target.swap is QuantizedEmbedding and target.scope is None and policy.bits[name].act != FLOAT:
            raise PolicyError(f"layer {name} is a table look-up and reads no activation: its activation width must be 32.")


def check_layers(model: nn.Module, names: Iterable[str], left_out: Iterable[str]) -> dict[str, Target]:
    """The named layers of a float model. Raises PolicyError if it has others, but for ``left_out``, or lacks some."""
    targets = find_targets(model, names)
    missing = sorted(set(always_quantizable(model)) - set(targets) - set(left_out))
    if missing:
        raise PolicyError(f"the policy belongs to another model, it has no widths for the layers: {', '.join(missing)}.")
    return targets


def _widest(space: SearchSpace) -> dict[str, Bits]:
    widest = {name: candidates.pairs[0] for name, candidates in space.candidates.items()}
    for group in space.shared_inputs:  # one width each, even where the allowed pairs put another one beside the widest weights
        act = max(widest[name].act for name in group)
        widest.update({name: Bits(widest[name].weight, act) for name in group})
    return widest


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
