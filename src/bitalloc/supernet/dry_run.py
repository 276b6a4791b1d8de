"""Everything that a search does, once on a few samples, before hours are spent."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bitalloc.errors import TrainingError
from bitalloc.supernet.choice import draw
from bitalloc.supernet.step import Term
from bitalloc.training import Engine, LossFunction, backward
from bitalloc.training.accumulate import is_out_of_memory
from bitalloc.training.guards import not_finite
from bitalloc.training.rehearsal import rehearsal

_NO_DERIVATIVE = ("derivative", "differentia", "double backward", "double-backward")
"""Words of the errors by which operations say that they have no (second) derivative; PyTorch has no class of its own for them."""


def dry_run(
    supernet: nn.Module, loader: Iterable[Any], loss_fn: LossFunction, term: Term | None, engine: Engine, *, trained: bool = True
) -> None:
    """Loss and term, forward and backward, on some samples of the first batch, see :func:`~bitalloc.training.rehearsal.rehearsal`.

    Args:
        supernet: on its device, calibrated.
        loader: of which the first batch is used.
        loss_fn: ``loss_fn(model, batch)``.
        term: is added to the loss; None without.
        engine: how it is computed.
        trained: whether the weights mean something; else what is not finite is no error, as it may come from them.

    Raises:
        TrainingError: the loader is empty; the loss or the term is no number that gradients flow back from; an operation cannot be
            differentiated as often as it needs; it or a gradient of it is not finite. The message says which one, and where.
    """
    with rehearsal(supernet, loader, engine) as few:
        for what, function in (("loss", loss_fn), ("attribution term", term)):
            if function is not None:
                draw(supernet, 0.0)
                supernet.zero_grad(set_to_none=True)
                with engine.arithmetic(), _differentiable(what):
                    value = function(supernet, few)
                    _check_value(what, value, trained)
                    backward(value)
                if trained:
                    _check_gradients(what, supernet)


@contextmanager
def _differentiable(what: str) -> Iterator[None]:
    """Turns what PyTorch says of an operation without a derivative into a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or not any(word in str(error).lower() for word in _NO_DERIVATIVE):
            raise
        raise TrainingError(
            f"the {what} cannot be differentiated: {str(error).splitlines()[0].rstrip('.')}. An attribution term differentiates every "
            'operation of the network twice: use another operation there, another attribution, or search without one (method = "edmips").'
        ) from error


def _check_value(what: str, value: object, trained: bool) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise TrainingError(
            f"the {what} gave {_described(value)}, expected a tensor with one element that depends on the supernet's parameters."
        )
    if trained and not bool(value.detach().isfinite().all()):
        raise TrainingError(f"the {what} is {value.detach().item()} before the search begins: check the model, the data and the {what}.")


def _check_gradients(what: str, supernet: nn.Module) -> None:
    broken = not_finite((name, parameter.grad) for name, parameter in supernet.named_parameters() if parameter.grad is not None)
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise TrainingError(
            f"the {what} is finite, but its gradient is not, before the search begins: {shown}. It divides by zero or takes a root of zero "
            "somewhere in the backward pass, of an attribution map that is zero for instance."
        )


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}{'' if value.requires_grad else ' without gradient'}"
    return f"a {type(value).__name__}"
