"""What happens between two optimiser steps: from a batch to gradients."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from bitalloc.errors import TrainingError
from bitalloc.training.device import backward

LossFunction = Callable[[nn.Module, Any], Tensor]
"""``loss_fn(model, batch)`` gives a loss with one element that gradients can flow back from."""


class TrainStep(Protocol):
    """Leaves the gradients of one batch in ``.grad`` and gives the loss to report.

    It may do several forward and backward passes, with :func:`bitalloc.training.backward`; gradients add up. They are empty
    (None) when it is called, the model is in training mode and the batch on the model's device. A step that has
    state of its own (a counter, a generator) gives it as ``state_dict()`` and takes it back in ``load_state_dict(state)``:
    then it is kept in checkpoints. The global random generators are kept anyway.
    """

    def __call__(self, model: nn.Module, batch: Any) -> float:
        """One batch."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A training step with state of its own."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, text, lists and dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Takes what :meth:`state_dict` gave."""
        ...


def loss_step(loss_fn: LossFunction) -> TrainStep:
    """The plain training step: one forward pass, one backward pass.

    Raises:
        TrainingError: (when called) ``loss_fn`` gives something else than a tensor with one element and a gradient.
    """

    def step(model: nn.Module, batch: Any) -> float:
        return float(learn(loss_fn, model, batch))

    return step


def learn(loss_fn: LossFunction, model: nn.Module, batch: Any, weight: float = 1.0) -> Tensor:
    """One forward and one backward pass; adds the gradients of ``weight`` times the loss to ``.grad``.

    Returns:
        The loss without the weight, shape (), without gradient. It stays on the device: several passes need not wait for each other.

    Raises:
        TrainingError: ``loss_fn`` gives something else than a tensor with one element and a gradient.
    """
    loss = loss_fn(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise TrainingError(f"loss_fn gave {_describe(loss)}, expected a tensor with one element that depends on trainable parameters.")
    backward(loss if weight == 1.0 else loss * weight)
    return loss.detach().reshape(())


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}{'' if value.requires_grad else ' without gradient'}"
    return f"a {type(value).__name__}"
