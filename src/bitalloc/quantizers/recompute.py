"""Quantized tensors that the backward pass computes again instead of keeping them for it.

A convolution keeps its input and weight for the backward pass. Those of a quantized layer are fake-quantized copies of tensors that are
kept anyway, by the quantizers and by the layer in front; so a copy is dropped after the forward pass and quantized once more when the
backward pass asks for it, which costs about as much as a ``relu``. The values are the same bit for bit. (T. Chen et al., "Training Deep
Nets with Sublinear Memory Cost", arXiv 1604.06174, for single cheap operations.)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bitalloc.quantizers.tracing import traced

_RECIPE = "_bitalloc_recipe"


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to compute a quantized tensor again.

    Attributes:
        compute: quantizes once more.
        sources: what it reads.
        versions: PyTorch's counters of in-place changes, of the sources and of the quantized tensor, when it was computed.
    """

    compute: Callable[[], Tensor]
    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def unchanged(self) -> bool:
        return all(tensor._version == version for tensor, version in zip(self.sources, self.versions, strict=False))


@dataclass(frozen=True, slots=True)
class _Dropped:
    """What stands for a quantized tensor, or a view of one, until the backward pass.

    Attributes:
        recipe: gives the quantized tensor once more.
        size, stride, offset: of the view.
    """

    recipe: _Recipe
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        if not self.recipe.unchanged():
            raise RuntimeError(
                "a tensor needed for the gradient of a quantized layer has been modified by an inplace operation: its input or its weight, "
                "after the forward pass. Do that before the layer or after the backward pass, or on a copy."
            )
        with torch.no_grad():
            return self.recipe.compute().as_strided(self.size, self.stride, self.offset)


def computable(out: Tensor, compute: Callable[[], Tensor], *sources: Tensor) -> Tensor:
    """``out``, with a note how to compute it again from ``sources``, where a backward pass can come. Subclasses of a tensor get none."""
    if type(out) is Tensor and out.requires_grad and out.device.type != "meta" and not traced():
        setattr(out, _RECIPE, _Recipe(compute, sources, tuple(tensor._version for tensor in (*sources, out))))
    return out


def computed_again(*quantized: Tensor) -> AbstractContextManager[object]:
    """A block whose operations keep none of the ``quantized`` tensors for their backward pass.

    Nothing is changed if one of them is no output of a fake quantization as it left it, under a tracer, and inside of other hooks on saved
    tensors, such as those of activation checkpointing: only the innermost hooks would count, and what the outer ones are there for would be
    lost. In-place changes of what was quantized, between the forward and the backward pass, are an error as they are for a plain layer; but
    not those through ``.data``, which leave no trace: then the gradient is that of the changed values.
    """
    if traced() or _hooked():
        return nullcontext()
    found = [recipe for tensor in quantized if (recipe := _recipe(tensor)) is not None]
    if len(found) < len(quantized):
        return nullcontext()
    recipes = {tensor.untyped_storage().data_ptr(): recipe for tensor, recipe in zip(quantized, found, strict=True)}

    def pack(tensor: Tensor) -> Tensor | _Dropped:
        recipe = recipes.get(tensor.untyped_storage().data_ptr())
        if recipe is None:
            return tensor
        return _Dropped(recipe, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def unpack(kept: Tensor | _Dropped) -> Tensor:
        return kept.tensor() if isinstance(kept, _Dropped) else kept

    return saved_tensors_hooks(pack, unpack)


def _recipe(tensor: Tensor) -> _Recipe | None:
    """How to compute a tensor again; None for one that is no output of a quantizer, or was changed since."""
    recipe: _Recipe | None = getattr(tensor, _RECIPE, None)
    return recipe if recipe is not None and tensor._version == recipe.versions[-1] and recipe.unchanged() else None


def _hooked() -> bool:
    """Whether there are hooks on saved tensors, or none are allowed. PyTorch has no public way to ask."""
    try:
        enabled: bool = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
        return not enabled or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    except AttributeError:  # a later PyTorch: nothing is dropped
        return True
