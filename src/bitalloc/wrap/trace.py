"""Watches one forward pass: which layer was called on which tensors, and what was computed outside of layers."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bitalloc.wrap.kinds import kind_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

_PRODUCTS = {
    "convolution": "convolution",
    "_convolution": "convolution",
    "mkldnn_rnn_layer": "recurrent layer",
    "_cudnn_rnn": "recurrent layer",
    "_native_multi_head_attention": "attention",
    "_transformer_encoder_layer_fwd": "transformer layer",
    **dict.fromkeys(("linear", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot"), "matrix product"),
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a supported layer. Holds the tensors, so that no other tensor of the trace can take their identity."""

    name: str
    input: Tensor
    output: Tensor


@dataclass(slots=True)
class Trace:
    """What was seen, in the order of the calls.

    Attributes:
        calls: the calls of supported layers.
        called: names of all modules that were called.
        products: module name (``""`` is the model itself) to the products computed in it outside of a supported layer.
        producers: batch norm name to the supported layer that it follows.
    """

    calls: list[Call] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    products: dict[str, set[str]] = field(default_factory=dict)
    producers: dict[str, str] = field(default_factory=dict)


def run_traced(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Trace, Any]:
    """Calls the model once in evaluation mode without gradients; gives the trace and the output. The model is left as it was."""
    trace = Trace()
    stack: list[tuple[str, nn.Module]] = []
    with ExitStack() as cleanup:
        cleanup.enter_context(_unchanged(model))
        for name, module in model.named_modules():
            cleanup.callback(module.register_forward_pre_hook(_entering(name, stack), with_kwargs=True).remove)
            # always_call: a model may catch an error of a part of it and go on.
            leave = _leaving(name, trace, stack)
            cleanup.callback(module.register_forward_hook(leave, with_kwargs=True, always_call=True).remove)
        model.eval()
        with torch.no_grad(), _Products(trace, stack):
            return trace, model(*args, **kwargs)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_in(getattr(value, entry.name))


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes convolutions and matrix products that run while no supported layer is the innermost module."""

    def __init__(self, trace: Trace, stack: list[tuple[str, nn.Module]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace
        self._stack = stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func._schema.name.split("::")[-1]
        product = "attention" if operation.startswith("_scaled_dot_product") else _PRODUCTS.get(operation)
        if product is not None and self._stack and kind_of(self._stack[-1][1]) is None:
            self._trace.products.setdefault(self._stack[-1][0], set()).add(product)
        return func(*args, **(kwargs or {}))


def _entering(name: str, stack: list[tuple[str, nn.Module]]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack.append((name, module))

    return hook


def _leaving(name: str, trace: Trace, stack: list[tuple[str, nn.Module]]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        stack.pop()
        trace.called.add(name)
        source = next(tensors_in((args, kwargs)), None)
        if source is None:
            return
        if kind_of(module) is not None and isinstance(output, Tensor):
            trace.calls.append(Call(name, source, output))
        elif isinstance(module, BATCH_NORMS) and name not in trace.producers and trace.calls:
            found = [call.name for call in reversed(trace.calls) if call.output is source]
            trace.producers[name] = found[0] if found else trace.calls[-1].name

    return hook


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restores every module's training flag, and every buffer: its identity and its content."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer
                if buffer is not None and content is not None:
                    buffer.copy_(content)
