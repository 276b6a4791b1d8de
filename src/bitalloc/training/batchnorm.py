"""Batch-norm statistics measured anew: after weights were rounded the running averages of training no longer fit."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitalloc.errors import TrainingError
from bitalloc.placement import module_device, to_device
from bitalloc.training.batches import image_count, image_total, inputs_of, non_empty
from bitalloc.training.modes import evaluating
from bitalloc.training.progress import SILENT, Progress
from bitalloc.training.ranks import is_main
from bitalloc.training.reduction import agree_on_model


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module,
    loader: Iterable[Any],
    images: int = 4096,
    progress: Progress = SILENT,
    name: str = "batch norm",
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> tuple[str, ...]:
    """Sets the running mean and variance of every batch norm that takes part to those of its input over the data.

    Batch norms normalize by the batch while they are measured, as in training; everything else is in evaluation mode. The
    result is the exact mean and unbiased variance over all values of a channel (accumulated in float64, so neither the
    order nor the sizes of the batches weigh), not a moving average. Batch norms that are not called, such as branches for
    other bit-widths, and those without running statistics stay as they are. In a distributed launch every rank measures over the
    same images, which are few, and the result of rank 0 is everybody's.

    Args:
        model: changed in place, in the running statistics only.
        loader: training images: inputs, or tuples that begin with them, or whatever ``forward`` takes.
        images: stop after the batch that reaches so many. Default 4096, "some thousand" as in LIMPQ's fine-tuning.
        progress: advances by images.
        name: the name of the work in the progress.
        forward: ``forward(model, batch)`` runs the model on a batch. Default: ``model(inputs)``.

    Returns:
        The names of the batch norms that were measured.

    Raises:
        TrainingError: the loader is empty or a batch norm's input is not finite; the statistics are as they were.
    """
    if images < 1:
        raise TrainingError(f"images is {images}, expected a positive number of images to measure batch norms on.")
    norms = {norm: key for key, norm in model.named_modules() if isinstance(norm, _BatchNorm) and norm.running_mean is not None}
    if not norms:
        return ()
    progress, run = progress if is_main() else SILENT, forward or _run_on_inputs
    with evaluating(model), _measuring(norms) as measured, progress.task(name, min(images, image_total(loader) or images)):
        seen = 0
        for batch in non_empty(loader, "measure batch norms on"):
            run(model, to_device(batch, module_device(model)))
            seen += image_count(batch)
            progress.advance(image_count(batch))
            if seen >= images:
                break
    for norm, moments in measured.items():
        if not moments.finite():
            raise TrainingError(f"the input of batch norm {norms[norm]} is not finite, so it has no statistics: check weights and data.")
    for norm, moments in measured.items():
        moments.write(norm)
    agree_on_model(model)
    return tuple(norms[norm] for norm in measured)


def _run_on_inputs(model: nn.Module, batch: Any) -> Any:
    return model(inputs_of(batch))


class _Moments:
    """Count, mean and sum of squared deviations of each channel, merged batch by batch (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.batches = 0
        self.mean: Tensor = torch.zeros(())
        self.deviations: Tensor = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """``values`` has the channel in dimension 1."""
        flat = values.detach().transpose(0, 1).flatten(1).double()
        count, mean = flat.shape[1], flat.mean(dim=1)
        deviations = (flat - mean[:, None]).square().sum(dim=1)
        total = self.count + count
        difference = mean - self.mean.to(mean)
        self.mean = self.mean.to(mean) + difference * (count / total)
        self.deviations = self.deviations.to(mean) + deviations + difference.square() * (self.count * count / total)
        self.count = total
        self.batches += 1

    def finite(self) -> bool:
        return bool(self.mean.isfinite().all() and self.deviations.isfinite().all())

    def write(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.deviations / max(self.count - 1, 1))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(self.batches)


@contextmanager
def _measuring(norms: Iterable[_BatchNorm]) -> Iterator[dict[_BatchNorm, _Moments]]:
    """Collects the moments of the inputs of ``norms``, in training mode; their own running averages are put back."""
    measured: Final[dict[_BatchNorm, _Moments]] = {}

    def observe(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        measured.setdefault(norm, _Moments()).add(arguments[0])

    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    for norm in norms:
        norm.train()
    try:
        yield measured
    finally:
        for handle in handles:
            handle.remove()
        for buffer, value in before:
            buffer.copy_(value)
