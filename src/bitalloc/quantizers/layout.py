"""How a tensor lies in memory, as the fused kernels take it."""

from torch import Tensor, empty_like


def sizes(dense: Tensor, step: Tensor) -> tuple[int, int, int] | None:
    """``dense`` in the order of its memory as (outer, channels, inner), one step a channel; None where channels are not a run of axes."""
    if step.numel() == 1:
        return 1, 1, dense.numel()
    steps = (1,) * (dense.dim() - step.dim()) + tuple(step.shape)
    axes = sorted((axis for axis, size in enumerate(dense.shape) if size != 1), key=dense.stride, reverse=True)
    places = [place for place, axis in enumerate(axes) if steps[axis] != 1]
    first, end = places[0], places[-1] + 1
    channels = axes[first:end]
    if len(channels) != len(places) or channels != sorted(channels):
        return None
    outer = 1
    for axis in axes[:first]:
        outer *= dense.shape[axis]
    return outer, step.numel(), dense.numel() // max(outer * step.numel(), 1)


def laid_out_as(form: Tensor, tensor: Tensor) -> Tensor:
    """``tensor`` with the strides of ``form``; a copy only where they differ."""
    return tensor if tensor.stride() == form.stride() else empty_like(form).copy_(tensor)
