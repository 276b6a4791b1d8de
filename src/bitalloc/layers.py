"""What is known of a model's layers: names and numbers, no tensors and no modules."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitalloc.errors import FileError
from bitalloc.files import AnyPath, read_json, write_json

SCHEMA = "bitalloc.layers"
VERSION = 2
WEIGHT_ONLY = frozenset({"embedding"})
"""Kinds that read no activation: only their weights have a width."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One quantizable layer, counted on real shapes.

    Attributes:
        name: fully-qualified module name, the layer's identity everywhere.
        kind: ``conv1d``, ``conv2d``, ``conv3d``, ``conv_transpose1d``, ``conv_transpose2d``, ``conv_transpose3d``, ``linear`` (weight
            of shape (out, in)), ``matmul`` (weight of shape (..., in, out)) or ``embedding`` (weights only).
        weight_shape: shape of the weight tensor.
        macs: multiply-accumulates for one sample, summed over all calls of the layer in one forward pass.
        input_numel: elements of the input tensor for one sample, summed over all calls.
        output_numel: elements of the output tensor for one sample, summed over all calls.
        groups: convolution groups, 1 for linear layers.
        bias_numel: elements of the bias, 0 without one.
        calls: how often one forward pass calls the layer.
        site: name of the activation site that the layer reads, see :class:`Site`; empty where it reads none.
        same_weight_as: an earlier layer that holds the same weight tensor; empty where the weight is the layer's own.
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
    site: str = ""
    same_weight_as: str = ""

    @property
    def weight_only(self) -> bool:
        """Whether only the weights can be quantized, because the layer reads no activation."""
        return self.kind in WEIGHT_ONLY

    @property
    def weight_numel(self) -> int:
        """Number of weights."""
        return math.prod(self.weight_shape)


@dataclass(frozen=True, slots=True)
class Site:
    """An activation tensor that the deployed network has in memory, and that layers may read through one quantizer.

    Views of a tensor (reshape, permute, slices) are the same site, and so is what an identity gives.

    Attributes:
        name: ``input`` and the like for an input of the network, else the name of the module that makes it, with the operation
            where a module makes several, for example ``layer1.0:add``.
        made_by: the operation whose result it is, for example ``input``, ``relu``, ``softmax``, ``add``, ``concat`` or ``conv2d``.
        numel: elements for one sample.
        readers: the layers that read it, in the order of their first call.
        born: position in the order of execution at which it is made; inputs are made at 0.
        dies: position of the last operation that reads it; for an output of the network the last position of all.
    """

    name: str
    made_by: str
    numel: int
    readers: tuple[str, ...]
    born: int
    dies: int


@dataclass(frozen=True, slots=True)
class Meeting:
    """Sites that meet in an addition or a concatenation, where an integer runtime must bring them to one scale.

    Max pooling is one of a single site: it takes over the scale of what it reads.

    Attributes:
        name: where it happens, the name of the site that results.
        kind: ``add``, ``concat`` or ``max_pool``.
        operands: names of the sites that meet.
        result: name of the site that results; a fused activation function in between counts as part of the operation.
    """

    name: str
    kind: str
    operands: tuple[str, ...]
    result: str


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that a runtime would run as one, and which then need one width.

    Attributes:
        kind: ``qkv``, the projections of one attention that read the same site, or ``depthwise-pointwise``.
        layers: names, in the order of their first call.
    """

    kind: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NotCounted:
    """A module that holds parameters or does arithmetic, but is not counted and not quantized, and why.

    Attributes:
        name: the module's name, empty for the model itself.
        type: its class.
        reason: why it is left out, in words.
        macs: multiply-accumulates of one sample that it computes outside of the counted layers, such as attention scores.
    """

    name: str
    type: str
    reason: str
    macs: int = 0


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
        sites: the activation tensors, in the order in which they are made.
        meetings: the additions, concatenations and max poolings, in the order of execution.
        groups: layers that a runtime would fuse.
        graph: where the graph was read from, ``trace`` (one recorded forward pass) or ``export`` (a ``torch.export`` programme).
    """

    layers: tuple[LayerInfo, ...]
    not_counted: tuple[NotCounted, ...]
    producers: Mapping[str, str]
    first: tuple[str, ...]
    last: tuple[str, ...]
    sites: tuple[Site, ...] = ()
    meetings: tuple[Meeting, ...] = ()
    groups: tuple[Group, ...] = ()
    graph: str = "trace"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "layers": [_layer_to_json(layer) for layer in self.layers],
            "not_counted": [asdict(entry) for entry in self.not_counted],
            "producers": dict(self.producers),
            "first": list(self.first),
            "last": list(self.last),
            "sites": [asdict(site) for site in self.sites],
            "meetings": [asdict(meeting) for meeting in self.meetings],
            "groups": [asdict(group) for group in self.groups],
            "graph": self.graph,
        }

    def save(self, path: AnyPath) -> None:
        """Writes the description as JSON, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "layers") -> "Description":
        """The inverse of :meth:`to_json`. Raises FileError naming the missing or malformed key."""
        try:
            return Description(
                layers=tuple(_layer_from_json(layer) for layer in value["layers"]),
                not_counted=tuple(NotCounted(n["name"], n["type"], n["reason"], int(n["macs"])) for n in value["not_counted"]),
                producers=dict(value["producers"]),
                first=tuple(value["first"]),
                last=tuple(value["last"]),
                sites=tuple(_site_from_json(site) for site in value["sites"]),
                meetings=tuple(Meeting(m["name"], m["kind"], tuple(m["operands"]), m["result"]) for m in value["meetings"]),
                groups=tuple(Group(g["kind"], tuple(g["layers"])) for g in value["groups"]),
                graph=str(value["graph"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed in the layer list. Describe the model again.") from error

    @staticmethod
    def load(path: AnyPath) -> "Description":
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return Description.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))


def by_name(layers: Sequence[LayerInfo]) -> dict[str, LayerInfo]:
    """The layers as a map from name to layer, in order."""
    return {layer.name: layer for layer in layers}


def readers_of_sites(layers: Sequence[LayerInfo]) -> tuple[tuple[str, ...], ...]:
    """The groups of two and more layers that read the same activation site."""
    readers: dict[str, list[str]] = {}
    for layer in layers:
        if layer.site:
            readers.setdefault(layer.site, []).append(layer.name)
    return tuple(tuple(group) for group in readers.values() if len(group) > 1)


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
        "site": layer.site,
        "same_weight_as": layer.same_weight_as,
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
        site=str(value["site"]),
        same_weight_as=str(value["same_weight_as"]),
    )
    if value["weight_numel"] != layer.weight_numel:
        raise ValueError(f"weight_numel of {layer.name}")
    return layer


def _site_from_json(value: Mapping[str, Any]) -> Site:
    return Site(
        name=str(value["name"]),
        made_by=str(value["made_by"]),
        numel=int(value["numel"]),
        readers=tuple(value["readers"]),
        born=int(value["born"]),
        dies=int(value["dies"]),
    )
