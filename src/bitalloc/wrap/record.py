"""Records the operations of a forward pass as they are dispatched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bitalloc.wrap.graph import Graph, Node, Origin, Value
from bitalloc.wrap.operations import ATTENTION, COMPOSITES


@dataclass(slots=True)
class Where:
    """The modules that are being computed, outermost first, each with a number that tells its calls apart."""

    stack: list[tuple[str, int]] = field(default_factory=list)
    calls: int = 0

    def enter(self, module: str) -> None:
        """A call of ``module`` begins."""
        self.calls += 1
        self.stack.append((module, self.calls))

    def leave(self) -> None:
        """The innermost call ends."""
        self.stack.pop()

    @property
    def innermost(self) -> tuple[str, int]:
        """Name and call of the innermost module."""
        return self.stack[-1] if self.stack else ("", 0)


class Recorder(TorchDispatchMode):
    """Writes every operation that runs under it into a graph.

    A tensor is known by its identity, so the recorder holds all of them until it is dropped. Writes in place make a new value; other
    views of the written memory see it through an ``update`` node. A parameter that is written is copied before, for :meth:`restore`.
    """

    def __init__(self, graph: Graph, where: Where) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = graph
        self._where = where
        self._known: dict[int, tuple[Tensor, int]] = {}
        self._memory: dict[int, int] = {}  # storage: the value that stands for all of it
        self._written: dict[int, tuple[int, tuple[str, int]]] = {}  # storage: the value written last, and where
        self._persistent: dict[int, Tensor] = {}
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._paused = False

    def register(self, tensor: Tensor, origin: Origin, names: tuple[str, ...] = ()) -> int:
        """Makes a tensor known that no operation makes."""
        if id(tensor) in self._known:
            return self._known[id(tensor)][1]
        value = self._new(tensor, origin, names)
        if origin in ("parameter", "buffer"):
            self._persistent[_storage(tensor)] = tensor
        return value

    def value_of(self, tensor: Tensor) -> int:
        """The value that a tensor has now."""
        storage = _storage(tensor)
        written, where = self._written.get(storage, (-1, self._where.innermost))
        if id(tensor) not in self._known:
            owner = max(written, self._memory.get(storage, -1))
            if owner < 0:
                return self.register(tensor, "constant")
            # Not seen being made, as p.data or a tensor made before the pass from one that is known.
            return self._append("alias", (("self", owner),), [self._new(tensor)], {})[0]
        value = self._known[id(tensor)][1]
        if written <= value:
            return value
        if self._graph.values[written].numel == tensor.numel():
            return self._append("alias", (("self", written),), [self._new(tensor)], {}, where)[0]
        return self._append("update", (("self", value), ("source", written)), [self._new(tensor)], {}, where)[0]

    def restore(self) -> None:
        """Gives every parameter that was written its content of before."""
        with torch.no_grad():
            for tensor, content in self._saved.values():
                tensor.copy_(content)

    def composite(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a function as one operation. Attention's operands are ``query``, ``key`` and ``value``."""
        if self._paused:
            return func(*args, **kwargs)
        names = ("query", "key", "value") if name == ATTENTION else ("input",)
        arguments = {names[index] if index < len(names) else f"argument{index}": value for index, value in enumerate(args)} | kwargs
        operands, options = self._operands(arguments)
        self._paused = True
        try:
            result = func(*args, **kwargs)
        finally:
            self._paused = False
        self._append(name, operands, [self._new(tensor) for tensor in _tensors(result)], options)
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        schema = func._schema
        arguments = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
        operands, options = self._operands(arguments)
        targets = [arguments.get(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        written = list(_tensors(targets))
        for tensor in written:
            self._save(tensor)
        result = func(*args, **kwargs)
        made = [*written, *(tensor for tensor in _tensors(result) if id(tensor) not in self._known)]
        new = [self._new(tensor) for tensor in made]
        if new:
            name = schema.name.split("::")[-1]
            self._append(name.rstrip("_") if written else name, operands, new, options)
        for tensor in written:
            self._written[_storage(tensor)] = (self._known[id(tensor)][1], self._where.innermost)
        return result

    def _operands(self, arguments: dict[str, Any]) -> tuple[tuple[tuple[str, int], ...], dict[str, Any]]:
        found = [(name, self.value_of(tensor)) for name, argument in arguments.items() for tensor in _tensors(argument)]
        return tuple(found), {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}

    def _append(
        self,
        operation: str,
        operands: tuple[tuple[str, int], ...],
        results: list[int],
        options: dict[str, Any],
        where: tuple[str, int] | None = None,
    ) -> list[int]:
        module, call = where or self._where.innermost
        self._graph.nodes.append(Node(operation, module, call, operands, tuple(results), options))
        return results

    def _new(self, tensor: Tensor, origin: Origin = "computed", names: tuple[str, ...] = ()) -> int:
        strides = tuple(tensor.stride()) if tensor.layout is torch.strided else ()
        floating = tensor.is_floating_point() or tensor.is_complex()
        value = self._graph.add_value(Value(tuple(tensor.shape), strides, floating, origin, names))
        self._known[id(tensor)] = (tensor, value)
        self._memory.setdefault(_storage(tensor), value)
        return value

    def _save(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage in self._persistent and storage not in self._saved:
            whole = self._persistent[storage]
            self._saved[storage] = (whole, whole.detach().clone())


class _Composites(TorchFunctionMode):
    """Sees calls of the composites wherever they come from, but for those from other functions of PyTorch."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in COMPOSITES:
            return self._recorder.composite(name, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Records what runs within, without gradients.

    PyTorch's own attention module takes a fused path on some devices, which hides its products; it is switched off meanwhile.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    attention = functional.scaled_dot_product_attention

    # multi_head_attention_forward calls it while the mode for functions is off.
    @wraps(attention)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        return recorder.composite(ATTENTION, attention, args, kwargs)

    torch.backends.mha.set_fastpath_enabled(False)
    functional.scaled_dot_product_attention = recorded
    try:
        with torch.no_grad(), _Composites(recorder), recorder:
            yield
    finally:
        functional.scaled_dot_product_attention = attention
        torch.backends.mha.set_fastpath_enabled(fused)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _storage(tensor: Tensor) -> int:
    """A number for the memory of a tensor; on the meta device, where nothing has an address, too."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
