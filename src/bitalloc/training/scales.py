"""SGD for weights, and a scale-free optimiser for positive parameters beside it."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bitalloc.training.optim import below_two_dimensions, sgd

_BETAS = (0.9, 0.99)
_EPSILON = 1e-12


@final
class SGDWithScales(Optimizer):
    """SGD with momentum for most parameters; multiplicative Adam for parameters that are positive scales.

    A scale s with gradient d is updated by Adam (Kingma and Ba, ICLR 2015, betas 0.9 and 0.99) in its logarithm, whose
    gradient is s * d::

        s <- s * exp(-rate * mean(s d) / sqrt(mean((s d)^2)))

    so a step changes a scale by a share of itself of at most about ``rate``, however large the scale or its gradient is, and
    a positive scale stays positive. With SGD the share is ``rate * d / s``, which for the same network spans four orders of
    magnitude between tensors: some scales would never move and others would run through zero.

    Args:
        groups: parameter groups with ``lr``, and either ``momentum`` and ``weight_decay``, or ``multiplicative = True``.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"momentum": 0.0, "weight_decay": 0.0, "multiplicative": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; parameters whose gradient is None are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._scale if group["multiplicative"] else self._weight
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)
        return loss

    def _weight(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            grad = grad.add(parameter, alpha=group["weight_decay"])
        if group["momentum"]:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = grad.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_(grad)
            grad = state["momentum_buffer"]
        parameter.add_(grad, alpha=-group["lr"])

    def _scale(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(count=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["count"] += 1
        slope = grad * parameter
        state["mean"].lerp_(slope, 1 - _BETAS[0])
        state["square"].lerp_(slope.square(), 1 - _BETAS[1])
        mean = state["mean"] / (1 - _BETAS[0] ** state["count"])
        square = state["square"] / (1 - _BETAS[1] ** state["count"])
        parameter.mul_(torch.exp(-group["lr"] * mean / (square.sqrt() + _EPSILON)))


def sgd_with_scales(
    model: nn.Module,
    lr: float,
    scale_lr: float,
    is_scale: Callable[[str, nn.Parameter], bool],
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Optimizer:
    """SGD for ``model`` whose scales move by a share of themselves, see :class:`SGDWithScales`.

    Args:
        model: gives the parameters; frozen ones are left out.
        lr: learning rate of everything but the scales.
        scale_lr: largest share by which a scale changes in a step; 0 trains the scales by SGD at ``lr`` like everything else.
        is_scale: ``(name, parameter) -> bool`` chooses the scales.
        momentum: of SGD.
        weight_decay: of parameters with two dimensions or more; scales, biases and normalisations have none.

    Raises:
        TrainingError: no parameter of ``model`` is trainable.
    """
    plain = sgd(model, lr, momentum, weight_decay, below_two_dimensions)
    if scale_lr == 0:
        return plain
    scales = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad and is_scale(name, parameter)]
    chosen = {id(parameter) for parameter in scales}
    groups = [
        {
            "params": [p for p in group["params"] if id(p) not in chosen],
            "lr": lr,
            "momentum": momentum,
            "weight_decay": group["weight_decay"],
        }
        for group in plain.param_groups
    ]
    return SGDWithScales([*groups, {"params": scales, "lr": scale_lr, "multiplicative": True}])
