"""The functions of PyTorch that multiply two tensors, and those that only show a tensor in another form."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_Operands = tuple[tuple[int, ...] | None, tuple[str, ...]]

# Products of the groups of a mixture of experts, where this version of PyTorch has them.
_GROUPED = [function for place in (F, torch) for name in ("grouped_mm", "_grouped_mm") if (function := getattr(place, name, None))]
_TWO = (0, 1)
_MIDDLE = (1, 2)

OPERANDS: dict[Any, _Operands] = {
    F.linear: (_TWO, ("input", "weight")),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d, torch.convolution), (_TWO, ("input", "weight"))),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), (_TWO, ("input", "weight"))),
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm, torch.mv), (_TWO, ("input", "other", "mat2", "vec"))),
    **dict.fromkeys((Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.mv), (_TWO, ("other", "mat2", "vec"))),
    **dict.fromkeys((Tensor.__matmul__, Tensor.__rmatmul__), (_TWO, ())),
    **dict.fromkeys(
        (torch.addmm, torch.addbmm, torch.baddbmm, torch.addmv, Tensor.addmm, Tensor.addbmm, Tensor.baddbmm, Tensor.addmv),
        (_MIDDLE, ("mat1", "mat2", "batch1", "batch2", "mat", "vec")),
    ),
    **dict.fromkeys(_GROUPED, (_TWO, ("mat_a", "mat_b", "self", "mat2"))),
    torch.einsum: (None, ()),
    torch.tensordot: (_TWO, ("a", "b")),
    F.embedding: ((1,), ("weight",)),
}
"""Function to its operands: positions (None for all), and the names that they may be given by. What is added is no operand."""

_METHODS = (
    *("t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "adjoint"),
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "expand", "expand_as"),
    *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow", "select", "__getitem__", "unsafe_chunk", "unsafe_split"),
    *("contiguous", "clone", "to", "type", "type_as", "float", "half", "bfloat16", "double", "detach"),
)
_PLACES: tuple[Any, ...] = (Tensor, torch)
VIEWS = frozenset(
    [
        *(function for name in _METHODS for place in _PLACES if callable(function := getattr(place, name, None))),
        *(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH")),
    ]
)
"""Functions whose result has the values of their first argument: quantizing before and after is the same."""
