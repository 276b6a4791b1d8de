"""Accuracy, logits and the plain loss of a classifier."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitalloc.errors import TrainingError
from bitalloc.placement import module_device, to_device
from bitalloc.training.batches import image_count, image_total, inputs_of, no_data, non_empty, pair_of
from bitalloc.training.modes import evaluating
from bitalloc.training.progress import SILENT, Progress
from bitalloc.training.ranks import is_main, summed, together, world_size
from bitalloc.training.shares import one_pass
from bitalloc.training.steps import LossFunction


@dataclass(frozen=True)
class Top1:
    """How many images have their label as the largest logit."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """``correct / total``, from 0 to 1."""
        return self.correct / self.total


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Any], progress: Progress = SILENT, name: str = "evaluate") -> Top1:
    """Top-1 accuracy over pairs (inputs, labels), in evaluation mode, on the device where ``model`` is.

    In a distributed launch all ranks call it, with the same model and loader; each takes its part of every batch, all get the result.

    Args:
        model: gives logits of shape (N, classes); its modes are put back afterwards.
        loader: pairs of inputs and labels of shape (N,).
        progress: advances by images.
        name: the name of the work in the progress.

    Raises:
        TrainingError: the loader is empty, a batch is no pair, or the logits have another shape or are NaN.
    """
    where = module_device(model)
    # Counted on the device: one transfer at the end instead of one a batch.
    correct = torch.zeros((), dtype=torch.int64, device=where)
    healthy = torch.ones((), dtype=torch.bool, device=where)
    total = 0
    progress = progress if is_main() else SILENT
    parts, all_images = one_pass(loader), image_total(loader)
    with together(), evaluating(model), progress.task(name, all_images):
        for batch, images in parts:
            if images == 0:
                continue
            inputs, labels = pair_of(to_device(batch, where))
            logits = _logits(model, inputs)
            if labels.shape != logits.shape[:1]:
                raise TrainingError(
                    f"labels have shape {tuple(labels.shape)}, logits {tuple(logits.shape)}: expected (N,) and (N, classes)."
                )
            correct += (logits.argmax(dim=1) == labels).sum()
            healthy &= ~logits.isnan().any()
            total += len(labels)
            progress.advance(len(labels) * world_size())
        if world_size() > 1 and all_images is not None:
            progress.advance(all_images - total * world_size())  # the parts of other ranks may be larger by an image
    all_correct, count, broken = map(int, summed([int(correct), total, not healthy]))
    if not count:
        raise no_data("evaluate on")
    if broken:
        raise TrainingError("the model gives NaN on the evaluation data: its weights or its batch-norm statistics are not finite.")
    return Top1(all_correct, count)


@torch.no_grad()
def predict(model: nn.Module, loader: Iterable[Any], progress: Progress = SILENT, name: str = "predict") -> Tensor:
    """Logits, shape (N, classes) on the CPU, in the order of ``loader``; batches are inputs or tuples that begin with them.

    Raises:
        TrainingError: the loader is empty, or the logits have another shape.
    """
    where = module_device(model)
    logits: list[Tensor] = []
    with evaluating(model), progress.task(name, image_total(loader)):
        for batch in non_empty(loader, "predict on"):
            logits.append(_logits(model, to_device(inputs_of(batch), where)).cpu())
            progress.advance(image_count(batch))
    return torch.cat(logits)


def cross_entropy_loss(label_smoothing: float = 0.1) -> LossFunction:
    """A ``loss_fn`` for pairs (inputs, labels): cross entropy with smoothed labels, averaged over the batch.

    With K classes the target is ``(1 - e) * onehot + e / K`` (Szegedy et al., CVPR 2016, arXiv 1512.00567).
    Default e = 0.1, as there and in LIMPQ's settings.

    Raises:
        TrainingError: ``label_smoothing`` is not in [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise TrainingError(f"label_smoothing is {label_smoothing}, expected a number from 0 to below 1.")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, labels = pair_of(batch)
        return cross_entropy(model(inputs), labels, label_smoothing)

    return loss


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """PyTorch's cross entropy. Raises TrainingError for a label that is no class of the model; on a GPU PyTorch ends the process first."""
    try:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    except IndexError as error:
        raise TrainingError(
            f"the model gives {logits.shape[1]} classes, expected labels from 0 to {logits.shape[1] - 1}, but those of a batch go from "
            f"{int(labels.min())} to {int(labels.max())}: give the model as many classes as the data has."
        ) from error


def _logits(model: nn.Module, inputs: Any) -> Tensor:
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TrainingError(f"the model gave {shape}, expected logits of shape (N, classes).")
    return logits
