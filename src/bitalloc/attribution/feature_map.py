"""Finding the last feature map of a network from one forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from bitalloc.attribution.base import check_inputs, explained, logits_of
from bitalloc.attribution.freeze import frozen
from bitalloc.attribution.point import Point, channel_axis, is_map, tensor_of
from bitalloc.errors import TrainingError
from bitalloc.training import evaluating

SAMPLES = 2
"""Images of the pass that layers are found with."""

SHOWN = 12
"""Names that an error lists."""

_REARRANGE = {"flatten", "reshape", "view", "permute", "transpose", "contiguous", "unflatten", "squeeze", "unsqueeze", "__get__"}

Edge = tuple[Node, int]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tensor that could be a feature map: the point that gives it, and its place in the history of the logits when it was made."""

    module: str
    function: str
    tensor: Tensor
    edge: Edge
    view: bool


@dataclass(slots=True)
class _Pass:
    seen: list[_Seen] = field(default_factory=list)

    def add(self, module: str, function: str, tensor: Tensor, batch: int) -> None:
        # A tensor that does not depend on the input, as a position bias, has no history here, where all parameters are frozen.
        if is_map(tensor, batch) and tensor.grad_fn is not None:
            # A module that only rearranges, as windows to an image, gives a map in the form that the head reads.
            view = tensor._is_view() and not (module and tensor.dim() == 4)
            self.seen.append(_Seen(module, function, tensor, (tensor.grad_fn, tensor.output_nr), view))


def find_feature_map(model: nn.Module, inputs: Tensor) -> Point:
    """The last feature map or token sequence of a classifier.

    That is the last tensor (N, C, H, W) or (N, T, D) with more than one position

    - which everything goes through on its way from the input to the logits, so what one branch or an attention head computes is none;
    - which is no rearrangement of another one, unless a module made it;
    - of which the logits read more than one position: where the head reads a class token only, it is what the last block reads.

    It is given as the output of the outermost module that has it as such, else as the result of a function.

    Args:
        model: gives logits; it is run on two images in evaluation mode and left as it was.
        inputs: images, (N, ...).

    Raises:
        TrainingError: there is none; it names what was seen. Or the model gives no logits, or the inputs are no images.
    """
    with _recorded(model, inputs) as (found, leaf, logits):
        target, source = explained(logits, None), get_gradient_edge(leaf).node
        for index in reversed(range(len(found.seen))):
            each = found.seen[index]
            if each.view or each.edge != _edge(each.tensor):  # the latter was written to since
                continue
            if _everything_passes(logits, each.edge, source) and _positions(target, each) != 1:
                return _point(found.seen, index)
        raise TrainingError(
            "no feature map was found: expected a tensor (N, C, H, W) or (N, T, D) with more than one position that everything goes "
            f"through on its way to the logits. Seen: {_listed(found.seen)}. Name the layers, or use an attribution of the input."
        )


def find_layers(model: nn.Module, inputs: Tensor, patterns: tuple[str, ...]) -> tuple[Point, ...]:
    """The outputs of the modules whose names match a pattern and that give feature maps, in the order of the forward pass.

    Raises:
        TrainingError: a pattern matches no such module; it lists those that there are.
    """
    with _recorded(model, inputs) as (found, _, _):
        names = list(dict.fromkeys(each.module for each in found.seen if each.module))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise TrainingError(f"no module with a feature map matches {pattern!r}; there are: {', '.join(names) or 'none'}.")
    return tuple(Point(name) for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


@contextmanager
def _recorded(model: nn.Module, inputs: Tensor) -> Iterator[tuple[_Pass, Tensor, Tensor]]:
    check_inputs(inputs)
    found = _Pass()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        leaf = inputs[:SAMPLES].detach().clone().requires_grad_()
        stack.enter_context(evaluating(model))
        stack.enter_context(frozen(model))
        writable = leaf.clone()  # the model may write to its input
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.callback(module.register_forward_hook(_noting(name, found, len(leaf))).remove)
            hooks.enter_context(_Noting(found, len(leaf)))
            output = model(writable)
        logits = logits_of(output, leaf)
        if logits.grad_fn is None:
            raise TrainingError("the logits do not depend on the input through differentiable operations: there is nothing to attribute.")
        yield found, leaf, logits


def _noting(name: str, found: _Pass, batch: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        tensor = tensor_of(output)
        if tensor is not None and name:
            found.add(name, "", tensor, batch)

    return hook


class _Noting(TorchFunctionMode):
    def __init__(self, found: _Pass, batch: int) -> None:
        super().__init__()
        self._found, self._batch = found, batch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(result, Tensor) and name not in _REARRANGE:
            self._found.add("", name, result, self._batch)
        return result


def _edge(tensor: Tensor) -> Edge | None:
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def _everything_passes(logits: Tensor, edge: Edge, source: Node) -> bool:
    """Whether every path from the logits back to ``source`` goes through ``edge``."""
    ahead = [(logits.grad_fn, logits.output_nr)]
    done: set[Any] = set()
    while ahead:
        node, number = ahead.pop()
        if node is None or (node, number) == edge or node in done:
            continue
        if node is source:
            return False
        # An output of a node that was reached by another one may be the edge, so only whole nodes are done.
        done.add(node)
        ahead.extend(node.next_functions)
    return True


def _positions(target: Tensor, seen: _Seen) -> int:
    """How many positions the logits read, in the sample with the most."""
    (gradient,) = torch.autograd.grad(target, seen.tensor, retain_graph=True, materialize_grads=True)
    read = gradient.abs().sum(channel_axis(gradient)).flatten(1)
    return int((read > 0).sum(1).max())


def _point(seen: list[_Seen], index: int) -> Point:
    chosen = seen[index]
    modules = [each.module for each in seen if each.module and each.edge == chosen.edge]
    if modules:
        return Point(modules[-1])  # modules end from the inside out
    later = sum(each.function == chosen.function for each in seen[index + 1 :])
    return Point(function=chosen.function, from_end=later)


def _listed(seen: list[_Seen]) -> str:
    names = [f"{each.module or each.function} {tuple(each.tensor.shape)}" for each in seen[-SHOWN:]]
    return ", ".join(names) or "no such tensor"
