"""Data parallelism: what ranks agree on in a training step and around it.

Every rank computes the gradients of its part of the batch, in as many passes as its training step makes; then they are averaged once.
Hooks at every backward pass (``DistributedDataParallel``) would send |B| + 1 times as much in a joint step, and wrap the model, whose
module names are the identity of layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from bitalloc.training.device import rank_weighted
from bitalloc.training.random_state import agree_on_torch
from bitalloc.training.ranks import LostRankError, raise_everywhere, sum_in_place, summed, take_from_main, world_size


@dataclass(slots=True)
class StepResult:
    """Loss and number of images of a training step: this rank's when it is set, those of all ranks after the step."""

    loss: float = 0.0
    images: int = 0
    spread: bool = False

    @contextmanager
    def weighted(self) -> Iterator[None]:
        """Around the passes: where gradients are averaged over ranks in each of them, losses are weighted before, not after."""
        if not self.spread:
            yield
            return
        images = summed([self.images])[0]
        with rank_weighted(world_size() * self.images / images if images else 1.0):
            yield


@contextmanager
def shared_step(model: nn.Module, spread: bool = False) -> Iterator[StepResult]:
    """The block makes the gradients of this rank's part of a batch and sets loss and images; afterwards all three are the whole batch's.

    With n of N images on a rank, gradients and losses are summed over ranks with the weight n / N: those of the whole batch where the
    loss is a mean over images. A parameter that has a gradient on any rank has one on all. Then PyTorch's generator is set to rank 0's,
    so that what the next step draws before its first forward pass, such as bit-widths, is the same everywhere.

    Args:
        model: whose parameters get the gradients.
        spread: its weights are spread over ranks, see :func:`~bitalloc.training.sharding.sharded`, which averages their gradients itself. A
            rank that fails is missed in the middle of a pass then, so it ends, and the launcher ends the others.

    Raises:
        TrainingError: the block failed on another rank.
    """
    result = StepResult(spread=spread and world_size() > 1)
    if world_size() == 1:
        yield result
        return
    failure: Exception | None = None
    try:
        yield result
    except LostRankError:
        raise
    except Exception as error:
        if result.spread:
            raise
        failure = error
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad and not isinstance(parameter, DTensor)]
    own = result.images
    failed, loss, weighted_loss, images, *used = summed(
        [failure is not None, result.loss, result.loss * own, own, *(parameter.grad is not None for parameter in parameters)]
    )
    if failed:
        raise_everywhere(failure)
    # A batch of something that cannot be counted weighs the same on every rank.
    result.loss, result.images = (weighted_loss / images if images else loss / world_size()), int(images)
    share = own / images if images and not spread else 1 / world_size()
    learning = [parameter for parameter, count in zip(parameters, used, strict=True) if count]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_in_place([parameter.grad for parameter in learning if parameter.grad is not None], share)
    agree_on_torch()


def agree_on_model(model: nn.Module) -> None:
    """What ``model.state_dict()`` has becomes that of rank 0; it is loaded, so that modules learn of it that keep a copy elsewhere."""
    if world_size() > 1:
        state = model.state_dict()
        take_from_main([value for value in state.values() if isinstance(value, Tensor)])
        model.load_state_dict(state)


@torch.no_grad()
def agree_on_buffers(model: nn.Module) -> None:
    """Running statistics of batch norms become their mean over ranks, which have seen different images; other buffers, rank 0's."""
    if world_size() == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    statistics = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    averaged = {id(buffer) for buffer in statistics}
    sum_in_place(statistics, 1 / world_size())
    take_from_main([buffer for buffer in model.buffers() if id(buffer) not in averaged])
