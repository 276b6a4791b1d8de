"""Stochastic gradient descent with the groups that quantization-aware training wants."""

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD

from bitalloc.errors import TrainingError


def below_two_dimensions(name: str, parameter: nn.Parameter) -> bool:
    """True for biases, the scales of normalization layers and single numbers: weight decay only shrinks what they express."""
    return parameter.dim() < 2


def sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    no_decay: Callable[[str, nn.Parameter], bool] = below_two_dimensions,
) -> SGD:
    """SGD with two groups: the first with weight decay, the second without; frozen parameters are in neither.

    A parameter whose gradient is None is skipped in a step: neither momentum nor decay moves it.

    Args:
        model: gives the parameters.
        lr: base learning rate of both groups.
        momentum: default 0.9, the usual value.
        weight_decay: added to the gradient as ``weight_decay * parameter`` in the first group. Default 0.
        no_decay: ``(name, parameter) -> bool`` chooses the second group. Default :func:`below_two_dimensions`.

    Raises:
        TrainingError: no parameter of ``model`` is trainable.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise TrainingError("the model has no trainable parameter: unfreeze some (requires_grad_(True)).")
    free = {name for name, parameter in named if no_decay(name, parameter)}
    groups = [
        {"params": [parameter for name, parameter in named if name not in free], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if name in free], "weight_decay": 0.0},
    ]
    return SGD(groups, lr=lr, momentum=momentum)


@torch.no_grad()
def drop_unused_gradients(model: nn.Module) -> int:
    """Sets gradients that are all zero to None, so that momentum and decay leave their parameters alone; gives their number.

    For training steps that use a part of the model at a time (LIMPQ, arXiv 2203.08368: step sizes of bit-widths not drawn):
    without it a parameter that took no part would drift on by its momentum and shrink by its decay.
    """
    # Weights that are spread over ranks take part in every pass.
    used = [parameter for parameter in model.parameters() if parameter.grad is not None and not isinstance(parameter, DTensor)]
    if not used:
        return 0
    target = used[0].device
    # One transfer from the device, not one a parameter. NaN counts as used: the guards are to see it.
    flags = torch.stack([parameter.grad.any().to(target) for parameter in used if parameter.grad is not None]).tolist()
    dropped = [parameter for parameter, nonzero in zip(used, flags, strict=True) if not nonzero]
    for parameter in dropped:
        parameter.grad = None
    return len(dropped)
