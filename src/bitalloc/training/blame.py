"""Where in a model the first number is that is not finite: the failing step is run again and watched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from bitalloc.training.guards import not_finite

Explain = Callable[[nn.Module], str]
"""What else is to be said about a broken model, such as which step size is out of range; empty if nothing is."""


def blame(model: nn.Module, batch: Any, again: Callable[[], object], explain: Explain | None) -> list[str]:
    """What is known about the origin of a loss or a gradient that is not finite, as parts of a sentence.

    The batch, else the first module in call order whose output is not finite, else (where the forward pass is finite) the last module
    in call order with a gradient that is not, which is the first in the backward pass. A module ends before the ones around it, so the
    innermost is named. Then what ``explain`` says.

    Args:
        model: with the gradients of the failing step.
        batch: of that step.
        again: runs the step again; it may raise whatever a step on broken numbers raises. Gradients and running statistics change.
        explain: knows the model better.
    """
    found = ["the batch holds values that are not finite"] if _broken(batch) else _layer(model, again)
    said = explain(model) if explain is not None else ""
    return [*found, said] if said else found


def _layer(model: nn.Module, again: Callable[[], object]) -> list[str]:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    owners = {name.rpartition(".")[0] for name in not_finite(gradients.items())}
    with _watched(model) as (called, broken), suppress(Exception):
        again()
    modules = dict(model.named_modules())
    if broken:
        return [f"the first output that is not finite is that of {_named(broken[0], modules)}"]
    last = next((name for name in reversed(called) if name in owners), None)
    if last is None:
        return []
    return [f"the forward pass is finite, the first gradient that is not finite is that of {_named(last, modules)}"]


@contextmanager
def _watched(model: nn.Module) -> Iterator[tuple[list[str], list[str]]]:
    """The modules that were called within the block, and those of them whose output was not finite, in call order."""
    called: list[str] = []
    broken: list[str] = []

    def look(name: str, module: nn.Module, args: object, output: object) -> None:
        called.append(name)
        if not broken and _broken(output):
            broken.append(name)

    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules()]
    try:
        yield called, broken
    finally:
        for hook in hooks:
            hook.remove()
        model._compiled_call_impl = compiled


def _broken(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not bool(value.isfinite().all())
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return any(map(_broken, values))


def _named(name: str, modules: dict[str, nn.Module]) -> str:
    return f"layer {name} ({type(modules[name]).__name__})" if name else "the model itself"
