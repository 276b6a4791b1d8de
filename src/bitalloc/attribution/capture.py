"""Taking tensors out of a forward pass, with their history."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from bitalloc.attribution.point import Point, is_map, replaced, tensor_of
from bitalloc.errors import TrainingError


class Capture:
    """What was taken at each point; of several calls of a module the last."""

    def __init__(self, points: Sequence[Point], batch: int, source: Node | None) -> None:
        self._batch, self._source = batch, source
        self.modules: dict[str, Tensor | None] = {point.module: None for point in points if not point.function}
        self.functions: dict[Point, list[Tensor]] = {point: [] for point in points if point.function}
        self._points = tuple(points)

    def maps(self) -> tuple[Tensor, ...]:
        """The tensors, in the order of the points. Raises TrainingError if one was not reached or is no feature map."""
        return tuple(self._map(point) for point in self._points)

    def _map(self, point: Point) -> Tensor:
        found = self._call(point) if point.function else self.modules[point.module]
        if found is None or not is_map(found, self._batch):
            shape = "was not reached" if found is None else f"gave shape {tuple(found.shape)}"
            raise TrainingError(
                f"attribution: {point} {shape}, expected a feature map ({self._batch}, C, H, W) or tokens ({self._batch}, T, D): "
                "name other layers, and give teacher and student the same architecture."
            )
        return found

    def _call(self, point: Point) -> Tensor | None:
        # Only now, as this goes through the history: calls on parameters alone, as of a position bias, do not count.
        depending = (call for call in reversed(self.functions[point]) if _depends(call, self._source))
        return next(islice(depending, point.from_end, None), None)


@contextmanager
def capturing(model: nn.Module, points: Sequence[Point], batch: int, source: Node | None) -> Iterator[Capture]:
    """Takes what the points give in the forward passes inside the block.

    Args:
        model: is run inside the block.
        points: where.
        batch: number of samples.
        source: what made the input, of whose history a point's function counts the calls; None without such points.

    Raises:
        TrainingError: the model has no module of a point's name.
    """
    capture = Capture(points, batch, source)
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [name for name in capture.modules if name not in modules]
    if missing:
        raise TrainingError(
            f"attribution: the network has no module {', '.join(missing)}: teacher and student need the same layers, by the same names."
        )
    with ExitStack() as stack:
        for name in capture.modules:
            stack.callback(modules[name].register_forward_hook(_taking(name, capture)).remove)
        if capture.functions:
            stack.enter_context(_Functions(capture, batch))
        yield capture


def _depends(tensor: Tensor, source: Node | None) -> bool:
    """Whether ``source`` is in the history of ``tensor``."""
    ahead, done = [tensor.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in done:
            continue
        if node is source:
            return True
        done.add(node)
        ahead.extend(before for before, _ in node.next_functions)
    return False


def _taking(name: str, capture: Capture) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        tensor = tensor_of(output)
        if tensor is None:
            return None
        # Without a history (all before it is frozen) it starts one: nothing in front of it is kept for the gradient.
        taken = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        capture.modules[name] = taken
        # A copy goes on, so that a later operation in place does not write to what was taken.
        return replaced(output, taken.clone())

    return hook


class _Functions(TorchFunctionMode):
    def __init__(self, capture: Capture, batch: int) -> None:
        super().__init__()
        self._capture, self._batch = capture, batch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        for point, calls in self._capture.functions.items():
            if point.function == name and isinstance(result, Tensor) and is_map(result, self._batch):
                calls.append(result)
        return result
