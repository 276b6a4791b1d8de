"""Quantized weights kept from batch to batch while nothing that they depend on changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitalloc.quantizers.tracing import traced


@dataclass(frozen=True, slots=True)
class _Kept:
    """A quantized weight, and what it was computed from.

    Attributes:
        sources: the weight and the step. Held, so that neither an id nor an address is given to another tensor meanwhile.
        memories: the same memory under tensors of its own, which stays taken when ``.data`` of a source is assigned.
        versions: PyTorch's counters of in-place changes, of both sources and of the result.
    """

    sources: tuple[Tensor, Tensor]
    memories: tuple[Tensor, Tensor]
    versions: tuple[int, int, int]
    bits: int
    result: Tensor

    def holds(self, weight: Tensor, step: Tensor, bits: int) -> bool:
        now = (weight, step)
        same = all(a is b for a, b in zip(now, self.sources, strict=True)) and bits == self.bits
        return same and self.versions == _versions(weight, step, self.result) and all(map(_same_memory, now, self.memories))


_kept: ContextVar[dict[int, _Kept] | None] = ContextVar("kept quantized weights", default=None)


@contextmanager
def cached_weights() -> Iterator[None]:
    """Within the block, without gradients, a weight is quantized once and not once a batch, as long as it stays what it is.

    For evaluation and calibration. Seen as a change of weight or step: optimizers, ``copy_`` and all other in-place operations,
    ``load_state_dict``, assignment of the parameter or of its ``.data``, another width. Operations on ``parameter.data`` in place, such as
    ``parameter.data.mul_(2)``, leave no trace in PyTorch: do them outside the block. That is why there is a block at all, and no cache
    that is always on. Everything kept is released at the end of the block, and a weight's at its first use with gradients.
    Weights that are no parameters (computed by a parametrisation) and inference tensors, which have no counter, are never kept; nor is
    anything under torch.compile, torch.export, ONNX export or jit tracing. Blocks nest: the outer one keeps.
    """
    if _kept.get() is not None:
        yield
        return
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def kept(owner: nn.Module, weight: Tensor, step: Tensor, bits: int, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """``quantize(weight)``, or what it gave ``owner`` before in this block of :func:`cached_weights`."""
    if traced():
        return quantize(weight)
    found = _kept.get()
    if found is None:
        return quantize(weight)
    if torch.is_grad_enabled() or not _counted(weight) or not _counted(step):
        found.pop(id(owner), None)
        return quantize(weight)
    before = found.get(id(owner))
    if before is not None and before.holds(weight, step, bits):
        return before.result
    with torch.inference_mode(False), torch.no_grad():  # an inference tensor would have no counter
        result = quantize(weight)
        versions = _versions(weight, step, result)
        found[id(owner)] = _Kept((weight, step), (weight.detach(), step.detach()), versions, bits, result)
    return result


def _counted(tensor: Tensor) -> bool:
    return type(tensor) is nn.Parameter and not tensor.is_inference()


def _versions(weight: Tensor, step: Tensor, result: Tensor) -> tuple[int, int, int]:
    return weight._version, step._version, result._version


def _same_memory(tensor: Tensor, memory: Tensor) -> bool:
    if tensor.dtype is not memory.dtype or tensor.device != memory.device or tensor.data_ptr() != memory.data_ptr():
        return False
    return tensor.shape == memory.shape and tensor.stride() == memory.stride()
