"""Parameters, gradients and optimiser states spread over ranks (PyTorch's FSDP2), for models that one device does not hold.

The model that trains is a copy whose tensors of two dimensions and more are ``DTensor``s; step sizes, biases and normalisations are a
few numbers, stay whole on every rank, and their gradients are averaged once a step as in data parallelism.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from bitalloc.training.device import device
from bitalloc.training.ranks import world_size

T = TypeVar("T", bound=Tensor)


def whole(value: Any) -> Any:
    """``value`` with every spread tensor in it put together; nested dicts, lists and tuples. All ranks call it together."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def load_model(model: nn.Module, state: Mapping[str, Any]) -> None:
    """``model.load_state_dict`` of whole tensors into a model that may be spread."""
    present = model.state_dict()
    model.load_state_dict({name: _like(value, present.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict`` of whole tensors into one whose parameters may be spread."""
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        values.update({key: _like(value, parameter) for key, value in values.items()})


def clip(model: nn.Module, value: float | None, norm: float | None) -> None:
    """Clips every gradient element to plus and minus ``value``, then scales all gradients together down to the 2-norm ``norm``."""
    kinds = _kinds([parameter for parameter in model.parameters() if parameter.grad is not None])
    if value is not None:
        for kind in kinds:
            nn.utils.clip_grad_value_(kind, value)
    if norm is not None:
        total = total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, norm, total)


def total_norm(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of all tensors as one vector, at least one of them; they may be spread."""
    norms: list[Tensor] = [whole(nn.utils.get_total_norm(kind, order)) for kind in _kinds(tensors)]
    return torch.linalg.vector_norm(torch.stack(norms), order) if len(norms) > 1 else norms[0]


@contextmanager
def sharded(model: nn.Module, optimizer: Optimizer, spread: bool) -> Iterator[nn.Module]:
    """The model to train within the block: ``model`` itself, or where ``spread`` and there are several ranks, a spread copy of it.

    ``optimizer`` trains the copy meanwhile. At the end the trained tensors come back to ``model`` and ``optimizer``, whole; after an error
    ``model`` is as it was before, for a rank that died cannot give its part.
    """
    if not spread or world_size() == 1:
        yield model
        return
    copied = copy.deepcopy(model)
    twins = {id(own): twin for own, twin in zip(model.parameters(), copied.parameters(), strict=True)}
    positions = {id(twin): name for name, twin in copied.named_parameters()}
    own = dict(model.named_parameters())
    names = {key: positions[id(twin)] for key, twin in twins.items()}
    _spread(copied, init_device_mesh(device().type, (world_size(),)))
    spread_ones = dict(copied.named_parameters())
    _exchange(optimizer, {key: spread_ones[name] for key, name in names.items()})
    back = {id(spread_ones[name]): own[name] for name in names.values()}
    try:
        yield copied
        model.load_state_dict(whole(copied.state_dict()))
    finally:
        _exchange(optimizer, back)
    for values in optimizer.state.values():
        values.update({key: whole(value) for key, value in values.items()})


def _spread(model: nn.Module, mesh: DeviceMesh) -> None:
    """Spreads ``model`` in place: the blocks of its lists and sequences each for itself, so that one at a time is whole."""
    small = {parameter for parameter in model.parameters() if parameter.dim() < 2}
    owners: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    tied = {parameter for parameter, count in owners.items() if count > 1}
    blocks = [block for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential) for block in module]
    for block in reversed(dict.fromkeys(blocks)):
        if any(parameter not in small for parameter in block.parameters()) and tied.isdisjoint(block.parameters()):
            fully_shard(block, mesh=mesh, ignored_params=small)
    fully_shard(model, mesh=mesh, ignored_params=small)


def _kinds(tensors: Sequence[T]) -> list[list[T]]:
    """Whole tensors and spread ones apart: operations on lists take one kind."""
    kinds = ([tensor for tensor in tensors if isinstance(tensor, DTensor) is spread] for spread in (False, True))
    return [kind for kind in kinds if kind]


def _exchange(optimizer: Optimizer, others: Mapping[int, nn.Parameter]) -> None:
    """Gives ``optimizer`` other parameters for its own, in place, with their states."""
    for group in optimizer.param_groups:
        before: Iterable[nn.Parameter] = group["params"]
        group["params"] = [others[id(parameter)] for parameter in before]
    states = [(others[id(parameter)], values) for parameter, values in optimizer.state.items()]
    optimizer.state.clear()
    for parameter, values in states:
        optimizer.state[parameter] = {key: _like(value, parameter) for key, value in values.items()}


def _like(value: Any, other: Any) -> Any:
    """``value``, spread as ``other`` is, if that is spread and has its shape."""
    if isinstance(other, DTensor) and isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == other.shape:
        return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
    return value
