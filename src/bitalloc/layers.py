"""What is known of a model's layers: names and numbers, no tensors and no modules."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitalloc.errors import FileError
from bitalloc.files import read_json, write_json

SCHEMA = "bitalloc.layers"
VERSION = 1


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One quantizable layer, counted on real shapes.

    Attributes:
        name: fully-qualified module name, the layer's identity everywhere.
        kind: ``conv1d``, ``conv2d``, ``conv3d``, ``conv_transpose1d``, ``conv_transpose2d``, ``conv_transpose3d`` or ``linear``.
        weight_shape: shape of the weight tensor.
        macs: multiply-accumulates for one sample, summed over all calls of the layer in one forward pass.
        input_numel: elements of the input tensor for one sample, summed over all calls.
        output_numel: elements of the output tensor for one sample, summed over all calls.
        groups: convolution groups, 1 for linear layers.
        bias_numel: elements of the bias, 0 without one.
        calls: how often one forward pass calls the layer.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    macs: int
    input_numel: int
    output_numel: int
    groups: int = 1
    bias_numel: int = 0
    calls: int = 1

    @property
    def weight_numel(self) -> int:
        """Number of weights."""
        return math.prod(self.weight_shape)


@dataclass(frozen=True, slots=True)
class NotCounted:
    """A module that holds parameters or does arithmetic, but is not counted and not quantized, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Description:
    """A model's layers in the order of their first call, and what was left out.

    Attributes:
        layers: the counted layers, in the order in which a forward pass first calls them.
        not_counted: what was called but not counted, and what was never called, by name with the reason.
        producers: for every batch norm called, the name of the counted layer whose output it normalises, or the layer
            called last before it where none is; absent for a batch norm before the first layer.
        first: the layers that read the network's input (usually one).
        last: the layers that give the network's output (usually one).
    """

    layers: tuple[LayerInfo, ...]
    not_counted: tuple[NotCounted, ...]
    producers: Mapping[str, str]
    first: tuple[str, ...]
    last: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "layers": [_layer_to_json(layer) for layer in self.layers],
            "not_counted": [{"name": n.name, "type": n.type, "reason": n.reason} for n in self.not_counted],
            "producers": dict(self.producers),
            "first": list(self.first),
            "last": list(self.last),
        }

    def save(self, path: Path) -> None:
        """Writes the description as JSON, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "layers") -> "Description":
        """The inverse of :meth:`to_json`. Raises FileError naming the missing or malformed key."""
        try:
            return Description(
                layers=tuple(_layer_from_json(layer) for layer in value["layers"]),
                not_counted=tuple(NotCounted(n["name"], n["type"], n["reason"]) for n in value["not_counted"]),
                producers=dict(value["producers"]),
                first=tuple(value["first"]),
                last=tuple(value["last"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed in the layer list. Describe the model again.") from error

    @staticmethod
    def load(path: Path) -> "Description":
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return Description.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))


def by_name(layers: Sequence[LayerInfo]) -> dict[str, LayerInfo]:
    """The layers as a map from name to layer, in order."""
    return {layer.name: layer for layer in layers}


def _layer_to_json(layer: LayerInfo) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "weight_shape": list(layer.weight_shape),
        "weight_numel": layer.weight_numel,
        "macs": layer.macs,
        "input_numel": layer.input_numel,
        "output_numel": layer.output_numel,
        "groups": layer.groups,
        "bias_numel": layer.bias_numel,
        "calls": layer.calls,
    }


def _layer_from_json(value: Mapping[str, Any]) -> LayerInfo:
    layer = LayerInfo(
        name=str(value["name"]),
        kind=str(value["kind"]),
        weight_shape=tuple(int(size) for size in value["weight_shape"]),
        macs=int(value["macs"]),
        input_numel=int(value["input_numel"]),
        output_numel=int(value["output_numel"]),
        groups=int(value["groups"]),
        bias_numel=int(value["bias_numel"]),
        calls=int(value["calls"]),
    )
    if value["weight_numel"] != layer.weight_numel:
        raise ValueError(f"weight_numel of {layer.name}")
    return layer
