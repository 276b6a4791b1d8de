"""Quantizing parameters that a user's own code multiplies with, by watching that code while it runs.

A custom module computes ``F.linear(x, self.kernel)``, or ``x @ self.weight.T``, or standardises its weight before the convolution. Its
forward pass runs unchanged under a ``TorchFunctionMode`` that knows the module's parameters and looks at every function call:
where one of them, a view of it, or a tensor of the same size computed from it alone meets another tensor in a product, both operands are
fake-quantized first.

Why not a parametrisation (``torch.nn.utils.parametrize``): it renames the parameters in the state dict, quantizes a standardised weight
before it is standardised, and cannot reach the input. Why not a rewritten graph (``torch.fx``, ``torch.export``): the model would no
longer be the user's, with its control flow, hooks and submodules, and what no tracer follows could not be quantized.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from bitalloc.errors import QuantizerError
from bitalloc.wrap.attention import attention
from bitalloc.wrap.dynamic import change_class
from bitalloc.wrap.layers import QuantizedLayer
from bitalloc.wrap.torch_functions import OPERANDS, VIEWS


@final
class QuantizedParameter(QuantizedLayer):
    """A parameter of a module whose own code multiplies with it, and its two quantizers.

    A child of that module under ``<parameter>_quantizers``; the parameter stays where it is.

    Args:
        owner: the module that holds the parameter.
        attribute: name of the parameter in ``owner``.
    """

    owner: nn.Module

    def __init__(self, owner: nn.Module, attribute: str) -> None:
        super().__init__()
        self.__dict__["owner"] = owner  # not as a child: the owner holds this module
        self.attribute = attribute

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The parameter as it is now: a parametrised one is computed, a sharded one may be gathered."""
        value: Tensor = getattr(self.owner, self.attribute)
        return value

    @property
    def bias(self) -> None:
        """None: only the owner's code knows what is added."""
        return None

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None) -> Tensor:
        """Raises QuantizerError: what is computed is known to the owner's code alone."""
        raise QuantizerError(
            f"the product with {self.attribute} is computed by the code of {type(self.owner).__name__} and cannot run without it."
        )


class Watching(nn.Module):
    """Put in front of a module's class: its forward pass runs while the calls with the watched layers' weights are looked at."""

    watched: list[QuantizedLayer]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass; with all watched layers at 32 bits nothing is looked at."""
        layers = [layer for layer in self.watched if not layer.idle]
        if not layers:
            return super().forward(*args, **kwargs)
        return _run_watched(super().forward, layers, args, kwargs)


# Traced, every call in it would break the graph, with a warning each: the identity of tensors is nothing that torch.compile follows.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run_watched(forward: Callable[..., Any], layers: Sequence[QuantizedLayer], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    with _Watch(layers):
        return forward(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tensor that stands for the weight of a layer.

    Attributes:
        tensor: held, so that no other tensor of the forward pass takes its identity.
        weight: the parameter that ``tensor`` is a view of; None for a tensor computed from it, such as a standardised weight.
        views: the views that lead from ``weight`` to ``tensor``.
    """

    layer: QuantizedLayer
    tensor: Tensor
    weight: Tensor | None
    views: tuple[Callable[[Tensor], Tensor], ...] = ()


class _Watch(TorchFunctionMode):
    def __init__(self, layers: Iterable[QuantizedLayer]) -> None:
        super().__init__()
        self._seen = {id(seen.tensor): seen for layer in layers for seen in _roots(layer)}
        self._quantized: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = [seen for value in _values(args, kwargs) if (seen := self._find(value)) is not None]
        if not found:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return attention(self._operands, *args, **kwargs)
        weight = _weight_among(found) if func in OPERANDS else None
        if weight is not None and (func is not F.embedding or isinstance(weight.layer, QuantizedParameter)):
            return self._product(func, args, kwargs, weight)
        out = func(*args, **kwargs)
        if len({id(seen.layer) for seen in found}) == 1:
            self._follow(func, args, kwargs, out, found)
        return out

    def _find(self, value: Any) -> _Seen | None:
        return self._seen.get(id(value)) if isinstance(value, Tensor) else None

    def _operands(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._find(weight)
        return (x, weight) if seen is None else (seen.layer.input_quantizer(x), self._quantize(seen))

    def _product(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: _Seen) -> Any:
        positions, names = OPERANDS[func]

        def replaced(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [replaced(item) for item in value]
            if value is weight.tensor:
                return self._quantize(weight)
            return weight.layer.input_quantizer(value) if isinstance(value, Tensor) and value.is_floating_point() else value

        new = [replaced(value) if positions is None or index in positions else value for index, value in enumerate(args)]
        return func(*new, **{name: replaced(value) if name in names else value for name, value in kwargs.items()})

    def _quantize(self, seen: _Seen) -> Tensor:
        quantizer = seen.layer.weight_quantizer
        if seen.weight is not None:
            key = id(seen.weight)
            if key not in self._quantized:
                self._quantized[key] = quantizer(seen.weight)
            out = self._quantized[key]
            for view in seen.views:
                out = view(out)
            return out
        if quantizer.channel_axis is not None and seen.tensor.shape != seen.layer.weight.shape:
            raise QuantizerError(
                f"{quantizer.name} is computed from a parameter and used in the shape {tuple(seen.tensor.shape)}, which has no known "
                "channels: quantize it with one step a tensor (per_channel=False)."
            )
        computed: Tensor = quantizer(seen.tensor)
        return computed

    def _follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, found: Sequence[_Seen]) -> None:
        """Notes what stands for the weight after a call with it: views, and tensors of its size computed from it."""
        (seen, *others) = found
        viewed = func in VIEWS and not others and seen.weight is not None
        for index, value in enumerate(out if isinstance(out, list | tuple) else (out,)):
            if not isinstance(value, Tensor) or not value.is_floating_point() or id(value) in self._seen:
                continue
            if viewed:
                view = _again(func, args, kwargs, seen.tensor, index if isinstance(out, list | tuple) else None)
                self._seen[id(value)] = _Seen(seen.layer, value, seen.weight, (*seen.views, view))
            elif isinstance(seen.layer, QuantizedParameter) and value.numel() == seen.tensor.numel():
                self._seen[id(value)] = _Seen(seen.layer, value, None)


def _roots(layer: QuantizedLayer) -> list[_Seen]:
    """What a forward pass starts from: the weight itself, or the tensors that a parametrisation computes it from."""
    if isinstance(layer, QuantizedParameter) and parametrize.is_parametrized(layer.owner, layer.attribute):
        shape = layer.weight.shape
        held: Any = layer.owner.parametrizations
        originals = held[layer.attribute].parameters(recurse=False)
        return [_Seen(layer, original, None) for original in originals if original.shape == shape]
    return [_Seen(layer, layer.weight, layer.weight)]


def _values(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _weight_among(found: Sequence[_Seen]) -> _Seen | None:
    """The one operand that is a weight; a parameter goes before what is computed from one; None for a product of two weights."""
    for kind in ([seen for seen in found if seen.weight is not None], found):
        if len(kind) == 1:
            return kind[0]
    return None


def _again(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensor: Tensor, index: int | None) -> Callable[[Tensor], Tensor]:
    def view(other: Tensor) -> Tensor:
        out = func(*(other if value is tensor else value for value in args), **{k: other if v is tensor else v for k, v in kwargs.items()})
        return out if index is None else out[index]  # type: ignore[no-any-return]

    return view


def layers_of(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model by name: that of the module, and for other parameters than ``weight`` their own."""
    return {_name(path, module): module for path, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def _name(path: str, layer: QuantizedLayer) -> str:
    if not isinstance(layer, QuantizedParameter):
        return path
    owner = path.rpartition(".")[0]
    return owner if layer.attribute == "weight" else f"{owner}.{layer.attribute}".removeprefix(".")


def watch(scope: nn.Module, layer: QuantizedLayer) -> None:
    """From now on the forward pass of ``scope`` is watched for products with the layer's weight."""
    change_class(scope, Watching)
    scope.__dict__.setdefault("watched", []).append(layer)
