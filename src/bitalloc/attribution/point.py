"""Where in a forward pass a feature map is taken."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Point:
    """The output of a module, at its last call; or what a function gives that no module has as its output.

    Attributes:
        module: name of the module.
        function: name of the function, empty for a module's output.
        from_end: calls of the function that come later in the pass and give a feature map that depends on the input, too.
    """

    module: str = ""
    function: str = ""
    from_end: int = 0

    def __str__(self) -> str:
        """For messages."""
        return f"call {-1 - self.from_end} of function {self.function}" if self.function else f"module {self.module}"


def is_map(tensor: Tensor, batch: int) -> bool:
    """Whether the tensor could be a feature map (N, C, H, W) or (N, H, W, C), or tokens (N, T, D), with more than one position."""
    if not tensor.is_floating_point() or tensor.dim() not in (3, 4) or tensor.shape[0] != batch:
        return False
    return tensor.shape[1:].numel() > tensor.shape[channel_axis(tensor)]


def channel_axis(tensor: Tensor) -> int:
    """The axis of the channels: 2 of tokens; 3 of a map with two equal sizes in front of another one, else 1."""
    if tensor.dim() == 3:
        return 2
    return 3 if tensor.shape[1] == tensor.shape[2] != tensor.shape[3] else 1


def tensor_of(output: Any) -> Tensor | None:
    """A module's output if it is a tensor, the first element if that is one, else None."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else None


def replaced(output: Any, tensor: Tensor) -> Any:
    """``output`` with ``tensor`` in the place of :func:`tensor_of`."""
    if not isinstance(output, tuple):
        return tensor
    items = (tensor, *output[1:])
    return type(output)(*items) if hasattr(output, "_fields") else items
