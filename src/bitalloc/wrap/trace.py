"""The graph of a model from one forward pass that is recorded: works on any model that runs."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.wrap.graph import Graph, ModuleFacts
from bitalloc.wrap.record import Recorder, Where, recording

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def record_forward(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
    """Calls the model once in evaluation mode without gradients. The model is left as it was."""
    graph = Graph()
    where = Where()
    recorder = Recorder(graph, where)
    register_state(recorder, model)
    for name, tensor in named_inputs(model, args, kwargs):
        graph.inputs.append(recorder.register(tensor, "input", (name,)))
    with ExitStack() as cleanup:
        cleanup.enter_context(unchanged(model))
        cleanup.callback(recorder.restore)
        for name, module in model.named_modules():
            cleanup.callback(module.register_forward_pre_hook(_entering(name, where), with_kwargs=True).remove)
            # always_call: a model may catch an error of a part of it and go on.
            cleanup.callback(module.register_forward_hook(_leaving(where), with_kwargs=True, always_call=True).remove)
        model.eval()
        with recording(recorder):
            output = model(*args, **kwargs)
        graph.outputs = [recorder.value_of(tensor) for tensor in tensors_in(output)]
    graph.modules = {name: _facts(module) for name, module in model.named_modules()}
    return graph


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order."""
    for _, tensor in _named_tensors("", value):
        yield tensor


def register_state(recorder: Recorder, model: nn.Module) -> None:
    """Makes all parameters and buffers known to a recorder, each with all its names."""
    for origin, named in (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    ):
        names: dict[int, list[str]] = {}
        tensors: list[Tensor] = []
        for name, tensor in named:
            if id(tensor) not in names:
                tensors.append(tensor)
            names.setdefault(id(tensor), []).append(name)
        for tensor in tensors:
            recorder.register(tensor, "parameter" if origin == "parameter" else "buffer", tuple(names[id(tensor)]))


def named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """The input tensors with the names of the arguments that hold them, for example ``images.0`` for the first in a list."""
    return list(name_inputs(list(inspect.signature(model.forward).parameters), args, kwargs))


def name_inputs(parameters: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """As :func:`named_inputs`, for given names of the positional arguments."""
    for index, value in enumerate(args):
        yield from _named_tensors(parameters[index] if index < len(parameters) else str(index), value)
    for name, value in kwargs.items():
        yield from _named_tensors(name, value)


def _named_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        items = [(entry.name, getattr(value, entry.name)) for entry in fields(value)]
    for key, item in items:
        yield from _named_tensors(f"{name}.{key}" if name else str(key), item)


def _entering(name: str, where: Where) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        where.enter(name)

    return hook


def _leaving(where: Where) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        where.leave()

    return hook


def _facts(module: nn.Module) -> ModuleFacts:
    return ModuleFacts(
        type=type(module).__name__,
        parameters=tuple(name for name, parameter in module._parameters.items() if parameter is not None),
        children=any(True for _ in module.children()),
        batch_norm=isinstance(module, BATCH_NORMS),
    )


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restores every module's training flag, the identity of its parameters and buffers, and the content of the buffers."""
    training = [(module, module.training) for module in model.modules()]
    parameters = [(module, dict(module._parameters)) for module in model.modules()]
    memory = [(parameter, parameter.data) for parameter in model.parameters()]
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
        for module, held in parameters:
            module._parameters.update(held)
        for parameter, data in memory:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer
                if buffer is not None and content is not None:
                    buffer.copy_(content)
