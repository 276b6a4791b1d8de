"""From a layer's name to what is to be done for it: found in the structure of the model, without running it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bitalloc.errors import PolicyError
from bitalloc.wrap.embedding import QuantizedEmbedding
from bitalloc.wrap.layers import QUANTIZED, QuantizedLayer, channel_axis
from bitalloc.wrap.scopes import is_users_own, users_of

_SWAPPED: dict[type[nn.Module], type[QuantizedLayer]] = {**QUANTIZED, nn.Embedding: QuantizedEmbedding}
_ARITHMETIC = ("forward", "_conv_forward")
_CONTAINERS = (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class Target:
    """One layer of a float model, and how it is to be quantized.

    Attributes:
        name: of the layer.
        owner: name of the module that holds the weight.
        attribute: the weight's name in it.
        swap: the quantized class, for a layer that computes just what its kind does; None where the user's code multiplies.
        scope: name of the module whose forward pass is watched for products with the weight; None where only the layer itself uses it.
        axis: the weight's axis of output channels; None where only the user's code knows it.
    """

    name: str
    owner: str
    attribute: str
    swap: type[QuantizedLayer] | None
    scope: str | None
    axis: int | None


def find_targets(model: nn.Module, names: Iterable[str]) -> dict[str, Target]:
    """The named layers of a float model.

    Raises:
        PolicyError: the model has no such layers, or one of them is of a kind that cannot be quantized or not initialised yet.
    """
    modules = dict(model.named_modules())
    found = {name: _target(name, modules) for name in names}
    unknown = sorted(name for name, target in found.items() if target is None)
    if unknown:
        raise PolicyError(f"the policy belongs to another model, which has quantizable layers named: {', '.join(unknown)}.")
    return {name: target for name, target in found.items() if target is not None}


def weight_of(modules: Mapping[str, nn.Module], target: Target) -> Tensor:
    """The weight of a layer as it is now."""
    weight: Tensor = getattr(modules[target.owner], target.attribute)
    return weight


def tied_weights(modules: Mapping[str, nn.Module], targets: Mapping[str, Target]) -> list[tuple[str, ...]]:
    """The groups of two and more layers whose weight is the same parameter."""
    holders: dict[int, list[str]] = {}
    for name, target in targets.items():
        weight = weight_of(modules, target)
        if isinstance(weight, nn.Parameter):
            holders.setdefault(id(weight), []).append(name)
    return [tuple(names) for names in holders.values() if len(names) > 1]


def always_quantizable(model: nn.Module) -> list[str]:
    """Names of the layers that every policy must know: those of an exactly supported type with a plain weight."""
    return [name for name, module in model.named_modules() if type(module) in QUANTIZED and module._parameters.get("weight") is not None]


def _target(name: str, modules: Mapping[str, nn.Module]) -> Target | None:
    if name in modules:
        owner, attribute = name, "weight"
    else:
        owner, _, attribute = name.rpartition(".")
    module = modules.get(owner)
    if module is None or isinstance(module, QuantizedLayer) or f"{attribute}_quantizers" in module._modules:
        return None
    weight = getattr(module, attribute, None)
    if not isinstance(weight, Tensor):
        return None
    if is_lazy(weight):
        raise PolicyError(f"layer {name} is not initialised yet: run the model once before quantizing it.")
    if not weight.is_floating_point() or weight.dim() < 2:
        raise PolicyError(
            f"layer {name} has a weight of type {weight.dtype} and shape {tuple(weight.shape)}, which is no matrix of floats: exclude it."
        )
    kind = next((kind for kind in _SWAPPED if attribute == "weight" and isinstance(module, kind)), None)
    if kind is not None and all(getattr(type(module), method, None) is getattr(kind, method, None) for method in _ARITHMETIC):
        target = Target(name, owner, attribute, _SWAPPED[kind], users_of(owner, attribute, modules), channel_axis(module))
    else:
        axis = channel_axis(module) if kind is not None or isinstance(module, nn.MultiheadAttention) else None
        target = Target(name, owner, attribute, None, _scope(name, owner, attribute, modules), axis)
    fixed = [place for place in (owner if target.swap else None, target.scope) if place is not None and "forward" in vars(modules[place])]
    if fixed:
        raise PolicyError(
            f"layer {name} cannot be quantized: {fixed[0] or 'the model'} has a forward function set on the object itself, which hides "
            "that of its class; quantize the model before other tools replace it."
        )
    return target


def _scope(name: str, owner: str, attribute: str, modules: Mapping[str, nn.Module]) -> str:
    while isinstance(modules[owner], _CONTAINERS) and owner:
        owner, _, attribute = owner.rpartition(".")
    scope = users_of(owner, attribute, modules)
    if scope is not None:
        return scope
    if is_users_own(type(modules[owner])):
        return owner
    raise PolicyError(
        f"layer {name} belongs to a {type(modules[owner]).__name__}, which cannot be quantized: "
        "exclude it, so that it stays in floating point."
    )
