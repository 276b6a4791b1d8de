"""Nested state (dicts, lists, tuples, scalars, tensors) as JSON plus a flat list of tensors, and back, without pickle.

Scalars and lists stand for themselves. A JSON object has exactly one key, its tag:
``{"tensor": "7"}``, ``{"dict": [[key, value], ...]}`` (so that integer keys stay integers), ``{"tuple": [...]}`` and
``{"float": "inf"}`` for the numbers that JSON does not have.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitalloc.errors import FileError


def pack(value: object, tensors: dict[str, Tensor], *, origin: str) -> Any:
    """The JSON value of ``value``; its tensors are added to ``tensors`` as contiguous copies on the CPU.

    Raises:
        FileError: something in it is neither a tensor nor plain data; ``origin`` says where.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        key = str(len(tensors))
        # A copy also where the tensor is on the CPU already: tied weights share memory, which safetensors refuses.
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": key}
    if isinstance(value, Mapping):
        pairs = [[_key(key, origin), pack(item, tensors, origin=f"{origin}.{key}")] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, tuple | list):
        items = [pack(item, tensors, origin=f"{origin}[{index}]") for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise FileError(f"{origin} is a {type(value).__name__}, which a checkpoint cannot hold: use tensors, numbers, text, lists and dicts.")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`pack`. Raises KeyError, ValueError or TypeError on values that :func:`pack` does not make."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    if tag == "tuple":
        return tuple(unpack(item, tensors) for item in content)
    if tag == "float":
        return float(content)
    raise ValueError(f"unknown tag {tag!r}")


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor of any dtype."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _key(key: object, origin: str) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise FileError(f"{origin} has the key {key!r}; a checkpoint can hold only text and integers as keys.")
    return key
