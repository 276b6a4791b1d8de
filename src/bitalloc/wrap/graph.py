"""One form for the operations of a forward pass, whichever way they were found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Origin = Literal["input", "parameter", "buffer", "constant", "computed"]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor, as it is between two writes.

    Attributes:
        shape: its shape.
        stride: its strides.
        floating: whether its elements are floating-point numbers.
        origin: where it comes from.
        names: of an input, the argument; of a parameter or buffer, all its names.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    floating: bool
    origin: Origin = "computed"
    names: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        operation: its name in ATen, without overload and without the underscore of an operation in place.
        module: name of the innermost module that computes it.
        call: tells the calls of that module apart.
        operands: name of the argument and the value in it, lists spread out.
        results: the values that it makes.
        options: its other arguments.
    """

    operation: str
    module: str
    call: int
    operands: tuple[tuple[str, int], ...]
    results: tuple[int, ...]
    options: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The values that it reads."""
        return tuple(value for _, value in self.operands)

    def operand(self, name: str) -> int | None:
        """The value of one argument, None if it is no tensor."""
        return next((value for argument, value in self.operands if argument == name), None)


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What a description says of a module.

    Attributes:
        type: name of its class.
        parameters: names of the parameters that it holds itself, without its own name.
        children: whether it has submodules.
        batch_norm: whether it is a batch norm with its class's own arithmetic.
    """

    type: str
    parameters: tuple[str, ...] = ()
    children: bool = False
    batch_norm: bool = False


@dataclass(slots=True)
class Graph:
    """The operations of one forward pass in the order of execution.

    Attributes:
        values: by their number.
        nodes: the operations.
        inputs: values that were given to the model.
        outputs: values that it gave back.
        modules: by name, in the model's order; a module under several names stands under its first.
        source: the front end, see :class:`~bitalloc.layers.Description`.
    """

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    modules: dict[str, ModuleFacts] = field(default_factory=dict)
    source: str = "trace"

    def add_value(self, value: Value) -> int:
        """The number of a new value."""
        self.values.append(value)
        return len(self.values) - 1

    def makers(self) -> dict[int, Node]:
        """The node that makes each computed value."""
        return {value: node for node in self.nodes for value in node.results}

    def owners(self, parameter: int) -> Iterator[tuple[str, str]]:
        """Module and attribute for every name of a parameter; what a parametrisation or pruning renames has its first name again."""
        for name in self.values[parameter].names:
            yield _owner(name)


def _owner(name: str) -> tuple[str, str]:
    path = name.split(".")
    if len(path) >= 3 and path[-3] == "parametrizations":  # torch.nn.utils.parametrize
        return ".".join(path[:-3]), path[-2]
    if len(path) >= 4 and path[-4] == "parametrizations":  # a parameter of the parametrisation itself
        return ".".join(path[:-4]), path[-3]
    module, _, attribute = name.rpartition(".")
    for suffix in ("_orig", "_g", "_v"):  # torch.nn.utils.prune, spectral_norm and the older weight_norm
        if attribute == f"weight{suffix}":
            return module, "weight"
    return module, attribute
