"""Classes made at run time: a user's module class with a class of this library in front of it.

The class of a module is changed in place, on a copy of the model, so that hooks, parameter names and every reference to a shared
module stay. Copies and pickles of the module find the class again by the two that it is made of.
"""

import functools
from collections.abc import Callable
from types import new_class
from typing import Any

from torch import nn

_MADE: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def derived(front: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """The class ``(front, base)``. It keeps the name of ``base`` and the signature of its ``forward``, which some libraries look at."""
    key = (front, base)
    if key not in _MADE:
        body: dict[str, Any] = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": _reduce,
            "_made_of": key,
        }
        if "forward" in front.__dict__:
            body["forward"] = _like(base.forward, front.__dict__["forward"])
        _MADE[key] = new_class(base.__name__, key, {}, lambda namespace: namespace.update(body))
    return _MADE[key]


def change_class(module: nn.Module, front: type[nn.Module]) -> None:
    """Puts ``front`` in front of the module's class; does nothing where it is already there."""
    if not isinstance(module, front):
        module.__class__ = derived(front, type(module))


def _like(original: Callable[..., Any], new: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return new(self, *args, **kwargs)

    return forward


def _reduce(self: nn.Module, protocol: Any) -> Any:
    # As for any object, but for the class, which no module holds under its name.
    return (_blank, (_recipe(type(self)),), *object.__reduce_ex__(self, protocol)[2:])


def _recipe(kind: type[nn.Module]) -> Any:
    made_of = kind.__dict__.get("_made_of")
    return kind if made_of is None else (made_of[0], _recipe(made_of[1]))


def _class_of(recipe: Any) -> type[nn.Module]:
    return derived(recipe[0], _class_of(recipe[1])) if isinstance(recipe, tuple) else recipe


def _blank(recipe: Any) -> nn.Module:
    kind = _class_of(recipe)
    return kind.__new__(kind)
