"""Quantized tensors that the backward pass computes again instead of keeping them for it.

A convolution keeps its input and weight for the backward pass. Those of a quantized layer are fake-quantized copies of tensors that are
kept anyway, by the quantizers and by the layer in front; so a copy is dropped after the forward pass and quantized once more when the
backward pass asks for it, which costs about as much as a ``relu``. The values are the same bit for bit. (T. Chen et al., "Training Deep
Nets with Sublinear Memory Cost", arXiv 1604.06174, for single cheap operations.)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bitalloc.quantizers.tracing import traced

_RECIPE = "_bitalloc_recipe"


@dataclass(frozen=True, slots=True)
class _Dropped:
    """What stands for a quantized tensor, or a view of one, until the backward pass.

    Attributes:
        compute: gives the quantized tensor once more.
        size, stride, offset: of the view.
    """

    compute: Callable[[], Tensor]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        with torch.no_grad():
            return self.compute().as_strided(self.size, self.stride, self.offset)


def computable(out: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """``out``, with a note how to compute it again, where a backward pass can come."""
    if out.requires_grad and not traced():
        setattr(out, _RECIPE, compute)
    return out


@contextmanager
def computed_again(*quantized: Tensor) -> Iterator[None]:
    """Operations in the block keep none of the ``quantized`` tensors for their backward pass.

    Nothing is changed if one of them is no output of a fake quantization, under a tracer, and inside of other hooks on saved tensors, such
    as those of activation checkpointing: only the innermost hooks would count, and what the outer ones are there for would be lost.
    """
    found = [getattr(tensor, _RECIPE, None) for tensor in quantized]
    if None in found or traced() or _hooked():
        yield
        return
    recipes = {tensor.untyped_storage().data_ptr(): recipe for tensor, recipe in zip(quantized, found, strict=True)}

    def pack(tensor: Tensor) -> Tensor | _Dropped:
        recipe = recipes.get(tensor.untyped_storage().data_ptr())
        if recipe is None:
            return tensor
        return _Dropped(recipe, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def unpack(kept: Tensor | _Dropped) -> Tensor:
        return kept.tensor() if isinstance(kept, _Dropped) else kept

    with saved_tensors_hooks(pack, unpack):
        yield


def _hooked() -> bool:
    """Whether there are hooks on saved tensors, or none are allowed. PyTorch has no public way to ask."""
    enabled: bool = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    return not enabled or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
