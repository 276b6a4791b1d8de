"""Where a layer's weight is used: in the layer's own forward pass, or in the code of a module around it."""

import dis
from collections.abc import Mapping
from inspect import unwrap
from types import CodeType, FunctionType

from torch import nn

_ABOUT = frozenset(
    {"dtype", "device", "shape", "size", "ndim", "dim", "numel", "is_cuda", "requires_grad", "is_meta", "is_floating_point", "grad"}
)

_READ: dict[type[nn.Module], frozenset[str]] = {}


def users_of(name: str, attribute: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The outermost module, at or above the one called ``name``, whose forward pass reads an attribute of that name.

    A forward pass is read, not run: its byte code and that of the methods that it names. One that only asks for the type, the device or the
    shape does not count. A module too many costs a little time and changes nothing; PyTorch's own modules but the attention call their
    children.

    Args:
        name: of the module that holds the attribute.
        attribute: name of a parameter; for one in a ``ParameterList`` or ``ParameterDict`` that of the container.
        modules: all modules of the model by name.
    """
    parts = name.split(".") if name else []
    for length in range(len(parts) + 1):
        above = ".".join(parts[:length])
        if above in modules and attribute in _read_by(type(modules[above])):
            return above
    return None


def is_users_own(kind: type[nn.Module]) -> bool:
    """Whether a class of modules is not one of PyTorch's."""
    return not _of_torch(kind)


def _read_by(kind: type[nn.Module]) -> frozenset[str]:
    """The attributes that the forward pass of a class reads."""
    if kind not in _READ:
        _READ[kind] = _reachable(kind)
    return _READ[kind]


def _reachable(kind: type[nn.Module]) -> frozenset[str]:
    classes = [base for base in kind.__mro__ if issubclass(base, nn.Module) and (not _of_torch(base) or base is nn.MultiheadAttention)]
    methods: dict[str, list[FunctionType]] = {}
    for base in classes:  # with what a subclass overrides: it may call it
        for name, value in vars(base).items():
            if (plain := _plain(value)) is not None:
                methods.setdefault(name, []).append(plain)
    read: set[str] = set()
    seen: set[str] = set()
    waiting = ["forward"]
    while waiting:
        method = waiting.pop()
        if method not in seen:
            seen.add(method)
            for function in methods.get(method, ()):
                found = _attributes(function.__code__)
                read |= found
                waiting.extend(found)
    return frozenset(read)


def _plain(value: object) -> FunctionType | None:
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    value = unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _attributes(code: CodeType) -> set[str]:
    """The attributes that a function and the functions within it read, but for those that are only asked about themselves."""
    steps = list(dis.get_instructions(code))
    found = set()
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and not (after is not None and after.argval in _ABOUT):
            found.add(str(step.argval))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _attributes(constant)
    return found


def _of_torch(kind: type) -> bool:
    return kind.__module__ == "torch" or kind.__module__.startswith(("torch.", "bitalloc.wrap."))
